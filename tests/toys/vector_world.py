"""A base and a gallery of vectors in folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.references import DriftReference, SourceConstants
from encoders.base_model import Parts, load_base, write_base
from encoders.head import HashHead
from index.gallery import VersionedGallery


def write_world(
    folder: Path, weight: np.ndarray, features: np.ndarray, labels: Sequence[str], drift: DriftReference,
    attributes: Sequence[Mapping[str, Any]] | None = None,
) -> Path:  # fmt: skip
    """`base` with the hash head [L, D], `gallery` with features [N, D] as item-0, item-1, ...; the folder."""
    bits = len(weight)
    head = HashHead(weight, np.zeros(bits, np.float32), {"vector": features.mean(0)})
    constants = {"vector": SourceConstants(0.1, 2.0, 0.05, 1e-2, 16)}
    parts = Parts(
        name="small", towers=None, head=head, provenance={}, constants=constants, reference={"vector": drift}
    )
    write_base(folder / "base", parts)
    base = load_base(folder / "base")
    codes = head.codes(torch.from_numpy(features), "vector")
    names = [f"item-{number}" for number in range(len(features))]
    VersionedGallery(
        bits, names, codes, list(labels), features, backend="exact", base_version=base.version,
        attributes=attributes,
    ).save(folder / "gallery")  # fmt: skip
    return folder
