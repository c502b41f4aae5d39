"""Two projection heads on cached features of two frozen towers, trained by contrast.

    z = normalise(linear(gelu(layernorm(linear(layernorm(x))))))            per modality
    loss = [nce(image, text) + nce(text, image) + nce(image, image') + nce(image', image)] / 4

image and image' are two views of the same items, nce(a, b) = - mean_i log softmax_j(a_i b_j / temperature)_i.
Symmetric InfoNCE is that of CLIP (Radford et al. 2021, figure 3), the image-image term that of SimCLR
(Chen et al. 2020) without its in-view negatives. Every item is its own class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ConfigError

Progress = Callable[[int, int, str], None]
Views = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class TwoTowerConfig:
    """Defaults are those of the emoji base; only `temperature` and `noise` were compared, one seed each."""

    width: int = 128
    hidden: int = 512
    epochs: int = 40
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    noise: float = 0.1
    """Deviation of the Gaussian noise on features, as a share of each feature's own deviation."""
    temperature: float = 0.07  # of .01 to .15: best R@1 of training names, codes nearly best
    seed: int = 0


class Projection(nn.Module):
    """Tower features [B, D] -> unit features [B, width].

    Names and order of its tensors are those of the encoders' own projection, which loads them.
    """

    def __init__(self, features: int, hidden: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features), dim=-1)


@dataclass(frozen=True, slots=True)
class TwoTowerHeads:
    """Trained heads, in eval mode, and the mean loss of each epoch."""

    image: Projection
    text: Projection
    losses: tuple[float, ...]


def fit_two_tower(
    image_views: Views, text_views: Views, config: TwoTowerConfig, progress: Progress | None = None
) -> TwoTowerHeads:
    """Trains the heads; the same inputs, configuration and thread count give the same bits.

    Args:
        image_views: at least two of [n, Di] float32: features of the same n items in clean and augmented
            pictures. A step draws two different views for each item.
        text_views: at least one of [n, Dt] float32: features of the items in different phrasings.
        config: see there.
        progress: called with (epochs done, epochs, text).

    Raises:
        ConfigError: too few views or items, or views that do not agree in shape.
    """
    images, texts = _stack(image_views, "image", 2), _stack(text_views, "text", 1)
    n = images.shape[1]
    if texts.shape[1] != n or n < 2:
        raise ConfigError(f"image views hold {n} items and text views {texts.shape[1]}: expected equal, >= 2")
    draw = torch.Generator().manual_seed(config.seed)
    drawn = _Drawn(images, texts, config.noise, draw)
    # Layers are initialised from the global generator: leave it as it was found.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        image = Projection(images.shape[2], config.hidden, config.width)
        text = Projection(texts.shape[2], config.hidden, config.width)
    weights = [*image.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(weights, config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * math.ceil(n / config.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    losses = []
    for epoch in range(config.epochs):
        total = 0.0
        for items in _batches(n, config.batch, draw):
            loss = drawn.loss(image, text, items, config.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(items)
        losses.append(total / n)
        if progress is not None:
            progress(epoch + 1, config.epochs, "training the two heads")
    return TwoTowerHeads(image.eval(), text.eval(), tuple(losses))


class _Drawn:
    """Views [V, n, D] of pictures and texts, drawn at random and with noise."""

    def __init__(self, images: Tensor, texts: Tensor, noise: float, draw: torch.Generator) -> None:
        self._images, self._texts, self._draw = images, texts, draw
        self._spread = [views.std((0, 1)) * noise for views in (images, texts)]

    def loss(self, image: Projection, text: Projection, items: Tensor, temperature: float) -> Tensor:
        """Of two different pictures and a text of each item."""
        size, (of_images, of_texts) = (len(items),), self._spread
        first = torch.randint(len(self._images), size, generator=self._draw)
        other = torch.randint(1, len(self._images), size, generator=self._draw)
        second = (first + other) % len(self._images)
        a = image(self._noisy(self._images[first, items], of_images))
        b = image(self._noisy(self._images[second, items], of_images))
        phrase = torch.randint(len(self._texts), size, generator=self._draw)
        t = text(self._noisy(self._texts[phrase, items], of_texts))
        return (contrast(a, t, temperature) + contrast(a, b, temperature)) / 2

    def _noisy(self, rows: Tensor, deviation: Tensor) -> Tensor:
        return rows + deviation * torch.randn(rows.shape, generator=self._draw)


def contrast(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of matched unit rows a, b [B, D]."""
    logits = a @ b.T / temperature
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _batches(n: int, size: int, draw: torch.Generator) -> list[Tensor]:
    """Every item once, shuffled, in parts of nearly equal size: a rest of one item would teach nothing."""
    parts = math.ceil(n / size)
    return list(torch.randperm(n, generator=draw).tensor_split(parts))


def _stack(views: Views, name: str, least: int) -> Tensor:
    shapes = {view.shape for view in views}
    if len(views) < least or len(shapes) != 1 or views[0].ndim != 2:
        raise ConfigError(
            f"{len(views)} {name} views of shapes {sorted(shapes)}: expected >= {least} of one [n, D]"
        )
    return torch.from_numpy(np.stack(views).astype(np.float32))
