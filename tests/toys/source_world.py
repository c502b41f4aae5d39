"""Vectors of a source that is known: a base with a clean reference, and the gallery of its items."""

from __future__ import annotations

import numpy as np
import torch

from core.references import DriftReference, SourceConstants
from core.types import Floats
from encoders.base_model import Base
from encoders.head import HashHead
from encoders.vector import VectorEncoder
from index.gallery import VersionedGallery

WIDTH, BITS, ITEMS, SIZE = 24, 64, 60, 32


def unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def source_world() -> tuple[Base, VersionedGallery]:
    """A base whose clean queries lie near its items, and the gallery of these."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    items = unit(rng.normal(size=(ITEMS, WIDTH)))
    weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
    head = HashHead(weight, np.zeros(BITS, np.float32), {"vector": np.zeros(WIDTH, np.float32)})
    clean = unit(items[rng.integers(ITEMS, size=200)] + 0.4 * rng.normal(size=(200, WIDTH)) / WIDTH**0.5)
    zeros = np.zeros(len(clean), np.float32)
    base = Base(
        "test", BITS, WIDTH, {"vector": VectorEncoder(WIDTH)}, head,
        {"vector": SourceConstants(0.1, 2.0, 0.05, 1e-2, SIZE)}, {},
        {"vector": DriftReference(clean, zeros, zeros)}, "v",
    )  # fmt: skip
    names = [f"item-{i}" for i in range(ITEMS)]
    codes = head.codes(torch.from_numpy(items), "vector")
    return base, VersionedGallery(BITS, names, codes, names, items, backend="exact", base_version="v")
