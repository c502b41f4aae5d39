"""Intervals and tests of paired gains. Pure arithmetic on arrays; every draw comes from a given seed.

A gain is the difference of a method and of frozen on one query. Queries of one seed are resampled together
for all methods (paired); seeds are resampled above them (hierarchical), because the queries of one stream
share what a method learned there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
FLIPS = 10_000
BLOCK = 1000  # resamples at a time: bounded memory


def resampled(gains: Sequence[Array], draw: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Hierarchical bootstrap of the mean over seeds of the mean over queries.

    Seeds are drawn with replacement; within each one drawn, its queries are. With one seed it is the paired
    bootstrap over queries.

    Args:
        gains: per seed [n, M], the gains of M methods on the n queries of that seed; M is the same in all.
        draw: the generator.
        resamples: R.

    Returns:
        [R, M] means.
    """
    seeds = len(gains)
    chosen = draw.integers(seeds, size=(resamples, seeds))
    total = np.zeros((resamples, gains[0].shape[1]))
    for place in range(seeds):
        for seed, values in enumerate(gains):
            rows = np.flatnonzero(chosen[:, place] == seed)
            for start in range(0, len(rows), BLOCK):
                part = rows[start : start + BLOCK]
                total[part] += _weights(len(values), len(part), draw) @ values
    return total / seeds


def _weights(n: int, rows: int, draw: np.random.Generator) -> Array:
    """[rows, n]: how often each of n values is drawn, divided by n."""
    picks = draw.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    counts = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n)
    return counts / n


def interval(means: Array) -> tuple[Array, Array]:
    """95 % percentile interval of resampled means [R, ...]."""
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return low, high


def flipped(gains: Array, draw: np.random.Generator, flips: int = FLIPS) -> Array:
    """Two-sided p values of a paired permutation test: under no effect every gain has either sign.

    p = (1 + flips with a sum at least as far from 0) / (1 + flips), so it is never 0.

    Args:
        gains: [n, M], queries of all seeds.
        draw: the generator.
        flips: number of random sign patterns; all methods share them.
    """
    observed = np.abs(gains.sum(0))
    far = np.zeros(gains.shape[1])
    for start in range(0, flips, BLOCK):
        rows = min(BLOCK, flips - start)
        signs = draw.integers(0, 2, (rows, len(gains))) * 2.0 - 1.0
        # A hair of slack: sums of the same numbers in another order differ in their last bits.
        far += (np.abs(signs @ gains) >= observed - 1e-9 * np.maximum(observed, 1.0)).sum(0)
    return (1.0 + far) / (1.0 + flips)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of tests, in the order given.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
