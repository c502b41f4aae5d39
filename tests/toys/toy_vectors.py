"""A small gallery of vectors, shifted queries that ask it, and the folders of a base and a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.references import DriftReference, SourceConstants
from core.types import Floats
from encoders.base_model import Parts, load_base, write_base
from encoders.head import HashHead
from index.gallery import VersionedGallery

WIDTH, BITS, ITEMS, CLEAN = 32, 64, 200, 128


def unit(rows: np.ndarray) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def gallery_features() -> Floats:
    return unit(np.random.default_rng(0).normal(size=(ITEMS, WIDTH)))


def shifted(count: int) -> tuple[Floats, list[int]]:
    """Vectors [count, WIDTH] near items, all moved the same way, and the items."""
    rng = np.random.default_rng(1)
    chosen = rng.integers(ITEMS, size=count)
    moved = gallery_features()[chosen] + 0.1 * rng.normal(size=(count, WIDTH)) + 1.2 * np.eye(WIDTH)[0]
    return unit(moved), chosen.tolist()


def attributes() -> list[dict[str, Any]]:
    """A colour, a year from 2015 to 2024, and tags of every third item."""
    return [
        {"colour": ("red", "green", "blue")[item % 3], "year": 2015 + item % 10}
        | ({"tags": ["new", "sale"][: 1 + item % 2]} if item % 3 == 0 else {})
        for item in range(ITEMS)
    ]


def write_vectors(folder: Path) -> Path:
    """Base and gallery for vectors, as `qshift fit` and `qshift gallery build` leave them."""
    rng, features = np.random.default_rng(3), gallery_features()
    weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
    head = HashHead(weight, np.zeros(BITS, np.float32), {"vector": features.mean(0)})
    clean = unit(features[:CLEAN] + 0.05 * rng.normal(size=(CLEAN, WIDTH)))
    nearest = rng.integers(0, 12, CLEAN).astype(np.float32)
    parts = Parts(
        name="small", towers=None, head=head, provenance={},
        constants={"vector": SourceConstants(0.1, 2.0, 0.05, 1e-2)},
        reference={"vector": DriftReference(clean, np.ones(CLEAN, np.float32), nearest)},
    )  # fmt: skip
    write_base(folder / "base", parts)
    names = [f"item-{i}" for i in range(ITEMS)]
    VersionedGallery(
        BITS, names, head.codes(torch.from_numpy(features), "vector"), names, features, backend="exact",
        base_version=load_base(folder / "base").version, attributes=attributes(),
    ).save(folder / "gallery")  # fmt: skip
    return folder
