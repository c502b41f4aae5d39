"""What all forms of a report show, worked out once from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import QshiftError
from qshift.benchmarks.streams import Stream
from qshift.benchmarks.suite.averages import Averaged, averaged, worst
from qshift.benchmarks.suite.results import Result
from qshift.benchmarks.suite.rows import FROZEN, Cell, Row, adjusted, cells_of, digest_of, rows_of
from qshift.benchmarks.suite.work import Missing

Line = Mapping[str, Cell]
"""Cells of one stream by method."""
Results = Sequence[tuple[Stream, Sequence[Mapping[str, Result]]]]
"""(stream, results by method for each seed), in the order of the report."""


@dataclass(frozen=True, slots=True)
class Report:
    """Rows, cells and averages of one suite. `adapting` are the methods besides frozen."""

    title: str
    seeds: tuple[int, ...]
    adapting: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[Line, ...]
    averages: tuple[tuple[Averaged, ...], ...]
    worst: tuple[Cell, ...]
    left_out: tuple[Missing, ...]
    digest: str

    def of(self, method: str) -> list[Cell]:
        return [line[method] for line in self.lines]

    def returns(self, cell: Cell) -> list[tuple[int, int]]:
        """Pairs of segments, by number, in which a stream comes back to the same looks."""
        looks = {segment.name: segment.looks for segment in cell.stream.segments}
        names = [part.name for part in cell.parts]
        pairs = []
        for last, name in enumerate(names):
            earlier = [i for i in range(last - 1) if looks[names[i]] == looks[name]]
            if earlier:
                pairs.append((earlier[-1], last))
        return pairs


def report_of(title: str, results: Results, left_out: Sequence[Missing]) -> Report:
    """Works out everything that is shown.

    Raises:
        QshiftError: two methods do not agree on what frozen answers.
    """
    cells: list[Cell] = []
    rows: list[Row] = []
    seeds: dict[int, None] = {}
    methods: list[str] = []
    for stream, by_seed in results:
        for found in by_seed:
            _same_frozen(stream, found)
            rows += rows_of(found.values())
            seeds.update({result.seed: None for result in found.values()})
            methods = methods or list(found)
        cells += cells_of(stream, by_seed)
    cells = adjusted(cells)
    by_stream: dict[Stream, dict[str, Cell]] = {}
    for cell in cells:
        by_stream.setdefault(cell.stream, {})[cell.method] = cell
    adapting = tuple(name for name in methods if name != FROZEN)
    worst_cells = [worst(cells, name) for name in adapting]
    return Report(
        title, tuple(seeds), adapting, tuple(rows), tuple(by_stream.values()),
        tuple(tuple(line) for line in averaged(cells, adapting)),
        tuple(cell for cell in worst_cells if cell is not None), tuple(left_out), digest_of(rows),
    )  # fmt: skip


def _same_frozen(stream: Stream, found: Mapping[str, Result]) -> None:
    """The twin is the same encoder for every method: if its scores differ, the comparison is void."""
    reference = found[FROZEN]
    for method, result in found.items():
        if (result.frozen, result.offsets) != (reference.frozen, reference.offsets):
            raise QshiftError(
                f"{stream.task} {stream.name}, seed {result.seed}: the frozen twin of {method} scores "
                "otherwise than frozen alone: re-ranking must be configured the same for all methods; "
                "otherwise delete the cached results and run again"
            )
