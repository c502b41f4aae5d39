"""The tables that Markdown and HTML show alike, before they have a form.

No clocks: equal results, equal text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qshift.benchmarks.suite.averages import Averaged
from qshift.benchmarks.suite.report import Report
from qshift.benchmarks.suite.rows import FROZEN, Cell, Measures, Part
from qshift.terminal.points import gain_text, signed

UNSHIFTED = ("clean", "sorted")
"""Groups of streams that only ask clean queries."""
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
BY_CONSTRUCTION = "= frozen"


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


def cell_text(cell: Cell) -> str:
    """Gain, interval and stars; said where nothing could change."""
    if not cell.adapts:
        return BY_CONSTRUCTION
    stars = next((mark for bound, mark in STARS if cell.p < bound), "")
    return f"{gain_text(cell.gain, cell.low, cell.high)}{stars}"


def colour(low: float, high: float) -> str:
    """Green for an interval above zero, red for one below, else none."""
    return "green" if low > 0 else "red" if high < 0 else "default"


def passes(report: Report, name: str) -> str:
    """Forward and backward passes of a query under a method, mean over its runs: 2.0 + 1.0."""
    own = report.of(name)
    forwards, backwards = (
        sum(getattr(c, part) for c in own) / len(own) for part in ("forwards", "backwards")
    )
    return f"{forwards:.1f} + {backwards:.1f}"
