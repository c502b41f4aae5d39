"""How far the adapted twin is to be trusted in a batch: its weight in the mixture that is served.

Two things are asked of the cosines to the nearest gallery item, both without labels. Has the batch shifted?
The frozen cosines against those of clean source queries in the same gallery: the lower confidence bound of
their standardised difference. And does adaptation help? After a moderate shift the adapted twin has no say
unless it brings the queries nearer to the gallery again; after a severe one there is little left to lose. On
clean queries the weight is 0.

Ours; measured in docs/methods/fusion.md.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from app.answering import Twin, cosine_of
from core.config import Config
from core.types import Encoded, Hits, Modality
from encoders.base_model import Base
from index.gallery import VersionedGallery

RECOVERED = 0.2
"""Sd of the nearest cosine that the adapted twin has to win back before it counts fully: docs/log.md."""
SEVERE = (1.5, 2.5)
"""Drop (its lower bound) from which the adapted twin counts without having won anything back, and fully.
Line art is recognised better after alignment although it comes no nearer to the gallery: docs/log.md."""
COPY = 1 - 1e-5
"""Cosine from which a clean source query is the gallery item itself, which no later query will be."""


class Evidence:
    """Weighs the adapted twin by the batch.

    Args:
        config: `answer.evidence`; without it the adapted twin always counts fully.
        base: its clean reference queries and head.
    """

    def __init__(self, config: Config, base: Base) -> None:
        self._answer, self._base = config.answer, base
        self._clean: dict[tuple[str, Modality], tuple[float, float]] = {}

    def __call__(
        self, gallery: VersionedGallery, modality: Modality, frozen: Twin, adapted: Twin,
        counted: NDArray[np.bool_],
    ) -> float:  # fmt: skip
        """The weight in [0, 1], from the rows [B] that count."""
        if self._answer.evidence is None or modality not in self._base.reference or not counted.any():
            return 1.0
        mean, sd = self._reference(gallery, modality)
        lost, left = (
            float(((mean - nearest(gallery, *twin)[counted]) / sd).mean()) for twin in (frozen, adapted)
        )
        return weight(lost, left, int(counted.sum()), self._answer.evidence)

    def _reference(self, gallery: VersionedGallery, modality: Modality) -> tuple[float, float]:
        """Mean and sd of the clean source queries' cosine to their nearest item of this gallery."""
        key = (gallery.version, modality)
        if key not in self._clean:
            features = self._base.reference[modality].features
            codes = self._base.head.codes(torch.from_numpy(np.array(features)), modality)
            hits = gallery.search(codes, self._answer.shortlist)
            found = nearest(gallery, Encoded(features, codes), hits, itself=False)
            self._clean[key] = (float(found.mean()), max(float(found.std()), 1e-6))
        return self._clean[key]


def weight(lost: float, left: float, rows: int, evidence: tuple[float, float]) -> float:
    """Weight of the adapted twin.

    Args:
        lost: mean drop of the nearest cosine of the frozen twin, in sd of clean queries.
        left: the same of the adapted twin.
        rows: queries they are means of.
        evidence: drop (its lower bound) where the adapted twin begins to count, and counts fully.
    """
    low, high = evidence
    sure = lost - 2.0 / float(rows) ** 0.5
    shifted = np.clip((sure - low) / (high - low), 0.0, 1.0)
    recovers = np.clip((lost - left) / RECOVERED, 0.0, 1.0)
    severe = np.clip((sure - SEVERE[0]) / (SEVERE[1] - SEVERE[0]), 0.0, 1.0)
    return float(shifted * max(recovers, severe))


def nearest(
    gallery: VersionedGallery, queries: Encoded, hits: Hits, itself: bool = True
) -> NDArray[np.float64]:
    """Cosine [B] to the nearest item of the shortlist; without `itself`, the query's own copy is left out."""
    cosine = cosine_of(gallery.features(hits.keys), queries)
    cosine[hits.keys < 0] = -1.0
    if not itself:
        cosine[cosine > COPY] = -1.0
    found: NDArray[np.float64] = cosine.max(axis=1)
    return found
