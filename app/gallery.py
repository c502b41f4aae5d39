"""`qshift gallery build`: pictures -> features -> codes -> a gallery of one base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.errors import GalleryError, Refused
from encoders.base_model import Base
from index.gallery import Display, Label, VersionedGallery

Progress = Callable[[int, int, str], None]
BATCH = 64


def build_gallery(
    base: Base,
    contents: Sequence[bytes],
    ids: Sequence[str],
    labels: Sequence[Label],
    titles: Sequence[str],
    progress: Progress | None = None,
) -> VersionedGallery:
    """Encodes every picture with the frozen image tower.

    Raises:
        GalleryError: a picture cannot be read; names it.
    """
    encoder, features = base.encoders["image"], []
    prepared = []
    for name, content in zip(ids, contents, strict=True):
        try:
            prepared.append(encoder.prepare(content))
        except Refused as refused:
            raise GalleryError(f"gallery picture {name}: {refused.reason}; remove or repair it") from refused
    import torch

    for start in range(0, len(prepared), BATCH):
        rows = prepared[start : start + BATCH]
        features.append(encoder.encode(encoder.collate(rows, len(rows))))
        if progress:
            progress(min(start + BATCH, len(prepared)), len(prepared), "gallery")
    stacked = torch.cat(features)
    return VersionedGallery(
        base.bits,
        ids,
        base.head.codes(stacked, "image"),
        labels,
        stacked.cpu().numpy(),
        [Display(title) for title in titles],
        base_version=base.version,
    )
