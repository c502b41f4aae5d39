"""Configuration -> objects: the only module that names concrete classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.alignment import ContentAlignment
from adapters.online.centring import Centring, ResidualCentring
from adapters.online.frozen import Frozen
from adapters.online.objectives import refined
from adapters.online.rest import Rest
from adapters.online.tcr import Tcr
from core.config import Config
from core.errors import ConfigError, GalleryError
from core.protocols import Adapter, Aligner, Gallery, StateStore
from core.types import Encoded, Hits, Modality
from encoders.base_model import Base, load_base
from index.fuse import Mode, fuse, fuse_distances
from index.gallery import VersionedGallery
from index.shelf import Shelf
from monitoring.judged import Remembered, included
from stream.changelog import ChangelogStore
from stream.codec import Codec
from stream.directory import DirectoryStore
from stream.pipeline import Pipeline

log = logging.getLogger("qshift.build")
"""Everything that is not among the nearest is ranked behind the re-ranked shortlist."""
BEHIND = 4.0


@dataclass(slots=True)
class Engine:
    """What a run needs besides its source, sink and store."""

    config: Config
    base: Base
    shelf: Shelf
    pipeline: Pipeline
    codec: Codec


def pin_threads(config: Config) -> None:
    """Bit-identity holds for one thread count."""
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    torch.set_num_threads(config.threads)


def device(config: Config) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device = "cuda", but torch sees no GPU: use "auto" or "cpu"')
    return config.device


def engine(config: Config) -> Engine:
    """Loads base and gallery and wires the pipeline."""
    pin_threads(config)
    where = device(config)
    base = load_base(config.base, where, config.precision)
    gallery = VersionedGallery.load(
        config.gallery,
        base_version=base.version,
        device="auto" if where == "cuda" else "cpu",
        threads=config.threads,
    )
    shelf = Shelf(gallery)
    pipeline = Pipeline(
        config,
        base.encoders,
        base.head,
        shelf.current,
        lambda modality: adapter(config, base, modality, where),
        lambda modality: aligner(config, base, modality, where),
        lambda *parts: answering(config, *parts),
        lambda modality, q, near, mask: entropy(base, modality, q, near, mask),
        where,
    )
    labels = config.labels
    codec = Codec(
        config.limits,
        config.kafka,
        lambda version, key: identifier(shelf, version, key),
        lambda at: included(at, labels.key, labels.rate),
    )
    return Engine(config, base, shelf, pipeline, codec)


def identifier(shelf: Shelf, version: str, key: int) -> str:
    """The user's own name of an item in the version that answered."""
    gallery = shelf.version(version)
    return str(key) if gallery is None else gallery.identifier(key)


def adapter(config: Config, base: Base, modality: Modality, where: str) -> Adapter:
    adapt = config.adapt
    if modality not in base.constants or adapt.method == "frozen":
        return Frozen()
    source, constants = base.encoders[modality].adaptable(), base.constants[modality]
    clean = torch.from_numpy(np.array(base.reference[modality].features, dtype=np.float32)).to(where)
    floor = config.batch.floor
    match adapt.method:
        case "centring":
            return Centring(clean.mean(0), floor)
        case "residual_centring":
            return ResidualCentring(clean, floor)
        case "tcr":
            return Tcr(source, constants, adapt, floor)
        case "rest":
            return Rest(source, constants, adapt, floor)
    raise ConfigError(f"adapt.method {adapt.method!r} is not known")


def aligner(config: Config, base: Base, modality: Modality, where: str) -> Aligner | None:
    """None for towers without BatchNorm, and where the paper's preset is asked for."""
    align = config.adapt.align
    if not align.enabled or config.adapt.preset == "tcr-paper" or modality not in base.calibration:
        return None
    return ContentAlignment(base.calibration[modality], align, config.batch.size, where)


def entropy(base: Base, modality: Modality, q: Tensor, near: Tensor, mask: Tensor) -> Tensor:
    """Refined entropy at the base model's temperature; zeros where it has none."""
    if modality not in base.constants:
        return torch.zeros(len(q))
    return refined(q, near, base.constants[modality].temperature, mask)[1]


def answering(
    config: Config, gallery: Gallery, adapted: Encoded, adapted_hits: Hits, frozen: Encoded, frozen_hits: Hits
) -> tuple[Hits, Hits, Hits]:
    """Answers of the frozen twin alone, of the adapted alone, and the fused one that is served."""
    fused = config.answer.fuse
    alone = _answer(config, gallery, frozen, frozen_hits, frozen, frozen_hits, "none")
    moved = _answer(config, gallery, adapted, adapted_hits, frozen, frozen_hits, "none")
    if fused == "none":
        return alone, moved, moved
    return alone, moved, _answer(config, gallery, adapted, adapted_hits, frozen, frozen_hits, fused)


def _answer(
    config: Config, gallery: Gallery, first: Encoded, first_hits: Hits, other: Encoded, other_hits: Hits,
    mode: Mode,
) -> Hits:  # fmt: skip
    """Twin fusion of two shortlists, re-ranked by float features where asked for."""
    answer = config.answer
    if not isinstance(gallery, VersionedGallery):
        raise GalleryError(f"expected a gallery with codes by key, got {type(gallery).__name__}")
    k = answer.shortlist if answer.rerank else answer.top
    hits = fuse(first_hits, other_hits, first.codes, other.codes, gallery.codes_of, k, mode)
    if not answer.rerank:
        return hits
    cosine = _cosine(gallery.features(hits.keys), first, other, mode)
    cosine[hits.keys < 0] = -BEHIND
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : answer.top]
    return Hits(np.take_along_axis(hits.keys, order, 1), np.take_along_axis(hits.distances, order, 1))


def _cosine(items: NDArray[np.float32], adapted: Encoded, frozen: Encoded, mode: str) -> NDArray[np.float32]:
    near: NDArray[np.float32] = np.einsum("bkd,bd->bk", items, adapted.features)
    if mode == "none":
        return near
    other = np.einsum("bkd,bd->bk", items, frozen.features)
    fused: NDArray[np.float32] = np.maximum(near, other) if mode == "max" else (near + other) / 2
    return fused


def judged_distances(
    config: Config, shelf: Shelf
) -> Callable[[str, Remembered], tuple[NDArray[np.float64], ...] | None]:
    """Full distances [N] of the frozen, adapted and served ranking of a remembered query."""
    answer = config.answer

    def distances(version: str, kept: Remembered) -> tuple[NDArray[np.float64], ...] | None:
        gallery = shelf.version(version)
        if gallery is None:
            return None
        bits = gallery.distances(np.stack((kept.frozen_code, kept.adapted_code)))
        both = bits.astype(np.float64)
        frozen = Encoded(kept.frozen_features[None], kept.frozen_code[None])
        adapted = Encoded(kept.adapted_features[None], kept.adapted_code[None])
        fused = fuse_distances(bits[1:], bits[:1], answer.fuse)[0].astype(np.float64)
        # Each twin alone is judged as it would have answered: re-ranked by its own features.
        for row, first, second, mode in (
            (both[0], frozen, frozen, "none"),
            (both[1], adapted, adapted, "none"),
            (fused, adapted, frozen, answer.fuse),
        ):
            if answer.rerank:
                near = np.argsort(row, kind="stable")[: answer.shortlist]
                items = gallery.features(gallery.keys()[near])[None]
                row += BEHIND
                row[near] = 1.0 - _cosine(items, first, second, mode)[0]
        return both[0], both[1], fused

    return distances


def state_store(config: Config, bootstrap_servers: str) -> StateStore:
    if config.state.store == "directory":
        return DirectoryStore(Path(config.state.directory))
    return ChangelogStore(bootstrap_servers, config.kafka)
