"""Two domains of pictures in folders by class: light ones and dark ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

KINDS = ("bar", "dot", "frame")


def drawn(kind: str, draw: np.random.Generator, dark: bool) -> Image.Image:
    """A thing of its kind on a 32-pixel square; the other domain is dark."""
    ink, paper = ((230, 230, 120), (20, 30, 60)) if dark else ((20, 20, 90), (240, 240, 235))
    pixels = np.empty((32, 32, 3), np.int64)
    pixels[:] = paper
    x, y = draw.integers(4, 12, 2)
    if kind == "bar":
        pixels[y : y + 16, x : x + 4] = ink
    elif kind == "dot":
        pixels[y : y + 9, x : x + 9] = ink
    else:
        pixels[y : y + 16, x : x + 16] = ink
        pixels[y + 3 : y + 13, x + 3 : x + 13] = paper
    noisy = pixels + draw.integers(-12, 13, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def folder(path: Path, each: int, seed: int, dark: bool) -> Path:
    draw = np.random.default_rng(seed)
    for kind in KINDS:
        (path / kind).mkdir(parents=True)
        for number in range(each):
            drawn(kind, draw, dark).save(path / kind / f"{number}.png")
    return path


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)
