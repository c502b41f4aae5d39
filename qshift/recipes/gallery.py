"""`qshift gallery build`: pictures or texts -> features -> codes -> a gallery of one base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.errors import GalleryError, Refused
from core.protocols import Encoder
from core.types import Modality
from encoders.base_model import Base
from index.gallery import Display, Label, VersionedGallery
from qshift.recipes.encode import BATCH, Progress


def build_gallery(
    base: Base,
    contents: Iterable[Any],
    ids: Sequence[str],
    labels: Sequence[Label],
    titles: Sequence[str],
    progress: Progress | None = None,
    modality: Modality = "image",
    attributes: Sequence[Mapping[str, Any]] | None = None,
) -> VersionedGallery:
    """Encodes every item with the frozen tower of its modality.

    Args:
        base: the base model.
        contents: what the tower takes, one at a time: files or uint8 [H, W, 3] of pictures, or texts.
        ids, labels, titles: of the items, in the same order.
        progress: called with (done, total, "gallery").
        modality: of the items.
        attributes: of the items, for filters; None: nothing is said.

    Raises:
        GalleryError: an item cannot be read, and names it; or the base has no tower for such items.
    """
    if modality not in base.encoders:
        raise GalleryError(
            f"base {base.name} encodes {', '.join(base.encoders)}, not {modality} items: fit another base"
        )
    encoder = base.encoders[modality]
    features = _features(encoder, _prepared(encoder, contents, ids, modality), progress)
    return VersionedGallery(
        base.bits,
        ids,
        base.head.codes(features, modality),
        labels,
        features.cpu().numpy(),
        [Display(title) for title in titles],
        base_version=base.version,
        attributes=attributes,
    )


def _prepared(encoder: Encoder, contents: Iterable[Any], ids: Sequence[str], modality: Modality) -> list[Any]:
    prepared, waiting = [], iter(contents)
    for name in ids:
        try:  # reading a file may refuse it, too
            prepared.append(encoder.prepare(next(waiting, None)))
        except Refused as refused:
            noun = "picture" if modality == "image" else modality
            raise GalleryError(f"gallery {noun} {name}: {refused.reason}; remove or repair it") from refused
    return prepared


def _features(encoder: Encoder, prepared: Sequence[Any], progress: Progress | None) -> Tensor:
    """Unit features [N, D]."""
    features = []
    for start in range(0, len(prepared), BATCH):
        rows = prepared[start : start + BATCH]
        features.append(encoder.encode(encoder.collate(rows, len(rows))))
        if progress:
            progress(min(start + BATCH, len(prepared)), len(prepared), "gallery")
    return torch.cat(features)
