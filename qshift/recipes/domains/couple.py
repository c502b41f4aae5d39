"""COUPLE for the service."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adapters.offline.couple import fit
from adapters.offline.couple_config import paper, plus
from adapters.offline.couple_results import Couple
from core.types import Floats
from encoders.head import HashHead
from encoders.projection import Projection
from qshift.recipes.domains.material import Learnt, Material, raw_features, unit_features

HIDDEN = 512  # of the head
EPOCHS, BATCH, PAIRS = 12, 64, 16  # with a tower that is trained along: what two processor cores can bear


class Centred(nn.Module):
    """A tower's unit features minus a mean that stays: pictures [B, 3, H, W] -> [B, D]."""

    mean: Tensor

    def __init__(self, tower: nn.Module, mean: Tensor) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).requires_grad_(True)
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.tower(x), dim=1) - self.mean


def couple_head(material: Material) -> Learnt:
    """COUPLE's head of two layers is the projection; its signs are the code."""
    bits, source = material.options.bits, material.source
    unit = [unit_features(None, rows) for rows in (source, material.target)]
    mean = np.concatenate(unit).mean(0)
    found, tower = _trained(material, unit, mean)
    if tower is not None:  # its features have moved
        material.image.raw.load_state_dict(dict(tower))
        source = raw_features(material.image, material.pixels[0])
    projection = Projection.from_tensors({**found.head, "mean": torch.from_numpy(mean)})
    zeros = np.zeros(bits, np.float32)
    head = HashHead(np.eye(bits, dtype=np.float32), zeros, {"image": zeros})
    last = found.reports[-1]
    gauges = {
        "trusted": last.trusted / len(unit[1]),
        "reached": last.reached,
        "loss": found.losses[-1].source,
    }
    return Learnt(
        head, unit_features(projection, source), projection, gauges=gauges, config=asdict(found.config),
        tower=tower,
    )  # fmt: skip


def _trained(
    material: Material, unit: list[Floats], mean: Floats
) -> tuple[Couple, Mapping[str, Tensor] | None]:
    """The fit, and the state of the tower where it was trained along."""
    options, image = material.options, material.image
    backbone = None
    preset = paper if options.preset == "paper" else plus
    if options.tower_rate:
        rows = [image.collate(pixels, len(pixels)).numpy() for pixels in material.pixels]
        backbone = Centred(image.raw, torch.from_numpy(mean))
        config = preset(
            seed=options.seed, epochs=EPOCHS, batch=BATCH, pairs=PAIRS, backbone_rate=options.tower_rate
        )
    else:
        rows = [own - mean for own in unit]
        config = preset(seed=options.seed)
    if options.epochs is not None:
        config = replace(config, epochs=options.epochs)
    head = projection_head(unit[0].shape[1], options.bits, options.seed)
    found = fit(
        rows[0], material.labels, rows[1], head, config,
        backbone=backbone, progress=material.progress, checkpoint=material.checkpoint, team=material.team,
    )  # fmt: skip
    if found.backbone is None:
        return found, None
    inner = "tower."
    state = {name.removeprefix(inner): v for name, v in found.backbone.items() if name.startswith(inner)}
    return found, state


def projection_head(inputs: int, bits: int, seed: int) -> Projection:
    """phi, untrained: equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projection(inputs, HIDDEN, bits)
