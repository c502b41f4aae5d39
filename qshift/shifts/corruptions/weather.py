"""Weather: snow, frost and fog. Layers are drawn at the scale of the published lengths, then resized."""

from __future__ import annotations

import numpy as np
from PIL import Image

from qshift.shifts.corruptions.filters import REFERENCE_SIDE, Values, convolve, line
from qshift.shifts.corruptions.textures import ICE_SIDE, frost_texture, plasma
from qshift.shifts.images import Draw, Picture, as_bytes

LONGEST_SHAPE = 4
"""Layers of pictures that are more than this times as long as wide are stretched."""
PLASMA_SIDE, PLASMA_PICTURE = 1024, 640
"""The published fog cuts the picture's size, 640 for COCO, out of the top left of a map of 1024."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)


def snow(
    picture: Picture,
    draw: Draw,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    blur: float,
    mix: float,
) -> Picture:
    """Whitens the picture and adds flakes and the same flakes turned by half a turn.

    Flakes are Gaussian noise, enlarged `zoom` times, cut at `threshold`, blurred along a line 45 to 135
    degrees to the horizontal (substitute for ImageMagick's motion blur).
    """
    height, width = _layer_size(picture)
    # The generator enlarges the middle of a whole layer of noise; only that middle is drawn here.
    cells = draw.normal(mean, deviation, (int(np.ceil(height / zoom)), int(np.ceil(width / zoom))))
    flakes = _resized(cells.astype(np.float32), height, width)
    flakes = np.where(flakes < threshold, np.float32(0), np.clip(flakes, 0.0, 1.0))
    flakes = convolve(flakes, line(radius, blur, draw.uniform(-135.0, -45.0)))
    flakes = _resized(flakes, *picture.shape[:2])[..., None]
    x = picture.astype(np.float32) / 255.0
    whitened = np.maximum(x, (x @ GREY)[..., None] * 1.5 + 0.5)
    return as_bytes(255.0 * (mix * x + (1.0 - mix) * whitened + flakes + flakes[::-1, ::-1]))


def frost(picture: Picture, draw: Draw, picture_weight: float, frost_weight: float) -> Picture:
    """Weighted sum of the picture and a frost texture (substitute: procedural, no photograph)."""
    texture = frost_texture(*_layer_size(picture, ICE_SIDE), draw)
    layers = [_resized(texture[..., channel], *picture.shape[:2]) for channel in range(3)]
    return as_bytes(picture_weight * picture + 255.0 * frost_weight * np.stack(layers, axis=-1))


def fog(picture: Picture, draw: Draw, strength: float, decay: float) -> Picture:
    """(x + strength p) max(x) / (max(x) + strength), p a plasma fractal from 0 to 1."""
    height, width = picture.shape[:2]
    shrink = min(1.0, PLASMA_PICTURE / max(height, width))
    rows, columns = max(1, round(height * shrink)), max(1, round(width * shrink))
    side = 1 << int(np.ceil(np.log2(max(2.0, max(rows, columns) * PLASMA_SIDE / PLASMA_PICTURE))))
    layer = _resized(plasma(side, decay, draw)[:rows, :columns], height, width)
    x = picture.astype(np.float32) / 255.0
    white = float(x.max())
    return as_bytes(255.0 * (x + strength * layer[..., None]) * (white / (white + strength)))


def _layer_size(picture: Picture, shorter: int = REFERENCE_SIDE) -> tuple[int, int]:
    """Size [h, w] of the picture's shape with this shorter side; very long pictures get less."""
    height, width = picture.shape[:2]
    scale, longest = shorter / min(height, width), LONGEST_SHAPE * shorter
    return min(longest, round(scale * height)), min(longest, round(scale * width))


def _resized(layer: Values, height: int, width: int) -> Values:
    if layer.shape == (height, width):
        return layer
    image = Image.fromarray(np.ascontiguousarray(layer)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)
