"""Blur: defocus, glass, motion and zoom."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qshift.shifts.corruptions.filters import convolve, disk, line, rescaled, scale_of, smooth
from qshift.shifts.images import Draw, Picture, as_bytes

TOP_LEFT = 224
"""The published glass generator works on the top left square of this side."""


def defocus_blur(picture: Picture, draw: Draw, radius: float, alias: float) -> Picture:
    """Convolution with a disk."""
    return as_bytes(convolve(picture.astype(np.float32), rescaled(disk(radius, alias), scale_of(picture))))


def motion_blur(picture: Picture, draw: Draw, radius: float, deviation: float) -> Picture:
    """Convolution with half a Gaussian along a line, -45 to 45 degrees to the horizontal (substitute)."""
    kernel = line(radius, deviation, draw.uniform(-45.0, 45.0))
    return as_bytes(convolve(picture.astype(np.float32), rescaled(kernel, scale_of(picture))))


def zoom_blur(picture: Picture, draw: Draw, last: float, step: float) -> Picture:
    """Mean of the picture and of its centre at zooms 1, 1 + step, ... up to `last`."""
    image, (height, width) = Image.fromarray(picture), picture.shape[:2]
    zooms = np.arange(1.0, last, step)
    total = picture.astype(np.float32)
    for zoom in zooms:
        across, along = width / zoom, height / zoom
        left, top = (width - across) / 2.0, (height - along) / 2.0
        box = (left, top, left + across, top + along)
        total += np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box))
    return as_bytes(total / (len(zooms) + 1))


def glass_blur(picture: Picture, draw: Draw, deviation: float, delta: float, iterations: float) -> Picture:
    """Gaussian blur, then every pixel changes places with a near one, then Gaussian blur again.

    The pixels are visited from the lower right to the upper left. Offsets are whole pixels from -delta to
    delta - 1; at another scale they are rounded at random so that their mean square scales too.
    """
    scale = scale_of(picture)
    height, width = picture.shape[:2]
    before, after = math.ceil(scale * delta), math.ceil(scale * (delta - 1))
    places = np.arange(height * width).reshape(height, width)
    visited = places[before + 1 : height - after, before + 1 : width - after][::-1, ::-1].ravel()
    walk, order = visited.tolist(), places.ravel().tolist()
    for _ in range(int(iterations)):
        published = draw.integers(-int(delta), int(delta), (2, visited.size))
        down, right = _rounded(scale * published, draw.random(published.shape))
        # One after the other: a pixel that was moved ahead is moved again. No array form is the same.
        for here, there in zip(walk, (visited + down * width + right).tolist()):
            order[here], order[there] = order[there], order[here]
    soft = _soft(picture, deviation * scale).reshape(-1, 3)[order].reshape(picture.shape)
    return _soft(soft, deviation * scale)


def glass_blur_mmr(
    picture: Picture, draw: Draw, deviation: float, delta: float, iterations: float
) -> Picture:
    """What the published generator of COCO-C does: two blurs, and one row of pixels copied about.

    Its loops overwrite their own bounds, which leaves one row of the top left square and the first
    iteration; its swap is a copy. Lengths are not scaled, as there.
    """
    soft = _soft(picture, deviation)
    bound = int(delta)
    row = min(picture.shape[0], TOP_LEFT) - bound
    columns = range(min(picture.shape[1], TOP_LEFT) - bound, bound, -1)
    if row > bound:
        for column, (right, down) in zip(columns, draw.integers(-bound, bound, (len(columns), 2))):
            soft[row, column] = soft[row + down, column + right]
    return _soft(soft, deviation)


def _rounded(lengths: NDArray[np.floating[Any]], chance: NDArray[np.float64]) -> NDArray[np.intp]:
    """Whole numbers next to the lengths, towards or away from 0, with the same mean square."""
    shorter = np.floor(np.abs(lengths))
    longer = chance < (lengths**2 - shorter**2) / (2.0 * shorter + 1.0)
    whole: NDArray[np.intp] = (np.sign(lengths) * (shorter + longer)).astype(np.intp)
    return whole


def _soft(picture: Picture, deviation: float) -> Picture:
    return as_bytes(smooth(picture.astype(np.float32), deviation))
