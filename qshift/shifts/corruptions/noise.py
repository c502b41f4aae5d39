"""Noise: Gaussian, shot, impulse and speckle. Values are shares of white; every draw is per value."""

from __future__ import annotations

import numpy as np

from qshift.shifts.images import Draw, Picture, as_bytes, impulse, noise, shot


def gaussian_noise(picture: Picture, draw: Draw, deviation: float) -> Picture:
    """x + n, n ~ N(0, deviation)."""
    return noise(picture, deviation, draw)


def shot_noise(picture: Picture, draw: Draw, count: float) -> Picture:
    """Poisson(count * x) / count."""
    return shot(picture, count, draw)


def impulse_noise(picture: Picture, draw: Draw, share: float) -> Picture:
    """Salt and pepper, half each, on a share of the values."""
    return impulse(picture, share, draw)


def speckle_noise(picture: Picture, draw: Draw, deviation: float) -> Picture:
    """x + x n, n ~ N(0, deviation): black stays black."""
    return as_bytes(picture * (1.0 + deviation * draw.standard_normal(picture.shape, dtype=np.float32)))
