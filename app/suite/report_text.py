"""The report as text: a table for the terminal, and Markdown. No clocks: equal results, equal text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from app.suite.averages import Averaged
from app.suite.report import Report
from app.suite.rows import FROZEN, Cell

Line = list[str]
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
NAMES_WIDTH, CELL_WIDTH = 56, 26
"""Characters of a terminal row that names take, and of a method's column."""
NOTES = (
    "Gains are served minus frozen mAP in points, mean over seeds; in brackets the 95 % interval of a "
    "bootstrap over seeds and, within each, over queries (2,000 resamples, paired: all methods share them). "
    "An average over streams takes the streams as given.",
    "*, **, ***: p < .05, .01, .001 of a paired sign-flip test over the queries of all seeds (10,000 flips), "
    "corrected by Holm for the number of streams of the method.",
    "Passes are those of a query through the encoder, the frozen one included; of the backward passes only "
    "those through the encoder count.",
)


def gain_text(gain: float, low: float, high: float) -> str:
    return f"{_signed(gain)} [{_signed(low)}, {_signed(high)}]"


def cell_text(cell: Cell) -> str:
    """Gain, interval and stars."""
    stars = next((mark for bound, mark in STARS if cell.p < bound), "")
    return f"{gain_text(cell.gain, cell.low, cell.high)}{stars}"


def colour(low: float, high: float) -> str:
    return "green" if low > 0 else "red" if high < 0 else "default"


def terminal(report: Report, width: int) -> Group:
    """Everything that is printed, in as many tables side by side as a terminal of that width asks for.

    Args:
        report: what to show.
        width: of the terminal, in characters.
    """
    most = max(1, (width - NAMES_WIDTH) // CELL_WIDTH)
    groups = [report.adapting[start : start + most] for start in range(0, len(report.adapting), most)]
    tables = [_stream_table(report, group) for group in groups or [()]]
    return Group(*tables, *(_average_table(report, group) for group in groups))


def _stream_table(report: Report, methods: Sequence[str]) -> Table:
    title = f"{report.title}: gain of mAP over frozen, points"
    found = _empty(title, ("task", "stream", "frozen", *methods), 2)
    for line in report.lines:
        frozen = line[FROZEN]
        cells = [line[name] for name in methods]
        found.add_row(
            frozen.task, frozen.stream.name, f"{frozen.frozen.map:.1f}",
            *(Text(cell_text(cell), style=colour(cell.low, cell.high)) for cell in cells),
        )  # fmt: skip
    return found


def _average_table(report: Report, methods: Sequence[str]) -> Table:
    found = _empty("averages", ("average", "streams", *methods), 1)
    for average in report.averages:
        own = [one for one in average if one.method in methods]
        gains = (Text(gain_text(o.gain, o.low, o.high), style=colour(o.low, o.high)) for o in own)
        found.add_row(average[0].title, str(average[0].streams), *gains)
    found.add_section()
    worst = [cell for cell in report.worst if cell.method in methods]
    found.add_row("worst single stream", "", *(_signed(cell.gain) for cell in worst))
    found.add_row("  which", "", *(f"{c.task}\n{c.stream.name}" for c in worst), style="dim")
    found.add_row("passes per query", "", *(_passes(report, name) for name in methods))
    return found


def _empty(title: str, heads: Sequence[str], left: int) -> Table:
    """The first `left` columns are text."""
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        found.add_column(head, justify="right" if number >= left else "left", no_wrap=True)
    return found


def markdown(report: Report) -> str:
    """The whole report as GitHub Markdown."""
    adapting = report.adapting
    parts = [f"# {report.title}", f"Seeds {', '.join(map(str, report.seeds))}. Rows `{report.digest}`."]
    if report.left_out:
        parts.append(
            "\n".join(f"- left out: {missing.name}: {missing.reason}" for missing in report.left_out)
        )
    parts += ["## Averages", _averages(report.averages, adapting)]
    parts += ["## Streams", _streams(report)]
    parts += ["## R@1, R@5, R@10 of the served answers", _recalls(report)]
    parts += ["## The adapted encoder alone", _unfused(report)]
    if any(line[FROZEN].parts for line in report.lines):
        parts += ["## Segments: gain of mAP over frozen", _segments(report)]
        parts += ["## Forgetting on return", _returns(report)]
    parts += ["## Cost", _cost(report), *NOTES]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text."""
    rule = ["---" if number < left else "---:" for number in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def _streams(report: Report) -> str:
    lines = [
        [
            line[FROZEN].task,
            line[FROZEN].stream.name,
            str(line[FROZEN].queries),
            f"{line[FROZEN].frozen.map:.1f}",
        ]
        + [cell_text(line[name]).replace("*", "\\*") for name in report.adapting]
        for line in report.lines
    ]
    return table(["task", "stream", "queries", "frozen mAP", *report.adapting], lines, 2)


def _averages(averages: Sequence[Sequence[Averaged]], adapting: Sequence[str]) -> str:
    lines: list[Line] = []
    for average in averages:
        own = [one for one in average if one.method in adapting]
        lines.append(
            [average[0].title, str(average[0].streams), *(gain_text(o.gain, o.low, o.high) for o in own)]
        )
        lines.append([f"{average[0].title}: worst stream", "", *(_signed(o.worst) for o in own)])
    return table(["average", "streams", *adapting], lines)


def _recalls(report: Report) -> str:
    lines = []
    for line in report.lines:
        cells = [line[FROZEN], *(line[name] for name in report.adapting)]
        recalls = [f"{c.served.r1:.1f} {c.served.r5:.1f} {c.served.r10:.1f}" for c in cells]
        lines.append([cells[0].task, cells[0].stream.name, *recalls])
    return table(["task", "stream", FROZEN, *report.adapting], lines, 2)


def _unfused(report: Report) -> str:
    lines = [
        [line[FROZEN].task, line[FROZEN].stream.name, *(_signed(line[n].unfused) for n in report.adapting)]
        for line in report.lines
    ]
    return table(["task", "stream", *report.adapting], lines, 2)


def _segments(report: Report) -> str:
    lines = []
    for line in report.lines:
        for number, part in enumerate(line[FROZEN].parts):
            cells = [line[name].parts[number] for name in report.adapting]
            lines.append(
                [line[FROZEN].task, line[FROZEN].stream.name, part.name, f"{part.frozen.map:.1f}"]
                + [gain_text(cell.gain, cell.low, cell.high) for cell in cells]
            )
    return table(["task", "stream", "segment", "frozen mAP", *report.adapting], lines, 3)


def _returns(report: Report) -> str:
    """What a stream that comes back to an earlier kind of query gains there, minus what it gained before."""
    lines = []
    for line in report.lines:
        for first, last in report.returns(line[FROZEN]):
            parts = [line[name].parts for name in report.adapting]
            heads = line[FROZEN].parts
            lines.append(
                [line[FROZEN].task, line[FROZEN].stream.name, f"{heads[first].name} → {heads[last].name}"]
                + [_signed(own[last].gain - own[first].gain) for own in parts]
            )
    return table(["task", "stream", "from → to", *report.adapting], lines, 3) if lines else ""


def _cost(report: Report) -> str:
    lines = []
    for name in (FROZEN, *report.adapting):
        own = report.of(name)
        forwards, backwards, updates = (
            sum(getattr(cell, part) for cell in own) / len(own)
            for part in ("forwards", "backwards", "updates")
        )
        lines.append([name, f"{forwards:.2f}", f"{backwards:.2f}", f"{100 * updates:.0f} %"])
    return table(
        ["method", "forward passes per query", "backward passes per query", "batches learned from"], lines
    )


def _passes(report: Report, name: str) -> str:
    own = report.of(name)
    forwards, backwards = (
        sum(getattr(c, part) for c in own) / len(own) for part in ("forwards", "backwards")
    )
    return f"{forwards:.1f} + {backwards:.1f}"


def _signed(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    # -0.04 would print as -0.0, and differ from 0.0 for no reason.
    return f"{round(value, 1) + 0.0:+.1f}"
