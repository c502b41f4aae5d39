"""Prompts whose text features lie among the image tower's.

Towers of a CLIP share a space. What keeps their texts and pictures apart there is nearly orthogonal to how
pictures differ (Liang et al., NeurIPS 2022), so that the axes of pictures drop it. For towers that share none
texts are mapped by a ridge regression on emoji and their names, which have nothing to do with the pictures
that prompts are then learnt for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from adapters.offline.prompts import Template
from encoders.clip import Towers
from encoders.features import features
from encoders.prompting import PromptTower, template
from qshift.data.emoji import load_emoji
from qshift.recipes.encode import Progress

CACHE = Path("qshift-data/demo")
SIDE = 112
LEARNT = 4  # M, CLIP-ReID's
RIDGE = 1.0
Map = Callable[[Tensor], Tensor]
"""Unit features of texts [n, text width] -> features [n, D] of reduced pictures."""


def learnable(towers: Towers, axes: Tensor, progress: Progress, cache: Path = CACHE) -> Template:
    """The prompt "an image of a X X X X.", with text features as features [D] of reduced pictures.

    Args:
        towers: of one model; of equal width their spaces are one, else they need not be comparable.
        axes: [image width, D], that image features are reduced by.
        progress: called with (done, total, text).
        cache: where emoji and their features are kept.

    Raises:
        ArtifactError: the packages of the demo extra are missing.
    """
    shared = towers.text.width == towers.image.width
    into = _same(axes) if shared else _mapped(towers, axes, progress, cache)
    tower = PromptTower(towers.text)
    ids, places = template(tower, "an image of a", LEARNT, ".")
    with torch.no_grad():
        embeds: Tensor = tower.embedding(ids)

    def encode(prompts: Tensor) -> Tensor:
        return into(normalize(tower.encode(prompts, ids.expand(len(prompts), -1)), dim=1))

    return Template(embeds, places, encode)


def _same(axes: Tensor) -> Map:
    return lambda unit: unit @ axes


def _mapped(towers: Towers, axes: Tensor, progress: Progress, cache: Path) -> Map:
    data = load_emoji(cache, SIDE, progress)

    def told(done: int, total: int) -> None:
        progress(done, total, "encoding emoji for the map of texts")

    looks = np.asarray(features(list(data.colour), towers.image, cache / "features", progress=told))
    names = [data.captions(item)[0] for item in range(len(data))]
    texts = np.asarray(features(names, towers.text, cache / "features"))
    mean = texts.mean(0)
    x, y = texts - mean, looks - looks.mean(0)
    ridge = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    through = torch.from_numpy(ridge.astype(np.float32)) @ axes
    away = torch.from_numpy(mean)
    return lambda unit: (unit - away) @ through
