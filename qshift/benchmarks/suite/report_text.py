"""The report as text: tables for the terminal, Markdown, and the tables that HTML shows too.

No clocks: equal results, equal text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Group
from rich.text import Text

from qshift.benchmarks.suite.averages import Averaged
from qshift.benchmarks.suite.report import Report
from qshift.benchmarks.suite.rows import FROZEN, Cell, Measures, Part
from qshift.terminal.points import gain_text, signed
from qshift.terminal.sheet import Head, Sheet

UNSHIFTED = ("clean", "sorted")
"""Groups of streams that only ask clean queries."""
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
BY_CONSTRUCTION = "= frozen"
NAMES_WIDTH, CELL_WIDTH = 56, 26
"""Characters of a terminal row that names take, and of a method's column."""
NOTES = (
    "Gains are served minus frozen mAP in points, mean over seeds; in brackets the 95 % interval of a "
    "bootstrap over seeds and, within each, over queries (2,000 resamples, paired: all methods share them). "
    "An average over streams takes the streams as given.",
    "*, **, ***: p < .05, .01, .001 of a paired sign-flip test over the queries of all seeds (10,000 flips), "
    "corrected by Holm for the number of streams of the method.",
    "= frozen: the method, or the base, has nothing that could change such an answer, so that it is "
    "the frozen one by construction. Streams on which this holds for all methods are in no average.",
    "Forgetting on return: gain of the second visit minus that of the first; in brackets the gains over the "
    "last 64 queries of the first visit and the first 64 of the second.",
    "Passes are those of a query through the encoder, the frozen one included; of the backward passes only "
    "those through the encoder count.",
)


def cell_text(cell: Cell) -> str:
    """Gain, interval and stars; said where nothing could change."""
    if not cell.adapts:
        return BY_CONSTRUCTION
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
    sheets = [_stream_table(report, group) for group in groups or [()]]
    sheets += [_average_table(report, group) for group in groups]
    return Group(*(sheet.table(width) for sheet in sheets))


def _stream_table(report: Report, methods: Sequence[str]) -> Sheet:
    title = f"{report.title}: gain of mAP over frozen, points"
    names = [Head("task", left=True), Head("stream", left=True), Head("frozen", 1)]
    sheet = Sheet(title, [*names, *map(Head, methods)])
    for line in report.lines:
        frozen = line[FROZEN]
        cells = [line[name] for name in methods]
        sheet.add(
            frozen.task, frozen.stream.name, f"{frozen.frozen.map:.1f}",
            *(Text(cell_text(cell), style=colour(cell.low, cell.high)) for cell in cells),
        )  # fmt: skip
    return sheet


def _average_table(report: Report, methods: Sequence[str]) -> Sheet:
    sheet = Sheet("averages", [Head("average", left=True), Head("streams", 1), *map(Head, methods)])
    for average in report.averages:
        own = [one for one in average if one.method in methods]
        gains = (Text(gain_text(o.gain, o.low, o.high), style=colour(o.low, o.high)) for o in own)
        sheet.add(average[0].title, str(average[0].streams), *gains)
    if report.averages:
        sheet.rule()
    worst = [cell for cell in report.worst if cell.method in methods]
    sheet.add("worst single stream", "", *(signed(cell.gain) for cell in worst))
    sheet.add("  which", "", *(f"{c.task}\n{c.stream.name}" for c in worst), dim=True)
    sheet.add("passes per query", "", *(_passes(report, name) for name in methods))
    return sheet


def markdown(report: Report) -> str:
    """The whole report as GitHub Markdown."""
    parts = [f"# {report.title}", f"Seeds {', '.join(map(str, report.seeds))}. Rows `{report.digest}`."]
    if report.left_out:
        parts.append(
            "\n".join(f"- left out: {missing.name}: {missing.reason}" for missing in report.left_out)
        )
    for grid in grids(report):
        lines = [[*line.names, *(_marked(entry) for entry in line.entries)] for line in grid.lines]
        parts += [f"## {grid.title}", table((*grid.names, *grid.heads), lines, len(grid.names))]
    return "\n\n".join([*parts, *NOTES]) + "\n"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text."""
    rule = ["---" if number < left else "---:" for number in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def _marked(entry: Entry) -> str:
    return f"{entry.text} {entry.more}".strip().replace("*", "\\*")


# -- what both Markdown and HTML show ----------------------------------------------------------------------


class Entry(NamedTuple):
    """What stands in one place of a table. HTML puts `more` on a smaller line of its own."""

    text: str
    more: str = ""
    kind: str = "default"


class Line(NamedTuple):
    """One line of a table: what it is about, and an entry per column."""

    names: Sequence[str]
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table before it has a form. `names` are the heads of what lines are about, `heads` the others."""

    title: str
    names: Sequence[str]
    heads: Sequence[str]
    lines: Sequence[Line]


def grids(report: Report) -> list[Grid]:
    """All tables in the order in which they are shown; those without a line are left out."""
    every = (
        _averages(report), _harm(report), _streams(report), _recalls(report), _unfused(report),
        _segments(report), _segment_recalls(report), _returns(report), _cost(report),
    )  # fmt: skip
    return [grid for grid in every if grid.lines]


def _averages(report: Report) -> Grid:
    lines = []
    for average in report.averages:
        count = Entry(str(average[0].streams))
        lines.append(Line([average[0].title], [count, *map(_gain, average)]))
        worst = [Entry(signed(one.worst)) for one in average]
        lines.append(Line([f"{average[0].title}: worst stream"], [Entry(""), *worst]))
    gains = [Entry(signed(cell.gain)) for cell in report.worst]
    lines.append(Line(["worst single stream"], [Entry(""), *gains]))
    lines.append(Line(["which"], [Entry(""), *map(_which, report.worst)]))
    return Grid("Averages", ["average"], ["streams", *report.adapting], lines)


def _harm(report: Report) -> Grid:
    """What methods do where there is nothing to adapt to: clean queries, shuffled or class by class."""
    title, heads = "Harm on clean queries", ["streams", *report.adapting]
    clean = [line for line in report.lines if line[FROZEN].stream.group in UNSHIFTED]
    if not clean or not report.adapting:
        return Grid(title, ["measure"], heads, [])
    of = [[line[name] for line in clean] for name in report.adapting]
    worst = [min(cells, key=lambda cell: cell.gain) for cells in of]
    harmed = [sum(cell.gain < 0 and cell.p < STARS[-1][0] for cell in cells) for cells in of]
    count = Entry(str(len(clean)))
    mean = [Entry(signed(sum(cell.gain for cell in cells) / len(cells))) for cells in of]
    lines = [
        Line(["mean gain"], [count, *mean]),
        Line(["worst stream"], [count, *(_gain(cell) for cell in worst)]),
        Line(["which"], [Entry(""), *map(_which, worst)]),
        Line(["streams with a significant loss"], [count, *(Entry(str(number)) for number in harmed)]),
    ]
    return Grid(title, ["measure"], heads, lines)


def _streams(report: Report) -> Grid:
    lines = []
    for line in report.lines:
        frozen = line[FROZEN]
        head = [Entry(str(frozen.queries)), Entry(f"{frozen.frozen.map:.1f}")]
        lines.append(Line(_names(line), [*head, *(_cell(line[name]) for name in report.adapting)]))
    heads = ["queries", "frozen mAP", *report.adapting]
    return Grid("Streams: gain of mAP over frozen", ["task", "stream"], heads, lines)


def _recalls(report: Report) -> Grid:
    methods = (FROZEN, *report.adapting)
    lines = [Line(_names(line), [_recall(line[n].served) for n in methods]) for line in report.lines]
    return Grid("R@1, R@5, R@10 of the served answers", ["task", "stream"], methods, lines)


def _unfused(report: Report) -> Grid:
    lines = [
        Line(_names(line), [Entry(signed(line[name].unfused)) for name in report.adapting])
        for line in report.lines
    ]
    title = "The adapted encoder alone: gain of mAP over frozen"
    return Grid(title, ["task", "stream"], report.adapting, lines)


def _segments(report: Report) -> Grid:
    lines = []
    for line in report.lines:
        for number, part in enumerate(line[FROZEN].parts):
            cells = [_gain(line[name].parts[number]) for name in report.adapting]
            lines.append(Line([*_names(line), part.name], [Entry(f"{part.frozen.map:.1f}"), *cells]))
    heads = ["frozen mAP", *report.adapting]
    return Grid("Segments: gain of mAP over frozen", ["task", "stream", "segment"], heads, lines)


def _segment_recalls(report: Report) -> Grid:
    methods, lines = (FROZEN, *report.adapting), []
    for line in report.lines:
        for number, part in enumerate(line[FROZEN].parts):
            recalls = [_recall(line[name].parts[number].served) for name in methods]
            lines.append(Line([*_names(line), part.name], recalls))
    title = "Segments: R@1, R@5, R@10 of the served answers"
    return Grid(title, ["task", "stream", "segment"], methods, lines)


def _returns(report: Report) -> Grid:
    """What a stream that comes back to an earlier kind of query gains there, minus what it gained before.

    In brackets: over the last 64 queries of the first visit, and over the first 64 of the second.
    """
    lines = []
    for line in report.lines:
        heads = line[FROZEN].parts
        for first, last in report.returns(line[FROZEN]):
            parts = [line[name].parts for name in report.adapting]
            names = [*_names(line), f"{heads[first].name} → {heads[last].name}"]
            lines.append(Line(names, [_return(own[first], own[last]) for own in parts]))
    return Grid("Forgetting on return", ["task", "stream", "from → to"], report.adapting, lines)


def _cost(report: Report) -> Grid:
    lines = []
    for name in (FROZEN, *report.adapting):
        own = report.of(name)
        forwards, backwards, updates = (
            sum(getattr(cell, part) for cell in own) / len(own)
            for part in ("forwards", "backwards", "updates")
        )
        texts = (f"{forwards:.2f}", f"{backwards:.2f}", f"{100 * updates:.0f} %")
        lines.append(Line([name], [Entry(text) for text in texts]))
    heads = ["forward passes per query", "backward passes per query", "batches learned from"]
    return Grid("Cost", ["method"], heads, lines)


def _names(line: Mapping[str, Cell]) -> list[str]:
    return [line[FROZEN].task, line[FROZEN].stream.name]


def _gain(one: Cell | Part | Averaged) -> Entry:
    text, _, more = gain_text(one.gain, one.low, one.high).partition(" ")
    return Entry(text, more, colour(one.low, one.high))


def _cell(cell: Cell) -> Entry:
    text, _, more = cell_text(cell).partition(" ")
    return Entry(text, more, colour(cell.low, cell.high))


def _which(cell: Cell) -> Entry:
    return Entry(cell.task, cell.stream.name, "long")


def _recall(measures: Measures) -> Entry:
    return Entry(f"{measures.r1:.1f}", f"{measures.r5:.1f} {measures.r10:.1f}")


def _return(before: Part, after: Part) -> Entry:
    return Entry(signed(after.gain - before.gain), f"({signed(before.end)} → {signed(after.start)})")


def _passes(report: Report, name: str) -> str:
    own = report.of(name)
    forwards, backwards = (
        sum(getattr(c, part) for c in own) / len(own) for part in ("forwards", "backwards")
    )
    return f"{forwards:.1f} + {backwards:.1f}"
