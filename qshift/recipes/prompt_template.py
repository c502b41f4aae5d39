"""Prompts for a pair of towers that share no space: texts are mapped into the image tower's features.

The map is a ridge regression on emoji and their names, which have nothing to do with the pictures that
prompts are then learnt for.
"""

from __future__ import annotations

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


def learnable(towers: Towers, axes: Tensor, progress: Progress, cache: Path = CACHE) -> Template:
    """The prompt "an image of a X X X X.", with text features as features [D] of reduced pictures.

    Args:
        towers: of one model; unit features of texts and of pictures need not be comparable.
        axes: [image width, D], that image features are reduced by.
        progress: called with (done, total, text).
        cache: where emoji and their features are kept.

    Raises:
        ArtifactError: the packages of the demo extra are missing.
    """
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
    tower = PromptTower(towers.text)
    ids, places = template(tower, "an image of a", LEARNT, ".")
    with torch.no_grad():
        embeds: Tensor = tower.embedding(ids)

    def encode(prompts: Tensor) -> Tensor:
        raw = tower.encode(prompts, ids.expand(len(prompts), -1))
        return (normalize(raw, dim=1) - away) @ through

    return Template(embeds, places, encode)
