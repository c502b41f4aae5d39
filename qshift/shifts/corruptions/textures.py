"""Random textures for weather: the plasma of fog and the ice of frost."""

from __future__ import annotations

import numpy as np

from qshift.shifts.corruptions.filters import Values, convolve, splat
from qshift.shifts.images import Draw

WOBBLE = 100.0
ICE = np.array([0.80, 0.91, 1.0], np.float32)
"""Tint of frost, RGB."""
ICE_SIDE = 112
"""Shorter side of a texture for the lengths below; half the reference side, which is as fine as it needs."""
CRYSTALS = 0.0024
"""Ice seeds per pixel where the haze is mean."""
ARM = 22
"""Length of a crystal's arm in pixels."""
GLOSS = 75.0
"""How fast ice gets opaque."""


def plasma(side: int, decay: float, draw: Draw) -> Values:
    """Diamond-square fractal [side, side] from 0 to 1 that continues at its opposite border.

    `side` is a power of two. At each halving of the step the range of the random part is divided by
    decay squared: the published generator multiplies the range with itself before it draws.
    """
    field = np.zeros((side, side), np.float32)
    step, wobble = side, WOBBLE

    def wobbled(total: Values) -> Values:
        return total / 4 + (wobble * wobble) * (2 * draw.random(total.shape, dtype=np.float32) - 1)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        below = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = wobbled(below + np.roll(below, -1, 1))
        middles = field[half::step, half::step]
        upper = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        field[::step, half::step] = wobbled(upper)
        left = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        field[half::step, ::step] = wobbled(left)
        step, wobble = half, wobble / decay
    field -= field.min()
    return np.asarray(field / field.max(), dtype=np.float32)


def frost_texture(height: int, width: int, draw: Draw) -> Values:
    """Ice crystals on a milky ground, [height, width, 3] from 0 to 1: our substitute for photographs.

    Six-armed crystals with barbs, their seeds denser where a plasma is high, over the same plasma as haze.
    """
    side = 1 << int(np.ceil(np.log2(max(2, height, width))))
    haze = plasma(side, 1.5, draw)[:height, :width]
    seeds = (draw.random((height, width), dtype=np.float32) < 4.0 * CRYSTALS * haze**2).astype(np.float32)
    seeds *= draw.random((height, width), dtype=np.float32) + 0.5
    ice = convolve(seeds, crystal(float(draw.uniform(0.0, 60.0))))
    field = 0.2 + 0.3 * haze + 0.8 * (1.0 - np.exp(-GLOSS * np.maximum(ice, 0.0)))
    return np.minimum(field, 1.0)[..., None] * ICE


def crystal(degrees: float) -> Values:
    """Kernel of one six-armed crystal, one arm at `degrees`: brightness falls along arms and barbs."""
    along = np.arange(1.0, ARM + 1)
    stems = np.arange(3.0, ARM, 3.0)
    right, down, weights = [along], [np.zeros(ARM)], [1.0 - along / (ARM + 1)]
    for stem in stems:
        barb = np.arange(1.0, 0.45 * (ARM - stem) + 1)
        for turn in (-1.0, 1.0):
            right.append(stem + barb * 0.5)
            down.append(turn * barb * np.sqrt(0.75))
            weights.append(0.6 * (1.0 - stem / ARM) * (1.0 - barb / (len(barb) + 1)))
    x, y, light = np.concatenate(right), np.concatenate(down), np.concatenate(weights)
    angles = np.radians(degrees + 60.0 * np.arange(6))[:, None]
    cos, sin = np.cos(angles), np.sin(angles)
    return splat((cos * x - sin * y).ravel(), (sin * x + cos * y).ravel(), np.tile(light, 6))
