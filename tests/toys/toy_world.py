"""A base of vectors, a gallery and queries near its items: enough for a whole run in a tenth of a second."""

import json
from pathlib import Path

import numpy as np
import torch

from core.references import DriftReference, SourceConstants
from encoders.base_model import Parts, load_base, write_base
from encoders.head import HashHead
from index.gallery import VersionedGallery

QUERIES, WIDTH, BITS, ITEMS = 24, 16, 32, 60


def small_world(folder: Path) -> None:
    """A base of vectors, a gallery, and queries near its items."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ITEMS, WIDTH))
    items = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
    head = HashHead(weight, np.zeros(BITS, np.float32), {"vector": items.mean(0)})
    drift = DriftReference(items[:32], np.ones(32, np.float32), np.zeros(32, np.float32), 16)
    constants = {"vector": SourceConstants(0.1, 2.0, 0.05, 1e-2, 16)}
    parts = Parts(
        name="small", towers=None, head=head, provenance={}, constants=constants, reference={"vector": drift}
    )
    write_base(folder / "base", parts)
    version = load_base(folder / "base").version
    codes = head.codes(torch.from_numpy(items), "vector")
    names = [f"item-{number}" for number in range(ITEMS)]
    labels = [f"class {number % 6}" for number in range(ITEMS)]
    built = VersionedGallery(BITS, names, codes, labels, items, backend="exact", base_version=version)
    built.save(folder / "gallery")
    near = items[:QUERIES] + 0.1 * rng.normal(size=(QUERIES, WIDTH))
    lines = [
        json.dumps({"vector": row.tolist(), "label": label}) for row, label in zip(near, labels[:QUERIES])
    ]
    (folder / "queries.jsonl").write_text("\n".join(lines))
