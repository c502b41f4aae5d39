"""Tie-aware ranking measures from distances.

Hamming distances tie all the time, so every measure here is its mean over all orders inside ties: no order is
favoured, and no generator is needed.

Positions do not matter, only distances do; a NaN distance ranks behind everything else, as one tie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import GalleryError

Relevant = NDArray[np.bool_]
Levels = NDArray[np.int64]
"""Counts [2, M] per distance level, nearest first: relevant items, then all others."""
EULER = 0.57721566490153286
_TABLE = np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, 256))))


def levels(distance: NDArray[Any], relevant: Relevant) -> Levels:
    """Counts [2, M] per distance level, nearest first: relevant items, then all others.

    Args:
        distance: [N], any real dtype.
        relevant: [N] True where the item carries the query's label.

    Raises:
        GalleryError: the two are not of one length.
    """
    distance, relevant = np.asarray(distance), np.asarray(relevant, dtype=bool)
    if distance.ndim != 1 or distance.shape != relevant.shape:
        raise GalleryError(
            f"distances and relevance of one length expected, got {distance.shape} and {relevant.shape}: "
            "take both from the same gallery version"
        )
    return counted_levels(distance, relevant, np.ones(len(distance), np.int64))


def counted_levels(distance: NDArray[Any], relevant: NDArray[Any], items: NDArray[Any]) -> Levels:
    """As `levels`, of a ranking told by counts: what histograms of distances give without the N distances.

    Args:
        distance: [M] in any order; equal ones make one level.
        relevant: [M] relevant items at each of them.
        items: [M] all items at each of them; levels without any are dropped.
    """
    there = items > 0
    values, level = np.unique(distance[there], return_inverse=True)
    hits, every = (
        np.bincount(level, counts[there], minlength=len(values)).astype(np.int64)
        for counts in (relevant, items)
    )
    return np.stack((hits, every - hits))


def class_average_precision(histogram: NDArray[Any]) -> NDArray[np.float64]:
    """AP [C] of one ranking for every class the query could have.

    A level with t items, r relevant, behind s items with R relevant, and h = H(s+t) - H(s) adds
    r/t [ (R+1) h + (r-1)/(t-1) (t - (s+1) h) ]; the sum is divided by the number of relevant items.

    Args:
        histogram: [C, M] items per class and distance level, nearest first; every item in one class.

    Returns:
        [C] in (0, 1], NaN for classes without items.
    """
    r = np.asarray(histogram, dtype=np.float64)
    r = r[:, r.sum(0) > 0]
    t = r.sum(0)
    s = np.cumsum(t) - t
    before = np.cumsum(r, axis=1) - r
    h = harmonic(s + t) - harmonic(s)
    inside = (r - 1) / np.maximum(t - 1, 1) * (t - (s + 1) * h) * (t > 1)
    total = r.sum(1)
    summed = (r / t * ((before + 1) * h + inside)).sum(1)
    return np.where(total > 0, summed / np.maximum(total, 1), np.nan)


def harmonic(n: NDArray[Any]) -> NDArray[np.float64]:
    """H(n) = 1 + 1/2 + ... + 1/n of whole numbers: from a table, from 256 on by Euler-Maclaurin (1e-17)."""
    large = np.maximum(n, len(_TABLE)).astype(np.float64)
    square = large**-2
    series = np.log(large) + EULER + 0.5 / large - square * (1 / 12 - square / 120)
    exact: NDArray[np.float64] = _TABLE[np.minimum(n, len(_TABLE) - 1).astype(np.int64)]
    return np.where(n < len(_TABLE), exact, series)


def average_precision(distance: NDArray[Any], relevant: Relevant) -> float:
    """AP over the whole gallery, averaged over all orders inside ties.

    Args:
        distance: [N] distances of one query to every item.
        relevant: [N] True where the item is relevant.

    Returns:
        A value in (0, 1]; NaN when nothing is relevant.
    """
    return float(class_average_precision(levels(distance, relevant))[0])


def ap_and_first(counts: Levels) -> tuple[float, float]:
    """AP and R@1 of a ranking told by its levels; NaN when nothing is relevant."""
    if not counts[0].any():
        return float("nan"), float("nan")
    return float(class_average_precision(counts)[0]), _found(counts, 1)


def precision_at(distance: NDArray[Any], relevant: Relevant, k: int) -> float:
    """Expected share of relevant items among the first k places; places beyond N count as not relevant."""
    return _found(levels(distance, relevant), k) / k


def recall_at(distance: NDArray[Any], relevant: Relevant, k: int) -> float:
    """Expected share of the relevant items that stand in the first k places; NaN when nothing is relevant."""
    counts = levels(distance, relevant)
    total = int(counts[0].sum())
    return _found(counts, k) / total if total else float("nan")


def recall_at_1(distance: NDArray[Any], relevant: Relevant) -> float:
    """Chance that the first answer is relevant (R@1 of the retrieval papers); NaN when nothing is."""
    return precision_at(distance, relevant, 1) if np.any(relevant) else float("nan")


def _found(counts: Levels, k: int) -> float:
    """Expected number of relevant items in the first k places: whole levels, then a share of one."""
    if k < 1:
        raise GalleryError(f"k of at least 1 expected, got {k}: ask for one answer or more")
    t = counts.sum(0)
    taken = np.clip(k - (np.cumsum(t) - t), 0, t)
    return float((counts[0] * taken / np.maximum(t, 1)).sum())
