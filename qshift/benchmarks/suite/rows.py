"""From results to what tables show: one row per (task, stream, method, seed), one cell over its seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from core.seeds import generator
from qshift.benchmarks.streams import Stream
from qshift.benchmarks.suite.results import Result
from qshift.benchmarks.suite.significance import Array, flipped, holm, interval, resampled

AP, R1, R5, R10 = range(4)
FROZEN = "frozen"
START, END = slice(0, 64), slice(-64, None)
"""Judged queries at either end of a segment: does a second visit start where the first ended?"""


@dataclass(frozen=True, slots=True)
class Row:
    """One result in points. `low`, `high`: 95 % paired bootstrap of the gain over its queries.

    `forwards` and `backwards` are passes of a query through the encoder, the frozen one included.
    """

    task: str
    stream: str
    method: str
    seed: int
    queries: int
    map: float
    r1: float
    map_minus_frozen: float
    low: float
    high: float
    forwards: float
    backwards: float
    adapts: bool
    """False: the answers are the frozen ones by construction."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Means over seeds, in points."""

    map: float
    r1: float
    r5: float
    r10: float


@dataclass(frozen=True, slots=True)
class Part:
    """One segment of a stream: gain of mAP over frozen in points, with its interval.

    `start` and `end` are the gains over its first and its last 64 judged queries.
    """

    name: str
    queries: int
    frozen: Measures
    served: Measures
    gain: float
    low: float
    high: float
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one stream over all seeds, in points.

    `means` [R] are the resampled gains that the interval, and averages over streams, come from. `p` is
    against frozen, adjusted for all streams of the method. `unfused` is the gain of the adapted encoder
    alone. `curve` [points] is the gain in a moving window, `resets` the queries at which a guard reset.
    """

    stream: Stream
    method: str
    seeds: int
    queries: int
    frozen: Measures
    served: Measures
    unfused: float
    gain: float
    low: float
    high: float
    p: float
    forwards: float
    backwards: float
    updates: float
    parts: tuple[Part, ...]
    means: Array
    curve: tuple[tuple[float, float], ...]
    resets: tuple[float, ...]
    adapts: bool = True
    """False: the answers are the frozen ones by construction, and a gain of 0.0 says nothing."""

    @property
    def task(self) -> str:
        return self.stream.task


Group = Sequence[Mapping[str, Result]]
"""Results by method, one mapping per seed."""


def rows_of(results: Iterable[Result]) -> list[Row]:
    """The rows of `--json`, in the order of the results."""
    rows = []
    for result in results:
        gains = _gains(result)
        means = resampled([gains[:, None]], _draw(result.task, result.stream, result.seed))
        low, high = interval(means[:, 0])
        served = 100.0 * np.array(result.served)
        rows.append(
            Row(
                result.task, result.stream, result.method, result.seed, len(result.offsets),
                float(served[:, AP].mean()), float(served[:, R1].mean()), float(gains.mean()),
                float(low), float(high), result.forwards, result.backwards, result.adapts,
            )
        )  # fmt: skip
    return rows


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rounded to what can be meant: four digits after the point."""
    return [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(row).items()}
        for row in rows
    ]


def cells_of(stream: Stream, by_seed: Group) -> list[Cell]:
    """Cells of all methods on one stream; p values are not adjusted yet.

    All methods share the resamples, so that averages and comparisons are paired.
    """
    methods = list(by_seed[0])
    gains = [np.stack([_gains(found[name]) for name in methods], axis=1) for found in by_seed]
    key = [generator(0, f"{stream.task}/{stream.name}", purpose) for purpose in ("bootstrap", "permutation")]
    means = resampled(gains, key[0])
    low, high = interval(means)
    p = flipped(np.concatenate(gains), key[1])
    cells = []
    for column, name in enumerate(methods):
        results = [found[name] for found in by_seed]
        cells.append(
            Cell(
                stream, name, len(results), sum(len(r.offsets) for r in results),
                _measures([r.frozen for r in results]), _measures([r.served for r in results]),
                _mean([100.0 * float((_column(r.adapted) - _column(r.frozen)).mean()) for r in results]),
                _mean([float(values[:, column].mean()) for values in gains]),
                float(low[column]), float(high[column]), float(p[column]),
                _mean([r.forwards for r in results]), _mean([r.backwards for r in results]),
                _mean([float(np.mean(r.batch_updated or (False,))) for r in results]),
                _parts(results), means[:, column], curve(results), _resets(results),
                any(r.adapts for r in results),
            )
        )  # fmt: skip
    return cells


def adjusted(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with p values corrected for the number of streams of each method (Holm)."""
    found = list(cells)
    for method in dict.fromkeys(cell.method for cell in cells):
        places = [i for i, cell in enumerate(cells) if cell.method == method]
        for place, p in zip(places, holm([cells[i].p for i in places])):
            found[place] = replace(found[place], p=p)
    return found


def curve(results: Sequence[Result], window: int = 64, step: int = 16) -> tuple[tuple[float, float], ...]:
    """Gain in points over the last `window` judged queries, at every `step`: (query, mean over seeds)."""
    gains = [_gains(result) for result in results]
    shortest = min(len(one) for one in gains)
    points = []
    for end in range(min(window, shortest), shortest + 1, step):
        values = [float(one[max(0, end - window) : end].mean()) for one in gains]
        at = _mean([float(result.offsets[end - 1] + 1) for result in results])
        points.append((at, _mean(values)))
    return tuple(points)


def _parts(results: Sequence[Result]) -> tuple[Part, ...]:
    first = results[0]
    if len(first.segment_names) < 2:
        return ()
    parts = []
    for number, name in enumerate(first.segment_names):
        picked = [np.array(r.segments) == number for r in results]
        if not all(mask.any() for mask in picked):
            continue
        gains = [_gains(r)[mask][:, None] for r, mask in zip(results, picked)]
        means = resampled(gains, _draw(first.task, f"{first.stream}/{name}", 0))
        low, high = interval(means[:, 0])
        frozen, served = (
            _measures([np.array(rows)[mask].tolist() for rows, mask in zip(both, picked)])
            for both in ([r.frozen for r in results], [r.served for r in results])
        )
        gain = _mean([float(one.mean()) for one in gains])
        start, end = (_mean([float(one[edge].mean()) for one in gains]) for edge in (START, END))
        count = sum(int(m.sum()) for m in picked)
        parts.append(Part(name, count, frozen, served, gain, float(low), float(high), start, end))
    return tuple(parts)


def _resets(results: Sequence[Result]) -> tuple[float, ...]:
    """Queries after which the guard of the first seed has returned to the source."""
    result, found, before, queries = results[0], [], 0, 0
    for size, resets in zip(result.batch_queries, result.batch_resets):
        queries += size
        if resets > before:
            found.append(float(queries))
        before = resets
    return tuple(found)


def _gains(result: Result) -> Array:
    """Served minus frozen AP of every judged query, in points."""
    return 100.0 * (_column(result.served) - _column(result.frozen))


def _column(scores: Sequence[Sequence[float]], measure: int = AP) -> Array:
    return np.array([row[measure] for row in scores])


def _measures(per_seed: Sequence[Sequence[Sequence[float]]]) -> Measures:
    means = 100.0 * np.mean([np.mean(np.array(scores), axis=0) for scores in per_seed], axis=0)
    return Measures(*(float(value) for value in means))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _draw(task: str, stream: str, seed: int) -> np.random.Generator:
    return generator(seed, f"{task}/{stream}", "bootstrap")


def digest_of(rows: Sequence[Row]) -> str:
    """Short hash of a table: two runs that agree show the same."""
    return hashlib.sha256(repr(as_json(rows)).encode()).hexdigest()[:16]
