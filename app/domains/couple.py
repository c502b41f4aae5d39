"""COUPLE for the service."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from adapters.offline.couple import fit
from adapters.offline.couple_config import plus
from app.domains.material import Learnt, Material, unit_features
from encoders.head import HashHead
from encoders.projection import Projection

HIDDEN = 512  # of the head


def couple_head(material: Material) -> Learnt:
    """COUPLE's head of two layers is the projection; its signs are the code."""
    unit = [unit_features(None, rows) for rows in (material.source, material.target)]
    mean = np.concatenate(unit).mean(0)
    config = plus(seed=material.seed)
    found = fit(
        unit[0] - mean, material.labels, unit[1] - mean,
        projection_head(unit[0].shape[1], material.bits, material.seed), config,
        progress=material.progress, checkpoint=material.checkpoint, team=material.team,
    )  # fmt: skip
    projection = Projection.from_tensors({**found.head, "mean": torch.from_numpy(mean)})
    head = HashHead(
        np.eye(material.bits, dtype=np.float32),
        np.zeros(material.bits, np.float32),
        {"image": np.zeros(material.bits, np.float32)},
    )
    last = found.reports[-1]
    gauges = {
        "trusted": last.trusted / len(unit[1]),
        "reached": last.reached,
        "loss": found.losses[-1].source,
    }
    features = (unit_features(projection, material.source), unit_features(projection, material.target))
    return Learnt(head, features, projection, gauges=gauges, config=asdict(config))


def projection_head(inputs: int, bits: int, seed: int) -> Projection:
    """phi, untrained: equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projection(inputs, HIDDEN, bits)
