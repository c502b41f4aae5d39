"""Density sensitive hashing (DSH): planes between neighbouring groups of samples, the most even ones first.

    1  groups     k-means with alpha L groups and p rounds
    2  planes     for every two groups that are r-adjacent (one among the r nearest of the other):
                  w = mu_i - mu_j,  t = w' (mu_i + mu_j) / 2
    3  choice     the L planes of the largest entropy of how they split the samples, counted by whole groups
    4  hash       y = x W - t,  a bit is 1 where y >= 0

Not Deep Supervised Hashing, which has the same short name. There may be more bits than features.

Reference: Jin, Li, Lin, Cai, Density Sensitive Hashing, IEEE Transactions on Cybernetics 44(8), 2014
(arXiv 1205.2930): quantisation, r-adjacent groups, choice by entropy. Counting whole groups, the three
constants and the order of equal entropies follow public code or are ours (docs/methods/hashing-baselines.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from adapters.lloyd import lloyd
from adapters.offline.spectral import asked_rows, fit_rows
from adapters.semantics import Floats, Labels, squared_distances
from core.errors import ConfigError

GROUPS_PER_BIT = 1.5
"""alpha, the authors' code."""
ROUNDS = 3
"""p, rounds of k-means, the authors' code: planes need no exact groups."""
ADJACENT = 3
"""r, the authors' code."""


@dataclass(frozen=True, slots=True, eq=False)
class DensityHash:
    """x W - t."""

    weight: Floats
    """W [D, L]."""
    threshold: Floats
    """t [L]."""

    def relaxed(self, x: ArrayLike) -> Floats:
        """[B, D] -> [B, L]."""
        return np.asarray(asked_rows(x, len(self.weight)) @ self.weight - self.threshold)


def fit(features: ArrayLike, bits: int, seed: int) -> DensityHash:
    """Fits to features [n, D], n of at least 1.5 L; the seed draws the rows that groups start from.

    Raises:
        ConfigError: features or bits cannot be used, or the rows have too few groups for so many bits.
    """
    rows = fit_rows(features, bits)
    count = math.ceil(GROUPS_PER_BIT * bits)
    if len(rows) < count:
        raise ConfigError(
            f"DSH: at least {count} rows for {bits} bits expected, got {len(rows)}: "
            "add rows or take fewer bits"
        )
    centres, share = groups(rows, count, np.random.default_rng(seed))
    one, other = adjacent(centres, ADJACENT)
    if len(one) < bits:
        raise ConfigError(
            f"DSH: {bits} planes between groups expected, got {len(one)}: many rows are equal, "
            "take fewer bits"
        )
    weight = centres[one] - centres[other]
    threshold = (weight * (centres[one] + centres[other])).sum(1) / 2
    above = share @ (centres @ weight.T >= threshold)
    best = np.argsort(-entropy(above), kind="stable")[:bits]
    return DensityHash(weight[best].T, threshold[best])


def groups(rows: Floats, count: int, draw: np.random.Generator) -> tuple[Floats, Floats]:
    """Means [k, D] of the groups of k-means, and their shares [k] of the samples; empty ones are dropped."""

    def means(labels: Labels, _: Floats) -> Floats:
        order = np.argsort(labels, kind="stable")
        _, start, sizes = np.unique(labels[order], return_index=True, return_counts=True)
        return np.asarray(np.add.reduceat(rows[order], start) / sizes[:, None])

    start = rows[draw.choice(len(rows), count, replace=False)]
    labels, last = lloyd(start, lambda centres: squared_distances(rows, centres).argmin(1), means, ROUNDS - 1)
    sizes = np.unique(labels, return_counts=True)[1]
    return means(labels, last), sizes / len(rows)


def adjacent(centres: Floats, nearest: int) -> tuple[Labels, Labels]:
    """Pairs of groups, the lower number first, one of which is among the `nearest` of the other."""
    distance = squared_distances(centres, centres)
    np.fill_diagonal(distance, np.inf)
    others = np.argsort(distance, axis=1, kind="stable")[:, : min(nearest, len(centres) - 1)]
    own = np.repeat(np.arange(len(centres)), others.shape[1])
    pairs = np.unique(np.sort(np.stack((own, others.ravel()), axis=1), axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def entropy(share: Floats) -> Floats:
    """-p log p - (1-p) log (1-p), 0 log 0 = 0."""
    p = np.clip(np.stack((share, 1 - share)), np.finfo(float).tiny, 1)
    return np.asarray(-(p * np.log(p)).sum(0))
