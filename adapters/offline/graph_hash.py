"""Scalable graph hashing (SGH): bits that keep a similarity of all pairs which is never written down.

    S_ij = 2 exp(-||x_i - x_j||^2 / rho) - 1  ~  P(x_i)' Q(x_j),  linear in the number of samples
    K(x) = exp(-||x - c_m||^2 / (2 delta)) minus its mean, for M bases c_m drawn from the samples

    1  A <- L K' P Q' K,  Z = K' K + gamma I
    2  for every bit:  w <- leading eigenvector of A w = lambda Z w;  u = K' sgn(K w);  A <- A - u u'
    3  hash  y = K(x) W,  a bit is 1 where y >= 0

P and Q differ in the sign of their last entry. They come from exp(z) ~ (e^2 - 1)/(2e) z + (e^2 + 1)/(2e) for
z = 2 x_i' x_j / rho in -1..1, hence rho = 2 max ||x||^2. There may be more bits than features, up to M.

Reference: Jiang and Li, Scalable Graph Hashing with Feature Transformation, IJCAI 2015: feature
transformation, sequential learning. The width of the kernel, gamma and the single pass follow public code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from adapters.offline.spectral import asked_rows, fit_rows
from adapters.semantics import Floats, squared_distances
from core.errors import ConfigError

BASES = 300
"""M, the authors' code."""
GAMMA = 1e-6
"""Keeps Z positive; the authors' code."""


@dataclass(frozen=True, slots=True, eq=False)
class GraphHash:
    """A linear function of kernel values."""

    bases: Floats
    """c [M, D]."""
    spread: float
    """delta, the mean squared distance between samples and bases."""
    offset: Floats
    """[M] mean kernel values of the training rows."""
    weight: Floats
    """W [M, L]."""

    def kernel(self, x: ArrayLike) -> Floats:
        """[B, D] -> [B, M]."""
        rows = asked_rows(x, self.bases.shape[1])
        return np.asarray(np.exp(squared_distances(rows, self.bases) / (-2 * self.spread)) - self.offset)

    def relaxed(self, x: ArrayLike) -> Floats:
        """[B, D] -> [B, L]."""
        return np.asarray(self.kernel(x) @ self.weight)


def fit(features: ArrayLike, bits: int, seed: int) -> GraphHash:
    """Fits to features [n, D], which should be centred; the seed draws the bases, min(300, n) of them.

    Raises:
        ConfigError: features or bits cannot be used.
    """
    rows = fit_rows(features, bits)
    count = min(BASES, len(rows))
    if bits > count:
        raise ConfigError(
            f"SGH: at most {count} bits for {len(rows)} rows expected, got {bits}: LSH gives more"
        )
    bases = rows[np.random.default_rng(seed).choice(len(rows), count, replace=False)]
    distance = squared_distances(rows, bases)
    spread = float(distance.mean())
    values = np.exp(distance / (-2 * spread))
    offset = values.mean(0)
    return GraphHash(bases, spread, offset, sequential(values - offset, *transformed(rows), bits))


def transformed(rows: Floats) -> tuple[Floats, Floats]:
    """P and Q [n, D+2] with P Q' ~ 2 exp(-||x_i - x_j||^2 / rho) - 1."""
    e, squares = np.e, (rows**2).sum(1, keepdims=True)
    rho = 2 * squares.max()
    faded = np.exp(-squares / rho)
    shared = (np.sqrt(2 * (e**2 - 1) / (e * rho)) * faded * rows, np.sqrt((e**2 + 1) / e) * faded)
    one = np.ones_like(faded)
    return np.concatenate((*shared, one), axis=1), np.concatenate((*shared, -one), axis=1)


def sequential(kernel: Floats, p: Floats, q: Floats, bits: int) -> Floats:
    """W [M, L] for kernel values K [n, M], one bit after the other."""
    z = kernel.T @ kernel + GAMMA * np.eye(kernel.shape[1])
    # With Z = C C' the problem is an ordinary one for C' w, and K is kept in these coordinates.
    back = np.linalg.inv(np.linalg.cholesky(z)).T
    white = kernel @ back
    residual = bits * (white.T @ p) @ (q.T @ white)
    residual = (residual + residual.T) / 2  # symmetric but for rounding
    weight = np.empty((kernel.shape[1], bits))
    for bit in range(bits):
        weight[:, bit] = np.linalg.eigh(residual)[1][:, -1]
        told = white.T @ np.where(white @ weight[:, bit] >= 0, 1.0, -1.0)
        residual -= np.outer(told, told)
    return np.asarray(back @ weight)
