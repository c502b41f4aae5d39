"""Linear hashes fitted without labels: LSH and PCAH. A bit is 1 where the relaxed value is >= 0.

    pcah   y = A (x - m)          A: the L leading principal axes, m: the mean of the training rows
    lsh    y = G (x - m)          G: L random directions, orthonormal for L <= D, a random frame for L > D

Axes and random directions are faiss's. ITQ is not here but in `encoders.head`: the loss of `ITQMatrix` of
faiss 1.15.1 does not fall with its rounds, and its codes retrieve 2 to 7 points worse
(docs/methods/hashing-baselines.md).

Reference: PCAH is the start of ITQ (Gong and Lazebnik, CVPR 2011). LSH: Charikar, Similarity Estimation
Techniques from Rounding Algorithms, STOC 2002; orthonormal directions are those of faiss's `IndexLSH` with
`rotate_data`, m is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import ConfigError
from core.types import Floats


@dataclass(frozen=True, slots=True, eq=False)
class LinearHash:
    """x W - t."""

    weight: Floats
    """W [D, L]."""
    threshold: Floats
    """t [L]."""

    def relaxed(self, x: ArrayLike) -> Floats:
        """[B, D] -> [B, L]."""
        rows = _rows(x)
        if rows.shape[1] != len(self.weight):
            raise ConfigError(
                f"features of width {len(self.weight)} expected, got {rows.shape[1]}: "
                "take those it was fitted to"
            )
        return rows @ self.weight - self.threshold


def pcah(features: ArrayLike, bits: int, seed: int) -> LinearHash:
    """Signs of principal components.

    Args:
        features: [n, D], finite.
        bits: L, at most D and at most n.
        seed: has no effect.

    Raises:
        ConfigError: features or bits cannot be used.
    """
    axes, mean = _axes(_rows(features), bits)
    return _through(mean, axes)


def lsh(features: ArrayLike, bits: int, seed: int) -> LinearHash:
    """Random directions through the mean; arguments as for `pcah`, but any number of bits."""
    rows = _rows(features)
    _check(rows, bits)
    turn = faiss.RandomRotationMatrix(rows.shape[1], bits)
    turn.init(seed)
    return _through(rows.mean(0), _matrix(turn))


def _axes(rows: Floats, bits: int) -> tuple[Floats, Floats]:
    """Leading principal axes [L, D] and the mean [D]."""
    _check(rows, bits)
    if bits > rows.shape[1]:
        raise ConfigError(
            f"PCAH: at most {rows.shape[1]} bits for features of this width expected, got {bits}: "
            "LSH, SH, DSH and SGH give more bits than features"
        )
    if len(rows) < bits:
        raise ConfigError(
            f"PCAH: at least {bits} rows expected, got {len(rows)}: add rows or take fewer bits"
        )
    axes = faiss.PCAMatrix(rows.shape[1], bits)
    axes.train(rows)
    return _matrix(axes), rows.mean(0)


def _through(mean: Floats, directions: Floats) -> LinearHash:
    """Directions [L, D] as a hash whose planes go through the mean."""
    weight = np.ascontiguousarray(directions.T)
    return LinearHash(weight, mean @ weight)


def _matrix(transform: Any) -> Floats:
    """A [d_out, d_in] of a linear transform; PCA keeps more rows than it uses."""
    every: NDArray[np.float32] = faiss.vector_to_array(transform.A)
    return every.reshape(-1, transform.d_in)[: transform.d_out]


def _rows(x: ArrayLike) -> Floats:
    rows = np.ascontiguousarray(x, np.float32)
    if rows.ndim != 2 or not rows.shape[1]:
        raise ConfigError(f"features: a matrix [n, D] expected, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ConfigError("features: finite values expected, got NaN or infinity: encode them again")
    return rows


def _check(rows: Floats, bits: int) -> None:
    if bits < 1 or not len(rows):
        raise ConfigError(f"at least one bit and one row expected, got {bits} bits and {len(rows)} rows")
