"""Spectral hashing (SH): bits are the smoothest eigenfunctions of a box around the principal components.

    1  axes       principal components of the rows; component i fills [a_i, b_i]
    2  modes      frequencies k / (b_i - a_i), k = 1, 2, ...; the L lowest are taken, over all components
    3  hash       y = cos(k pi (x_i - a_i) / (b_i - a_i)),  a bit is 1 where y >= 0

The cosine is the paper's sin(pi/2 + k pi x / (b - a)). Its eigenvalue 1 - exp(-eps^2/2 (k pi / (b - a))^2)
rises with the frequency whatever eps is, so that the order needs no eps. A long component gets several bits,
and there may be more bits than features.

Reference: Weiss, Torralba, Fergus, Spectral Hashing, NIPS 2008: eigenfunctions of a uniform rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapters.offline.psca_config import matrix
from adapters.semantics import Floats
from core.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class SpectralHash:
    """One cosine along one direction per bit."""

    mean: Floats
    """[D]."""
    directions: Floats
    """[D, L] principal axes, the same one for every mode of a component."""
    start: Floats
    """a [L]."""
    frequency: Floats
    """k pi / (b - a) [L]."""

    def relaxed(self, x: ArrayLike) -> Floats:
        """[B, D] -> [B, L]."""
        rows = asked_rows(x, len(self.mean))
        return np.asarray(np.cos(((rows - self.mean) @ self.directions - self.start) * self.frequency))


def fit(features: ArrayLike, bits: int, seed: int) -> SpectralHash:
    """Fits to features [n, D]; nothing is drawn, the seed has no effect.

    Raises:
        ConfigError: features or bits cannot be used.
    """
    rows = fit_rows(features, bits)
    mean = rows.mean(0)
    centred = rows - mean
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :bits]
    components = centred @ axes
    start = components.min(0)
    component, mode = modes(components.max(0) - start, bits)
    length = (components.max(0) - start)[component]
    return SpectralHash(mean, axes[:, component], start[component], np.pi * mode / length)


def modes(lengths: Floats, bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Components [L] and their k [L] of the lowest frequencies k / length, equal ones in order."""
    real = lengths > lengths.max() * 1e-6  # the others are rounding
    frequency = np.arange(1, bits + 1) / lengths[real][:, None]
    lowest = np.argsort(frequency, axis=None, kind="stable")[:bits]
    return np.flatnonzero(real)[lowest // bits], lowest % bits + 1


def fit_rows(features: ArrayLike, bits: int) -> NDArray[Any]:
    """Features as float64 [n, D], not all equal, for at least one bit."""
    rows = matrix(features, "features", "float64")
    if bits < 1:
        raise ConfigError(f"at least one bit expected, got {bits}")
    if not len(rows) or (rows == rows[0]).all():
        raise ConfigError(f"rows that differ expected, got {len(rows)} equal ones: nothing to tell apart")
    return rows


def asked_rows(x: ArrayLike, width: int) -> NDArray[Any]:
    """Features as float64 [B, D] of the width that was fitted to."""
    rows = matrix(x, "features", "float64")
    if rows.shape[1] != width:
        raise ConfigError(
            f"features of width {width} expected, got {rows.shape[1]}: take those it was fitted to"
        )
    return rows
