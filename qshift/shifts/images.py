"""Shifts of pictures: pure functions (picture, amount, generator) -> picture.

A picture is uint8 [H, W, 3], RGB. Functions without randomness ignore the generator. Levels are those of
COCO-C where it has the shift (Qiu et al., multimodal robustness benchmark), else chosen for the demo.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]
Draw = np.random.Generator

ROTATION_RADIANS = 0.25
SCALE = 0.15
SHIFT = 0.1  # of half a side, like the grids of torch.nn.functional.affine_grid
WHITE = (255, 255, 255)


def as_bytes(values: NDArray[np.floating[Any]]) -> Picture:
    """Values from 0 to 255, rounded and clipped."""
    whole: Picture = np.clip(np.rint(values), 0.0, 255.0).astype(np.uint8)
    return whole


def as_picture(image: Image.Image) -> Picture:
    """[H, W, 3] of any PIL image."""
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def noise(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Gaussian noise; `amount` is its standard deviation, with white at 1."""
    return as_bytes(picture + 255.0 * amount * draw.standard_normal(picture.shape))


def shot(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Poisson noise; `amount` is the mean count of a white pixel: fewer is worse."""
    return as_bytes(draw.poisson(picture / 255.0 * amount) / amount * 255.0)


def impulse(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Salt and pepper; `amount` is the share of values replaced by 0 or 255."""
    hit = draw.random(picture.shape) < amount
    salt = draw.random(picture.shape) < 0.5
    return np.where(hit, np.where(salt, 255, 0), picture).astype(np.uint8)


def contrast(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Distance to the mean of each channel times `amount`."""
    mean = picture.mean((0, 1), keepdims=True)
    return as_bytes(mean + amount * (picture - mean))


def brightness(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Adds `amount`, with white at 1, and clips."""
    return as_bytes(picture + 255.0 * amount)


def invert(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Blend with the negative; `amount` 1 is the negative."""
    return as_bytes((1.0 - amount) * picture + amount * (255.0 - picture))


def blur(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Gaussian blur; `amount` is its standard deviation in pixels."""
    return as_picture(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(amount)))


def pixelate(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Averages over blocks; `amount` is how many lie along the longer side."""
    image = Image.fromarray(picture)
    factor = amount / max(image.size)
    cells = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    small = image.resize(cells, Image.Resampling.BOX)
    return as_picture(small.resize(image.size, Image.Resampling.NEAREST))


def jpeg(picture: Picture, amount: float, draw: Draw) -> Picture:
    """One JPEG round trip; `amount` is the quality, 1 to 95."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=round(amount))
    return as_picture(Image.open(buffer))


def jitter(picture: Picture, amount: float, draw: Draw) -> Picture:
    """Rotates, scales and shifts at random, on white: what a picture taken again would show.

    `amount` 1 draws the angle from +-.25 rad, the scale from +-15 % and both shifts from +-.1 of half a
    side; 0 changes nothing.
    """
    angle, size, right, down = amount * draw.uniform(-1.0, 1.0, 4)
    angle, scale = angle * ROTATION_RADIANS, 1.0 + size * SCALE
    height, width = picture.shape[:2]
    # PIL asks where each output pixel comes from: the inverse map, around the centre.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    across, along = width / 2, height / 2
    x0, y0 = across * (1.0 + right * SHIFT), along * (1.0 + down * SHIFT)
    inverse = (cos, sin, across - cos * x0 - sin * y0, -sin, cos, along + sin * x0 - cos * y0)
    moved = Image.fromarray(picture).transform(
        (width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=WHITE
    )
    return as_picture(moved)


def clean(picture: Picture, amount: float, draw: Draw) -> Picture:
    """The picture itself."""
    return picture


@dataclass(frozen=True, slots=True)
class PictureShift:
    """A shift, the amount the demo uses and its five levels from mild to strong."""

    apply: Callable[[Picture, float, Draw], Picture]
    amount: float
    levels: tuple[float, ...] = ()


PICTURE_SHIFTS: Mapping[str, PictureShift] = MappingProxyType(
    {
        "clean": PictureShift(clean, 0.0),
        "noise": PictureShift(noise, 0.2, (0.08, 0.12, 0.18, 0.26, 0.38)),
        "shot": PictureShift(shot, 12.0, (60.0, 25.0, 12.0, 5.0, 3.0)),
        "impulse": PictureShift(impulse, 0.09, (0.03, 0.06, 0.09, 0.17, 0.27)),
        "contrast": PictureShift(contrast, 0.2, (0.4, 0.3, 0.2, 0.1, 0.05)),
        "brightness": PictureShift(brightness, 0.3, (0.1, 0.2, 0.3, 0.4, 0.5)),
        "invert": PictureShift(invert, 1.0, (0.2, 0.4, 0.6, 0.8, 1.0)),
        "blur": PictureShift(blur, 4.0, (1.0, 2.0, 3.0, 4.0, 6.0)),
        "pixelate": PictureShift(pixelate, 20.0, (56.0, 40.0, 28.0, 20.0, 14.0)),
        "jpeg": PictureShift(jpeg, 10.0, (25.0, 18.0, 15.0, 10.0, 7.0)),
        "jitter": PictureShift(jitter, 1.0, (0.5, 1.0, 1.5, 2.0, 3.0)),
    }
)
