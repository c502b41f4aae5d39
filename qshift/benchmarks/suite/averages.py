"""The averages that a suite is read by. Streams are fixed, queries and seeds are what is resampled.

A stream on which no method can change an answer is left out: a 0.0 by construction would only dilute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from qshift.benchmarks.suite.rows import Cell
from qshift.benchmarks.suite.significance import interval

PICTURE_DOMAINS = ("pacs/*", "office/*", "digits/*")


@dataclass(frozen=True, slots=True)
class Average:
    """A named set of streams: those of these tasks and groups that `takes` accepts."""

    title: str
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    takes: Callable[[Cell], bool] = lambda cell: True

    def cells(self, cells: Sequence[Cell], method: str) -> list[Cell]:
        return [
            cell
            for cell in cells
            if cell.method == method
            and cell.stream.group in self.groups
            and any(fnmatchcase(cell.task, pattern) for pattern in self.tasks)
            and self.takes(cell)
        ]


@dataclass(frozen=True, slots=True)
class Averaged:
    """One method on one average: mean gain of its streams with interval, and the worst of them."""

    title: str
    method: str
    streams: int
    gain: float
    low: float
    high: float
    worst: float
    worst_stream: str


def picture_queries(cell: Cell) -> bool:
    """By the id of the task: `<data>/<query>-<gallery>`."""
    return cell.task.partition("/")[2].startswith("picture")


AVERAGES = (
    Average("emoji pictures, all corruptions", ("emoji/picture-picture",), ("corruption",)),
    Average("emoji, domain shifts", ("emoji/*",), ("domain",)),
    Average("pictures across domains", PICTURE_DOMAINS, ("domain",)),
    Average("emoji and pictures, domain shifts", ("emoji/*", *PICTURE_DOMAINS), ("domain",)),
    Average("fashion, picture queries shifted", ("fashion/*",), ("corruption",), picture_queries),
    Average("composed digits, shifted", ("composition/*",), ("corruption",)),
    Average("FashionMNIST, corruptions", ("fashion-mnist/*",), ("corruption",)),
    Average("distilled emoji, all corruptions", ("distil/*",), ("corruption",)),
    Average("typos in text queries", ("*",), ("text",)),
    Average("mixed users in every batch", ("*",), ("mixed",)),
    Average("recurrent and sequential", ("*",), ("recurrent",)),
    Average("other schedules", ("*",), ("schedule",)),
    Average("clean", ("*",), ("clean",)),
    Average("clean, sorted by class", ("*",), ("sorted",)),
    Average("tiny, identical and hostile batches", ("*",), ("safety",)),
)


def averaged(cells: Sequence[Cell], methods: Sequence[str]) -> list[list[Averaged]]:
    """Per average that has streams here, one entry per method, in order."""
    table = []
    alive = {cell.stream for cell in cells if cell.adapts and cell.method in methods}
    cells = [cell for cell in cells if cell.stream in alive]
    for average in AVERAGES:
        line = [_of(average.title, average.cells(cells, method), method) for method in methods]
        if line and all(one is not None for one in line):
            table.append([one for one in line if one is not None])
    return table


def worst(cells: Sequence[Cell], method: str) -> Cell | None:
    """The stream on which a method loses most against frozen."""
    own = [cell for cell in cells if cell.method == method]
    return min(own, key=lambda cell: cell.gain, default=None)


def _of(title: str, cells: Sequence[Cell], method: str) -> Averaged | None:
    if not cells:
        return None
    low, high = interval(np.mean([cell.means for cell in cells], axis=0))
    least = min(cells, key=lambda cell: cell.gain)
    name = f"{least.task} {least.stream.name}"
    gain = float(np.mean([cell.gain for cell in cells]))
    return Averaged(title, method, len(cells), gain, float(low), float(high), least.gain, name)
