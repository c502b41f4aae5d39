"""Pictures through a tower with BatchNorm: alignment measures it, style clusters look at its early layers."""

from __future__ import annotations

import numpy as np
import torch
from source_world import BITS, SIZE

from core.references import DriftReference, SourceConstants
from core.types import Floats
from encoders.base_model import Base
from encoders.head import HashHead
from encoders.images import Preprocess
from encoders.norms import calibrate
from encoders.vision import ImageTower
from index.gallery import VersionedGallery


def picture_world() -> tuple[Base, VersionedGallery, Floats]:
    """A base, the gallery of its items, and their pictures [N, 32, 32, 3], 0 to 255."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inner, outer in ((3, 8), (8, 8), (8, 16), (16, 16)):
        layers += [torch.nn.Conv2d(inner, outer, 3, 2, 1), torch.nn.BatchNorm2d(outer), torch.nn.ReLU()]
    tower = ImageTower(
        torch.nn.Sequential(*layers, torch.nn.Flatten()),
        Preprocess((32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    drawn = np.random.default_rng(0).integers(0, 256, (128, 8, 8, 3), dtype=np.uint8)
    shown = np.kron(drawn, np.ones((1, 4, 4, 1), dtype=np.uint8))
    inputs = [tower.collate([tower.prepare(one) for one in shown[at : at + 64]], 64) for at in (0, 64)]
    calibration = calibrate(tower, inputs)
    items = calibration.features
    head = HashHead(
        np.random.default_rng(1).normal(size=(BITS, tower.width)).astype(np.float32),
        np.zeros(BITS, np.float32), {"image": items.mean(0)},
    )  # fmt: skip
    noisy = [tower.prepare(noised(one, seed, 8)) for seed, one in enumerate(shown)]
    clean = tower.encode(tower.collate(noisy, len(noisy))).numpy()
    zeros = np.zeros(len(clean), np.float32)
    base = Base(
        "test", BITS, tower.width, {"image": tower}, head,
        {"image": SourceConstants(0.1, 2.0, 0.05, 1e-2, SIZE)}, {"image": calibration},
        {"image": DriftReference(clean, zeros, zeros)}, "v",
    )  # fmt: skip
    names = [f"item-{i}" for i in range(len(items))]
    codes = head.codes(torch.from_numpy(items), "image")
    gallery = VersionedGallery(BITS, names, codes, names, items, backend="exact", base_version="v")
    return base, gallery, shown.astype(np.float32)


def noised(picture: Floats, seed: int, amount: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=picture.shape) * amount
    return np.clip(picture + noise, 0, 255).astype(np.uint8)
