"""What is answered from the two shortlists of a batch: by each twin alone, and by both together (served).

Twin fusion is a mixture: each twin spreads its belief over the candidates, softmax(cosine / tau), and the
served score is p_frozen + w p_adapted. The weight w follows the batch's own evidence of a shift: the frozen
cosines to the nearest item, against those of clean source queries in the same gallery: the lower confidence
bound of their standardised difference. And it follows what the adapted twin makes of it: without bringing the
queries nearer to the gallery again it has no say. On clean queries w is 0 and the frozen answer is served,
unchanged.

Ours; measured in docs/methods/fusion.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.config import Config
from core.errors import GalleryError
from core.protocols import Gallery
from core.types import Answers, Encoded, Floats, Hits, Modality
from encoders.base_model import Base
from index.fuse import Mode, fuse, fuse_distances
from index.gallery import VersionedGallery
from index.shelf import Shelf
from monitoring.judged import Remembered

BEHIND = 4.0
"""Everything that is not among the nearest is ranked behind the re-ranked shortlist."""
RECOVERED = 0.2
"""Sd of the nearest cosine that the adapted twin has to win back before it counts fully: docs/log.md."""
COPY = 1 - 1e-5
"""Cosine from which a clean source query is the gallery item itself, which no later query will be."""
Scores = NDArray[np.float64]


class Answering:
    """Answers batches, and ranks the whole gallery the same way for judging.

    Args:
        config: shortlist, top, fusion.
        base: its clean reference queries and head.
        shelf: galleries by version.
    """

    def __init__(self, config: Config, base: Base, shelf: Shelf) -> None:
        self._answer, self._base, self._shelf = config.answer, base, shelf
        self._clean: dict[tuple[str, Modality], tuple[float, float]] = {}

    def __call__(
        self,
        gallery: Gallery,
        modality: Modality,
        adapted: Encoded,
        adapted_hits: Hits,
        frozen: Encoded,
        frozen_hits: Hits,
        repaired: NDArray[np.bool_],
    ) -> Answers:
        """`repaired` [B] marks rows whose text was mended: the frozen twin read another query."""
        if not isinstance(gallery, VersionedGallery):
            raise GalleryError(f"expected a gallery with codes by key, got {type(gallery).__name__}")
        ones = np.ones(len(repaired))
        alone = self._best(gallery, frozen, frozen_hits, frozen, frozen_hits, "none", ones)
        moved = self._best(gallery, adapted, adapted_hits, frozen, frozen_hits, "none", ones)
        if self._answer.fuse == "none":
            return Answers(alone, moved, moved, ones.astype(np.float32))
        weights = self._weights(gallery, modality, (frozen, frozen_hits), (adapted, adapted_hits), ~repaired)
        both = self._best(gallery, adapted, adapted_hits, frozen, frozen_hits, self._answer.fuse, weights)
        served = _rows(repaired, moved, _rows(weights == 0, alone, both))
        weights[repaired] = np.inf
        return Answers(alone, moved, served, weights.astype(np.float32))

    def distances(self, version: str, kept: Remembered) -> tuple[Scores, Scores, Scores] | None:
        """Distances [N] of the frozen, adapted and served ranking of a query; None: version gone."""
        gallery = self._shelf.version(version)
        if gallery is None:
            return None
        bits = gallery.distances(np.stack((kept.frozen_code, kept.adapted_code)))
        frozen = Encoded(kept.frozen_features[None], kept.frozen_code[None])
        adapted = Encoded(kept.adapted_features[None], kept.adapted_code[None])
        fused = fuse_distances(bits[1:], bits[:1], _coded(self._answer.fuse))[0]
        # Each twin alone is judged as it would have answered: re-ranked by its own features.
        alone = self._ranked(gallery, bits[0], frozen, frozen, "none", 1.0)
        moved = self._ranked(gallery, bits[1], adapted, adapted, "none", 1.0)
        if self._answer.fuse == "none" or np.isinf(kept.weight):
            return alone, moved, moved
        if kept.weight == 0:
            return alone, moved, alone
        return alone, moved, self._ranked(gallery, fused, adapted, frozen, self._answer.fuse, kept.weight)

    def _ranked(
        self, gallery: VersionedGallery, bits: NDArray[np.int32], first: Encoded, other: Encoded, mode: str,
        weight: float,
    ) -> Scores:  # fmt: skip
        row = bits.astype(np.float64)
        if self._answer.rerank:
            near = np.argsort(row, kind="stable")[: self._answer.shortlist]
            items = gallery.features(gallery.keys()[near])[None]
            known = np.ones((1, len(near)), dtype=bool)
            row += BEHIND
            row[near] = 1.0 - self._score(items, known, first, other, mode, np.array([weight]))[0]
        return row

    def _best(
        self, gallery: VersionedGallery, first: Encoded, first_hits: Hits, other: Encoded, other_hits: Hits,
        mode: str, weights: NDArray[np.float64],
    ) -> Hits:  # fmt: skip
        answer = self._answer
        k = answer.shortlist if answer.rerank else answer.top
        hits = fuse(first_hits, other_hits, first.codes, other.codes, gallery.codes_of, k, _coded(mode))
        if not answer.rerank:
            return hits
        known = hits.keys >= 0
        score = self._score(gallery.features(hits.keys), known, first, other, mode, weights)
        score[~known] = -BEHIND
        order = np.argsort(-score, axis=1, kind="stable")[:, : answer.top]
        return Hits(np.take_along_axis(hits.keys, order, 1), np.take_along_axis(hits.distances, order, 1))

    def _score(
        self, items: Floats, known: NDArray[np.bool_], adapted: Encoded, frozen: Encoded, mode: str,
        weights: NDArray[np.float64],
    ) -> Scores:  # fmt: skip
        """Scores [B, K] of candidates [B, K, D], at most 1."""
        near = _cosine(items, adapted)
        if mode == "none":
            return near
        other, spread = _cosine(items, frozen), weights[:, None]
        score: Scores
        match mode:
            case "max":
                score = np.maximum(near, other)
            case "sum":
                score = (near + other) / 2
            case _:
                score = (self._belief(other, known) + spread * self._belief(near, known)) / (1 + spread)
        return score

    def _belief(self, cosine: Scores, known: NDArray[np.bool_]) -> Scores:
        scaled = np.where(known, cosine / self._answer.fuse_temperature, -np.inf)
        raised = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-1e9))
        belief: Scores = raised / np.maximum(raised.sum(axis=1, keepdims=True), 1e-300)
        return belief

    def _weights(
        self, gallery: VersionedGallery, modality: Modality, frozen: tuple[Encoded, Hits],
        adapted: tuple[Encoded, Hits], counted: NDArray[np.bool_],
    ) -> NDArray[np.float64]:  # fmt: skip
        """Weight of the adapted twin, one for the batch: 0 where its queries look like clean ones."""
        rows = len(counted)
        if self._answer.evidence is None or modality not in self._base.reference or not counted.any():
            return np.ones(rows)
        mean, sd = self._reference(gallery, modality)
        lost, left = (
            float(((mean - _nearest(gallery, *twin)[counted]) / sd).mean()) for twin in (frozen, adapted)
        )
        low, high = self._answer.evidence
        sure = lost - 2.0 / float(counted.sum()) ** 0.5
        shifted = np.clip((sure - low) / (high - low), 0.0, 1.0)
        recovers = np.clip((lost - left) / RECOVERED, 0.0, 1.0)
        return np.full(rows, shifted * recovers)

    def _reference(self, gallery: VersionedGallery, modality: Modality) -> tuple[float, float]:
        """Mean and sd of the clean source queries' cosine to their nearest item of this gallery."""
        key = (gallery.version, modality)
        if key not in self._clean:
            import torch

            features = self._base.reference[modality].features
            codes = self._base.head.codes(torch.from_numpy(np.array(features)), modality)
            hits = gallery.search(codes, self._answer.shortlist)
            found = _nearest(gallery, Encoded(features, codes), hits, itself=False)
            self._clean[key] = (float(found.mean()), max(float(found.std()), 1e-6))
        return self._clean[key]


def _nearest(
    gallery: VersionedGallery, queries: Encoded, hits: Hits, itself: bool = True
) -> NDArray[np.float64]:
    """Cosine [B] to the nearest item of the shortlist; without `itself`, the query's own copy is left out."""
    cosine = _cosine(gallery.features(hits.keys), queries)
    cosine[hits.keys < 0] = -1.0
    if not itself:
        cosine[cosine > COPY] = -1.0
    nearest: NDArray[np.float64] = cosine.max(axis=1)
    return nearest


def _cosine(items: Floats, queries: Encoded) -> Scores:
    """[B, K, D] -> [B, K]."""
    cosine: Scores = np.einsum("bkd,bd->bk", items, queries.features).astype(np.float64)
    return cosine


def _coded(mode: str) -> Mode:
    """How codes are fused for the shortlist: a mixture of beliefs needs the items that either twin likes."""
    return "max" if mode == "mixture" else mode  # type: ignore[return-value]


def _rows(chosen: NDArray[np.bool_], these: Hits, others: Hits) -> Hits:
    if not chosen.any():
        return others
    pick = chosen[:, None]
    return Hits(np.where(pick, these.keys, others.keys), np.where(pick, these.distances, others.distances))
