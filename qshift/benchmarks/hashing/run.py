"""One cell of the evaluation: one method fitted to one split of one task, asked in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adapters.semantics import unit_rows
from core.errors import ConfigError
from core.types import Codes
from index.codes import pack
from monitoring import hashing
from monitoring.ranking import average_precision
from qshift.benchmarks.hashing.domains import Domains
from qshift.benchmarks.hashing.methods import Fitted, Method, Rows, Training
from qshift.benchmarks.hashing.splits import Scheme, Splits, make_splits

Direction = Literal["cross", "single"]
DIRECTIONS: tuple[Direction, ...] = ("cross", "single")
DbCodes = Literal["learned", "hash_fn"]
"""Gallery codes: those that the fit gave to its source rows, or those of the out-of-sample function."""
PLACES = (1, 5, 10, 20, 50, 100, 200, 500, 1000)
"""N of precision and recall at N."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is asked for: a method's fit to one split."""

    method: str
    task: str
    bits: int
    split: int
    scheme: Scheme
    codes: DbCodes
    k: int


@dataclass(frozen=True, slots=True)
class Score:
    """Of one direction, 0 to 1; NaN where a measure does not apply.

    `precision` and `recall` are at `PLACES`, `curve` is (recall, precision) by Hamming radius.
    """

    direction: Direction
    map_all: float
    map_at_k: float
    pooled_pr_area: float
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Done:
    """Scores of a cell, the seconds of its fit, and what the fit says without labels."""

    scores: tuple[Score, ...]
    seconds: float
    gauges: Mapping[str, float]


def check(method: Method, cell: Cell, domains: Domains) -> None:
    """Raises ConfigError for what cannot be done, before anything is fitted."""
    if method.pictures and not domains.source_pictures:
        raise ConfigError(f"{cell.method} needs pictures, {cell.task} has features only: take another task")
    if cell.codes == "learned" and not method.learns:
        raise ConfigError(f"{cell.method} learns no gallery codes: leave --codes out, or take hash_fn")
    if cell.codes == "learned" and cell.scheme == "out_of_sample":
        raise ConfigError("gallery items of out_of_sample are no training items: take --codes hash_fn")
    if not method.exact and (cell.bits < 8 or cell.bits % 8):
        raise ConfigError(f"bits must be a multiple of 8, at least 8, got {cell.bits}")


def evaluated(method: Method, cell: Cell, domains: Domains) -> Done:
    """Fits and scores. Raises ConfigError for what cannot be done."""
    check(method, cell, domains)
    splits = make_splits(len(domains.source), len(domains.target), cell.split, cell.scheme)
    source = Rows(unit_rows(domains.source), domains.source_pictures)
    target = Rows(unit_rows(domains.target), domains.target_pictures)
    training = Training(
        source.take(splits.source_train), domains.source_labels[splits.source_train],
        target.take(splits.target_train), cell.bits, cell.split,
    )  # fmt: skip
    began = perf_counter()
    fitted = method.fit(training)
    seconds = perf_counter() - began
    asked = fitted.relaxed(target.take(splits.query), "target")
    truth = {
        "cross": domains.source_labels[splits.source_db],
        "single": domains.target_labels[splits.target_db],
    }
    scores = []
    for direction in DIRECTIONS:
        items = _gallery(fitted, cell, splits, direction, source, target)
        labels = domains.target_labels[splits.query], truth[direction]
        scores.append(_score(fitted.exact, direction, asked, items, *labels, cell))
    return Done(tuple(scores), seconds, fitted.gauges)


def _gallery(
    fitted: Fitted, cell: Cell, splits: Splits, direction: Direction, source: Rows, target: Rows
) -> NDArray[Any]:
    """Relaxed codes of the gallery: [N, L]. Learned ones exist for the source's training rows only."""
    if direction == "single":
        return fitted.relaxed(target.take(splits.target_db), "target")
    if cell.codes == "learned" and fitted.learned is not None:
        return fitted.learned
    return fitted.relaxed(source.take(splits.source_db), "source")


def _score(
    exact: bool,
    direction: Direction,
    asked: NDArray[Any],
    items: NDArray[Any],
    query_labels: NDArray[np.int64],
    item_labels: NDArray[np.int64],
    cell: Cell,
) -> Score:
    if exact:
        return _exact(direction, asked, items, query_labels, item_labels, cell.k)
    codes: tuple[Codes, Codes] = (pack(asked), pack(items))
    counts = hashing.radius_counts(*codes, query_labels, item_labels, asked.shape[1])
    return Score(
        direction,
        hashing.map_all(counts)[0],
        hashing.map_at_k(*codes, query_labels, item_labels, cell.k),
        hashing.pooled_pr_area(counts),
        tuple(hashing.precision_at(counts, PLACES)),
        tuple(hashing.recall_at(counts, PLACES)),
        tuple(hashing.pr_by_radius(counts)),
    )


def _exact(
    direction: Direction,
    asked: NDArray[Any],
    items: NDArray[Any],
    query_labels: NDArray[np.int64],
    item_labels: NDArray[np.int64],
    k: int,
) -> Score:
    """By cosine, where no code is made. Ties are rare, so that places are taken as they come."""
    distance = 1 - asked @ items.T
    relevant = query_labels[:, None] == item_labels
    values = [average_precision(d, r) for d, r in zip(distance, relevant)]
    ranked = np.take_along_axis(relevant, np.argsort(distance, axis=1, kind="stable"), 1)
    hits = np.cumsum(ranked, axis=1)
    last = items.shape[0] - 1
    found = np.stack([hits[:, min(n - 1, last)] for n in PLACES])
    asked = hits[:, -1] > 0
    top = ranked[:, :k]
    gained = (top * hits[:, :k] / np.arange(1, top.shape[1] + 1)).sum(1) / np.maximum(top.sum(1), 1)
    return Score(
        direction, float(np.nanmean(values)), float(gained.mean()), float("nan"),
        tuple((found / np.array(PLACES)[:, None]).mean(1).tolist()),
        tuple((found[:, asked] / hits[asked, -1]).mean(1).tolist()),
        (),
    )  # fmt: skip
