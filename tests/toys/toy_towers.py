"""A picture tower with BatchNorm and a text tower with LayerNorm, small and random, and what they read."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.images import Preprocess
from encoders.text import TextTower
from encoders.vision import ImageTower

WIDTH, LETTERS = 6, 16


class Look(nn.Module):
    """A picture tower with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.norm, self.out = nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Linear(16, WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(self.cut(pixels)).relu().flatten(1))
        return out


class Read(nn.Module):
    """A text tower with LayerNorm; id 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(LETTERS, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        known = (ids > 0)[..., None]
        out: Tensor = self.norm((self.words(ids) * known).sum(1) / known.sum(1))
        return out


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[(ord(c) % (LETTERS - 1) + 1) for c in text[:8].ljust(8, "z")] for text in texts])


def looking() -> Look:
    """Norms whose scale and shift are not 1 and 0."""
    torch.manual_seed(0)
    look = Look().eval()
    _move(look.norm)
    return look


def towers() -> tuple[ImageTower, TextTower]:
    torch.manual_seed(0)
    look, read = Look(), Read()
    _move(look.norm)
    _move(read.norm)
    return ImageTower(look, Preprocess(size=(8, 8))), TextTower(read, tokenize)


def _move(norm: nn.Module) -> None:
    with torch.no_grad():
        for tensor in norm.parameters():
            tensor.add_(0.2 * torch.randn_like(tensor))


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def encoded(encoder: Any, contents: list[Any], rows: int | None = None, **options: Any) -> Tensor:
    """Features of contents, from the beginning."""
    prepared = [encoder.prepare(content) for content in contents]
    found: Tensor = encoder.encode(
        encoder.collate(prepared, len(prepared) if rows is None else rows), **options
    )
    return found
