"""`qshift gallery build`: pictures or texts -> features -> codes -> a gallery of one base model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from core.errors import GalleryError, Refused
from core.protocols import Encoder
from core.types import Codes, Floats, Modality
from encoders.base_model import Base
from index.gallery import Display, Label, VersionedGallery
from qshift.recipes.encode import BATCH, Progress
from qshift.recipes.learned import digest, read, replaced


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
    codes, features = encoded_items(base, contents, ids, progress, modality)
    displays = [Display(title) for title in titles]
    return VersionedGallery(
        base.bits, ids, codes, labels, features, displays, base_version=base.version, attributes=attributes
    )


def encoded_items(
    base: Base,
    contents: Iterable[Any],
    ids: Sequence[str],
    progress: Progress | None = None,
    modality: Modality = "image",
) -> tuple[Codes, Floats]:
    """Codes [N, L/8] and unit features [N, D] of items by the frozen tower; see `build_gallery`."""
    if modality not in base.encoders:
        raise GalleryError(
            f"base {base.name} encodes {', '.join(base.encoders)}, not {modality} items: fit another base"
        )
    prepared = _prepared(base.encoders[modality], contents, ids, modality)
    return encoded_prepared(base, prepared, len(ids), progress, modality)


def encoded_prepared(
    base: Base, prepared: Iterable[Any], count: int, progress: Progress | None = None,
    modality: Modality = "image", together: int = BATCH,
) -> tuple[Codes, Floats]:  # fmt: skip
    """As `encoded_items`, of what the tower of the modality has prepared, so many, so many at a time.

    Pictures that the base has learned a code for get that code (`qshift.recipes.learned`).
    The last bits of a feature depend on how many rows the tower is given: one alone is always the same.
    """
    learned = read(base.extras, base.bits) if modality == "image" else {}
    seen: list[bytes] = []
    rows = _named(prepared, seen) if learned else prepared
    features = _features(base.encoders[modality], rows, count, progress, together)
    codes = base.head.codes(features, modality)
    return replaced(codes, seen, learned) if learned else codes, features.cpu().numpy()


def _prepared(
    encoder: Encoder, contents: Iterable[Any], ids: Sequence[str], modality: Modality
) -> Iterator[Any]:
    waiting = iter(contents)
    for name in ids:
        try:  # reading a file may refuse it, too
            yield encoder.prepare(next(waiting, None))
        except Refused as refused:
            noun = "picture" if modality == "image" else modality
            raise GalleryError(f"gallery {noun} {name}: {refused.reason}; remove or repair it") from refused


def _named(prepared: Iterable[Any], seen: list[bytes]) -> Iterator[Any]:
    """The same pictures; their digests are left behind."""
    for one in prepared:
        seen.append(digest(one))
        yield one


def _features(
    encoder: Encoder, prepared: Iterable[Any], count: int, progress: Progress | None, together: int
) -> Tensor:
    """Unit features [N, D]; no more than a batch of what is prepared is held."""
    features: list[Tensor] = []
    done = 0
    waiting = iter(prepared)
    while rows := list(islice(waiting, together)):
        features.append(encoder.encode(encoder.collate(rows, len(rows))))
        done += len(rows)
        if progress:
            progress(done, count, "gallery")
    return torch.cat(features)
