"""Linear filters of pictures: Gaussians, disks and lines, at the scale of the picture.

The published lengths are pixels of pictures of about 224. `scale` is min(H, W) / 224, and a kernel is built
with the published lengths first and then brought to the picture's scale, so that at 224 it is the published
one. Borders are mirrored, edge value included, however much longer than the picture a kernel is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qshift.shifts.images import Picture

Values = NDArray[np.float32]
REFERENCE_SIDE = 224
"""Shorter side of the pictures that the published lengths are meant for."""


def scale_of(picture: Picture) -> float:
    """What published lengths are multiplied by."""
    return float(min(picture.shape[:2])) / REFERENCE_SIDE


def mirrored(index: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Index of what a mirrored axis of `size` values shows at any index."""
    around = index % (2 * size)
    return np.minimum(around, 2 * size - 1 - around)


def gaussian_matrix(size: int, deviation: float, truncate: float) -> Values:
    """[size, size] matrix of the truncated Gaussian filter on a mirrored axis; each row sums to 1.

    The taps are wound onto the ring of 2 size places on which a mirrored axis is periodic.
    """
    reach = int(truncate * deviation + 0.5)
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (taps / max(deviation, 1e-6)) ** 2)
    ring = np.bincount(taps % (2 * size), weights / weights.sum(), 2 * size)
    rows, columns = np.arange(size)[:, None], np.arange(size)
    matrix: Values = (ring[(rows - columns) % (2 * size)] + ring[rows + columns + 1]).astype(np.float32)
    return matrix


def smooth(values: Values, deviation: float, truncate: float = 4.0) -> Values:
    """Gaussian filter of the first two axes of [H, W] or [H, W, C]; `deviation` in pixels."""
    height, width = values.shape[:2]
    planes = np.moveaxis(values.reshape(height, width, -1), -1, 0)
    across = planes @ gaussian_matrix(width, deviation, truncate).T
    both = gaussian_matrix(height, deviation, truncate) @ across
    return np.ascontiguousarray(np.moveaxis(both, 0, -1)).reshape(values.shape)


def convolve(values: Values, kernel: Values) -> Values:
    """Convolution of [H, W] or [H, W, C] with an odd kernel [k, k], by FFT; same shape."""
    reach = kernel.shape[0] // 2
    height, width = values.shape[:2]
    rows, columns = _fast(height + 2 * reach), _fast(width + 2 * reach)
    # Past the lower right border only the part within reach counts, the rest is filling.
    framed = values[
        mirrored(np.arange(-reach, rows - reach), height)[:, None],
        mirrored(np.arange(-reach, columns - reach), width),
    ]
    planes = np.moveaxis(framed.reshape(rows, columns, -1), -1, 0)
    spectrum = np.fft.rfft2(planes) * np.fft.rfft2(kernel, (rows, columns))
    both = np.fft.irfft2(spectrum, (rows, columns))[:, 2 * reach :, 2 * reach :][:, :height, :width]
    return np.asarray(np.moveaxis(both, 0, -1).reshape(values.shape), dtype=np.float32)


def disk(radius: float, alias: float) -> Values:
    """The published defocus kernel: a disk on whole pixels, its rim softened by a small Gaussian."""
    reach, soft = (8, 1) if radius <= 8 else (int(radius), 2)
    places = np.arange(-reach - soft, reach + soft + 1)
    inside = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    taps = np.arange(-soft, soft + 1)
    weights = np.exp(-0.5 * (taps / alias) ** 2)
    rim = sum(np.roll(inside, tap, 0) * weight for tap, weight in zip(taps, weights))
    rim = sum(np.roll(rim, tap, 1) * weight for tap, weight in zip(taps, weights))
    return np.asarray(rim / np.sum(rim), dtype=np.float32)


def line(radius: float, deviation: float, degrees: float) -> Values:
    """Half a Gaussian along a line that starts in the middle: 2 radius + 1 taps, one pixel apart.

    A substitute for ImageMagick's motion blur: its weights and length, but taps between pixels are shared
    by their four neighbours where it rounds them to one.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    angle = math.radians(degrees)
    return splat(np.cos(angle) * steps, np.sin(angle) * steps, weights)


def splat(right: NDArray[np.float64], down: NDArray[np.float64], weights: NDArray[np.float64]) -> Values:
    """Odd kernel with sum 1 of points at any place, each shared by its four neighbours."""
    reach = math.ceil(max(np.abs(right).max(), np.abs(down).max())) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    x, y = np.floor(right).astype(np.intp), np.floor(down).astype(np.intp)
    for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1.0 - np.abs(right - x - dx)) * (1.0 - np.abs(down - y - dy))
        np.add.at(kernel, (y + dy + reach, x + dx + reach), weights * share)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def rescaled(kernel: Values, scale: float) -> Values:
    """The kernel with every length times `scale`; the same kernel at scale 1.

    Each place becomes a tent around its new place, as wide as the new distance of two places and at least
    a pixel.
    """
    reach = kernel.shape[0] // 2
    wide = max(1.0, scale)
    new = math.ceil(scale * reach + wide) - 1
    old_places, new_places = np.arange(-reach, reach + 1), np.arange(-new, new + 1)
    tents = np.maximum(0.0, 1.0 - np.abs(new_places[:, None] - scale * old_places) / wide)
    moved = tents @ kernel @ tents.T
    return np.asarray(moved / moved.sum(), dtype=np.float32)


def _fast(length: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
