"""What the three methods are fitted to, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.offline.parallel import Team
from core.types import Codes, Floats
from encoders.base_model import Fusion
from encoders.clip_source import ClipSource
from encoders.head import HashHead
from encoders.images import Pixels
from encoders.projection import Projection
from encoders.text import TextTower
from encoders.vision import ImageTower
from qshift.recipes.encode import BATCH, Progress

Preset = Literal["paper", "plus"]
SIDE = 112  # pixels: the packaged tower's


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a base of two domains is made.

    Args:
        bits: width of the codes, a multiple of 8.
        seed: of everything drawn.
        side: of the pictures that the tower takes, in pixels.
        backbone: a torchvision backbone as the image tower; None takes the packaged one.
        weights: of the backbone; None starts it from random ones.
        model: towers of the user's own in place of both; pictures are prepared as these want them.
        preset: "paper" or "plus", see the method's page; None takes paper of TPSNet, plus of the others.
        tower_rate: learning rate of the image tower in COUPLE and TPSNet; 0 leaves it frozen.
        epochs: of COUPLE and of TPSNet's second stage; None takes their own.
        name: of the base; the method's without it.
    """

    bits: int = 64
    seed: int = 0
    side: int = SIDE
    backbone: str | None = None
    weights: Path | None = None
    model: ClipSource | None = None
    preset: Preset | None = None
    tower_rate: float = 0.0
    epochs: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Material:
    """What a method is fitted to.

    Args:
        image: the image tower.
        text: the text tower of the same model, if there is one.
        source, target: raw features [n_s, D] and [n_t, D] of the image tower.
        pixels: the pictures behind them, prepared.
        labels: [n_s].
        options: see there.
        checkpoint: where a long fit may keep what it has done.
        team: this process among those that torchrun started.
        progress: called with (done, total, text).
    """

    image: ImageTower
    text: TextTower | None
    source: Floats
    labels: NDArray[np.int64]
    target: Floats
    pixels: tuple[Sequence[Pixels], Sequence[Pixels]]
    options: FitOptions
    checkpoint: Path
    team: Team
    progress: Progress


@dataclass(frozen=True, slots=True)
class Learnt:
    """A code: what follows the tower, its head, and what the method has to say about the fit.

    `source` are the unit features [n_s, D] of the source, `codes` [n_s, L/8] those that were learned for it,
    where the method learns any. `tower` is the state of the image tower where it was trained along, `notes`
    are sentences for whoever fits.
    """

    head: HashHead
    source: Floats
    projection: Projection | None = None
    fusion: Fusion | None = None
    gauges: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    tower: Mapping[str, Tensor] | None = None
    codes: Codes | None = None
    notes: tuple[str, ...] = ()


def batches(tower: ImageTower, pixels: Sequence[Pixels]) -> Iterator[Tensor]:
    """Inputs [B, 3, H, W] of a tower from prepared pictures, 64 rows at a time."""
    for start in range(0, len(pixels), BATCH):
        rows = pixels[start : start + BATCH]
        yield tower.collate(rows, len(rows))


def raw_features(
    tower: ImageTower, pixels: Sequence[Pixels], done: Callable[[], None] = lambda: None
) -> Floats:
    """Raw features [n, raw width] of prepared pictures; `done` is called after every batch."""
    found = []
    with torch.no_grad():
        for inputs in batches(tower, pixels):
            found.append(tower.raw(inputs).float().cpu().numpy())
            done()
    return np.concatenate(found)


def unit_pictures(tower: ImageTower, pixels: Sequence[Pixels]) -> Floats:
    """Unit features [n, D] of prepared pictures, as the service makes them."""
    return np.concatenate([tower.encode(inputs).cpu().numpy() for inputs in batches(tower, pixels)])


def unit_features(projection: Projection | None, raw: Floats) -> Floats:
    """Raw tower features [n, D] -> unit features behind a projection, or of the tower itself."""
    with torch.no_grad():
        rows = torch.from_numpy(raw)
        unit = torch.nn.functional.normalize(rows, dim=1) if projection is None else projection(rows)
    found: Floats = unit.numpy()
    return found
