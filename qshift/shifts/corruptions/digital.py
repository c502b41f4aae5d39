"""Digital corruptions: brightness, contrast, elastic, pixelate and JPEG."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qshift.shifts.corruptions import filters
from qshift.shifts.images import Draw, Picture, as_bytes, as_picture
from qshift.shifts.images import contrast as towards_mean
from qshift.shifts.images import jpeg as round_trip

ELASTIC_UNIT = 244
"""The published elastic constants are shares of this many pixels (meant was 224)."""
FIXED_SIDE = 224


def brightness(picture: Picture, draw: Draw, amount: float) -> Picture:
    """V of HSV plus `amount`, white at 1.

    Hue and saturation stay, so R, G and B grow by the same factor; black becomes grey.
    """
    x = picture.astype(np.float32)
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + 255.0 * amount, 255.0)
    return as_bytes(np.where(value > 0.0, x * (brighter / np.maximum(value, 1.0)), brighter))


def contrast(picture: Picture, draw: Draw, factor: float) -> Picture:
    """Distance to the mean of each channel times `factor`."""
    return towards_mean(picture, factor, draw)


def elastic(picture: Picture, draw: Draw, alpha: float, deviation: float, affine: float) -> Picture:
    """A random affine map, then a smooth random displacement.

    Three corners move by up to `affine`; the displacement is uniform noise smoothed by `deviation`, times
    `alpha`. Both are made in one resampling, where the published generator resamples twice.
    """
    scale = filters.scale_of(picture)
    unit = ELASTIC_UNIT * scale
    height, width = picture.shape[:2]
    size = np.array([width, height], np.float64)
    third = min(height, width) / 3.0
    corners = (size - 1.0) / 2.0 + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + unit * affine * draw.uniform(-1.0, 1.0, corners.shape)
    inverse = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners).astype(np.float32)
    field = draw.uniform(-1.0, 1.0, (height, width, 2)).astype(np.float32)
    # Smoothing lowers noise by its own length, in pixels: one scale here is for that, one for the length.
    field = filters.smooth(field, unit * deviation, truncate=3.0) * np.float32(unit * scale * alpha)
    field += np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    return _sampled(picture, field @ inverse[:2] + inverse[2])


def pixelate(picture: Picture, draw: Draw, share: float) -> Picture:
    """Averages over blocks: each side shrinks to `share` and grows back."""
    height, width = picture.shape[:2]
    return _through(picture, (int(width * share), int(height * share)), (width, height))


def pixelate_mmr(picture: Picture, draw: Draw, share: float) -> Picture:
    """What the published generator of COCO-C does: always through (224 share)^2 pixels, sides exchanged.

    The result is [W, H, 3], as there.
    """
    side = int(FIXED_SIDE * share)
    height, width = picture.shape[:2]
    return _through(picture, (side, side), (height, width))


def jpeg(picture: Picture, draw: Draw, quality: float) -> Picture:
    """One JPEG round trip."""
    return round_trip(picture, quality, draw)


def _through(picture: Picture, small: tuple[int, int], final: tuple[int, int]) -> Picture:
    cells = (max(1, small[0]), max(1, small[1]))
    shrunk = Image.fromarray(picture).resize(cells, Image.Resampling.BOX)
    return as_picture(shrunk.resize(final, Image.Resampling.BOX))


def _sampled(picture: Picture, places: NDArray[np.float32]) -> Picture:
    """Bilinear samples of a mirrored picture at places [H, W, 2] (x, y)."""
    height, width = picture.shape[:2]
    first = np.floor(places)
    x, y = np.moveaxis(first.astype(np.intp), -1, 0)
    right, down = np.moveaxis((places - first)[..., None], 2, 0)
    x0, x1 = filters.mirrored(x, width), filters.mirrored(x + 1, width)
    y0, y1 = filters.mirrored(y, height) * width, filters.mirrored(y + 1, height) * width
    values = picture.reshape(-1, 3).astype(np.float32)
    upper = values[y0 + x0] * (1.0 - right) + values[y0 + x1] * right
    lower = values[y1 + x0] * (1.0 - right) + values[y1 + x1] * right
    return as_bytes(upper * (1.0 - down) + lower * down)
