"""Measures of hashing evaluations, from packed codes and class labels.

Nearly all come from two integer histograms: how many gallery items, and how many relevant ones, stand at each
Hamming radius of each query. They are means over all orders inside ties, so that the order of the gallery
does not matter. Relevant: of the query's class. Every value lies in 0..1.

`pooled_pr_area` is what a part of the literature prints as mAP. It is none: never compare the two.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.types import Codes

Labels = NDArray[np.integer[Any]]
_PIECE = 1 << 20
"""Distances held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class RadiusCounts:
    """Histograms of Q queries over the radii 0..L."""

    items: NDArray[np.int64]
    """[Q, L+1] gallery items at exactly this distance."""
    relevant: NDArray[np.int64]
    """[Q, L+1] the relevant ones among them."""


def radius_counts(
    query_codes: Codes, gallery_codes: Codes, query_labels: Labels, gallery_labels: Labels, bits: int
) -> RadiusCounts:
    """Counts by Hamming distance, in blocks of queries.

    Args:
        query_codes: [Q, ceil(L/8)] uint8, first bit lowest; bits beyond L are zero.
        gallery_codes: [N, ceil(L/8)] uint8, the same.
        query_labels: [Q] integers.
        gallery_labels: [N] integers.
        bits: L.

    Raises:
        ConfigError: codes, labels and bits do not fit together.
    """
    _check(query_codes, gallery_codes, query_labels, gallery_labels)
    _check_bits(query_codes, gallery_codes, bits)
    levels, parts = bits + 1, []
    for rows, distance in _distances(query_codes, gallery_codes):
        relevant = query_labels[rows, None] == gallery_labels
        # One pass counts both kinds: relevant items of a query take a second row of levels.
        place = distance + levels * (2 * np.arange(len(distance))[:, None] + relevant)
        counted = np.bincount(place.ravel(), minlength=2 * levels * len(distance))
        parts.append(counted.reshape(-1, 2, levels))
    counts = np.concatenate(parts) if parts else np.zeros((0, 2, levels), np.int64)
    return RadiusCounts(counts.sum(1), counts[:, 1])


def map_all(counts: RadiusCounts) -> tuple[float, int]:
    """Mean over queries of the expected AP over the whole ranking, and how many queries were left out.

    Left out are those without a relevant item; NaN when no other is there. A radius with n items, g of them
    relevant, behind N0 items with G0 relevant, and h = H(N0+n) - H(N0), adds
    g/n [n b + (G0 + 1 - b (1 + N0)) h], b = (g-1)/(n-1); the sum is divided by the relevant items.
    `ranking.average_precision` is the same for one query.
    """
    n, g = counts.items, counts.relevant
    behind, found = _nearer(n), _nearer(g)
    largest = int(n.sum(1).max(initial=0))
    harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, largest + 1))))
    h = harmonic[behind + n] - harmonic[behind]
    b = (g - 1) / np.maximum(n - 1, 1)
    summed = (g / np.maximum(n, 1) * (n * b + (found + 1 - b * (1 + behind)) * h)).sum(1)
    total = g.sum(1)
    asked = total > 0
    excluded = int((~asked).sum())
    return (float((summed[asked] / total[asked]).mean()) if asked.any() else float("nan")), excluded


def map_at_k(
    query_codes: Codes,
    gallery_codes: Codes,
    query_labels: Labels,
    gallery_labels: Labels,
    k: int,
    seed: int = 0,
) -> float:
    """Mean over queries of the AP of the first k places, divided by the relevant items *among these*.

    A query without a relevant item there counts as 0. Expected values over ties are not simple here: the
    gallery is shuffled once by `seed`, then sorted stably. For k >= N and no ties it equals `map_all`, if
    every query has a relevant item.

    Args: as for `radius_counts`; bits beyond L must agree.

    Raises:
        ConfigError: k below 1, no query, or codes and labels that do not fit together.

    Reference: the evaluation of PEACE (TIP 2023).
    """
    _check(query_codes, gallery_codes, query_labels, gallery_labels)
    if k < 1 or not len(query_codes):
        raise ConfigError(f"k of at least 1 and a query expected, got k {k}, {len(query_codes)} queries")
    order = np.random.default_rng(seed).permutation(len(gallery_codes))
    codes, labels = gallery_codes[order], gallery_labels[order]
    total = 0.0
    for rows, distance in _distances(query_codes, codes):
        first = np.argsort(distance, axis=1, kind="stable")[:, :k]
        hit = query_labels[rows, None] == labels[first]
        precision = np.cumsum(hit, axis=1) / np.arange(1, first.shape[1] + 1)
        total += float(((hit * precision).sum(1) / np.maximum(hit.sum(1), 1)).sum())
    return total / len(query_codes)


def pooled_pr_area(counts: RadiusCounts) -> float:
    """Area under the precision-recall curve of all pairs at once, without the largest observed radius.

    The curve starts at recall 0 if radius 0 finds something relevant; it never reaches recall 1. Of points of
    equal recall the nearest counts. NaN, with a warning, where no point is left or nothing is relevant.

    Reference: evaluation code of PWCF (CVPR 2020) and its successors, which call it mAP.
    """
    points = _pooled(counts)[:-1]  # the last one is the largest observed radius
    if not points or not counts.relevant.any():
        warnings.warn("no precision-recall curve: its area is NaN", RuntimeWarning, stacklevel=2)
        return float("nan")
    recall, precision = np.array(points).T
    if counts.relevant[:, 0].any():
        recall, precision = np.insert(recall, 0, 0), np.insert(precision, 0, precision[0])
    recall, first = np.unique(recall, return_index=True)
    precision = precision[first]
    return float((np.diff(recall) * (precision[1:] + precision[:-1])).sum() / 2)


def pr_by_radius(counts: RadiusCounts) -> tuple[tuple[float, float], ...]:
    """(recall, precision) of all pairs within each radius, from the smallest observed radius to the largest.

    Empty when nothing is relevant.
    """
    return tuple(_pooled(counts)) if counts.relevant.any() else ()


def precision_at(counts: RadiusCounts, ns: Sequence[int]) -> tuple[float, ...]:
    """Per N, the mean share of relevant items in the first N places; places beyond the gallery hold none."""
    return tuple(_mean(_hits(counts, n) / n) for n in ns)


def recall_at(counts: RadiusCounts, ns: Sequence[int]) -> tuple[float, ...]:
    """Per N, the mean share of relevant items found in the first N places; queries without one left out."""
    total = counts.relevant.sum(1)
    asked = total > 0
    return tuple(_mean(_hits(counts, n)[asked] / total[asked]) for n in ns)


def _hits(counts: RadiusCounts, n: int) -> NDArray[np.float64]:
    """[Q] expected relevant items in the first n places: whole radii, then a share of one."""
    if n < 1:
        raise ConfigError(f"N of at least 1 expected, got {n}: ask for one place or more")
    taken = np.clip(n - _nearer(counts.items), 0, counts.items)
    return np.asarray((counts.relevant * taken / np.maximum(counts.items, 1)).sum(1))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _nearer(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """[Q, L+1] how many stand nearer than each radius."""
    return np.asarray(np.cumsum(histogram, axis=1) - histogram)


def _pooled(counts: RadiusCounts) -> list[tuple[float, float]]:
    """(recall, precision) over all pairs by radius; a radius without a pair within it has no precision."""
    items, relevant = counts.items.sum(0), counts.relevant.sum(0)
    observed = np.flatnonzero(items)
    if not len(observed):
        return []
    radii = slice(int(observed[0]), int(observed[-1]) + 1)
    within, found = np.cumsum(items)[radii], np.cumsum(relevant)[radii]
    return list(zip((found / max(found[-1], 1)).tolist(), (found / within).tolist()))


def _distances(queries: Codes, gallery: Codes) -> Iterator[tuple[slice, NDArray[np.uint16]]]:
    """Blocks of queries with their distances [b, N]."""
    left, right = _words(queries), _words(gallery)
    rows = max(1, _PIECE // max(len(gallery), 1))
    for top in range(0, len(left), rows):
        block = left[top : top + rows]
        distance = np.zeros((len(block), len(right)), np.uint16)
        for word in range(left.shape[1]):
            distance += np.bitwise_count(block[:, None, word] ^ right[:, word])
        yield slice(top, top + len(block)), distance


def _words(codes: Codes) -> NDArray[np.uint64]:
    """The same bits in words of 64, filled up with zeros."""
    filled = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    filled[:, : codes.shape[1]] = codes
    return filled.view(np.uint64)


def _check(query_codes: Codes, gallery_codes: Codes, query_labels: Labels, gallery_labels: Labels) -> None:
    for name, codes, labels in (
        ("query", query_codes, query_labels),
        ("gallery", gallery_codes, gallery_labels),
    ):
        if codes.dtype != np.uint8 or codes.ndim != 2:
            raise ConfigError(
                f"{name} codes: packed uint8 [n, bytes] expected, got {codes.dtype} {codes.shape}: pack them"
            )
        if labels.shape != (len(codes),):
            raise ConfigError(
                f"one {name} label for each of {len(codes)} codes expected, got shape {labels.shape}"
            )
    if query_codes.shape[1] != gallery_codes.shape[1]:
        raise ConfigError(
            f"codes of one width expected, got {query_codes.shape[1]} and {gallery_codes.shape[1]} bytes: "
            "take both from one fit"
        )


def _check_bits(query_codes: Codes, gallery_codes: Codes, bits: int) -> None:
    width = -(-bits // 8)
    if bits < 1 or query_codes.shape[1] != width:
        raise ConfigError(f"{bits} bits need codes of {width} bytes, got {query_codes.shape[1]}")
    if bits % 8 and ((query_codes[:, -1] >> bits % 8).any() or (gallery_codes[:, -1] >> bits % 8).any()):
        raise ConfigError(f"zeros beyond {bits} bits expected, got ones: they would count as distance")
