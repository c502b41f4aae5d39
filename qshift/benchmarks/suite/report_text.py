"""The report as text: tables for the terminal, and Markdown.

No clocks: equal results, equal text.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from qshift.benchmarks.suite.grids import Entry, cell_text, colour, grids, passes
from qshift.benchmarks.suite.report import Report
from qshift.benchmarks.suite.rows import FROZEN
from qshift.terminal.points import gain_text, signed
from qshift.terminal.sheet import Head, Sheet

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
    sheet.add("passes per query", "", *(passes(report, name) for name in methods))
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
