"""How far the adapted twin is to be trusted in a batch: its weight in the mixture that is served.

Two things are asked of the cosines to the nearest gallery item, both without labels. Has the batch shifted?
The frozen cosines against those of clean source queries in the same gallery: the lower confidence bound of
their standardised difference. And does adaptation help? After a moderate shift the adapted twin has no say
unless it brings the queries nearer to the gallery again; after a severe one there is little left to lose. It
counts more than the frozen twin only where most queries have shifted, and where it wins back a good part of
what they lost. On clean queries the weight is 0.

The first question needs the frozen twin alone. Where its answer is no, the batch is quiet: the frozen answer
is served whatever the adapted twin would say, so that it is not asked at all.

Ours; measured in docs/methods/fusion.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from core.config import AnswerConfig
from core.protocols import Gallery
from core.references import DriftReference
from core.types import Codes, Encoded, Hits, Modality, Twin
from index.fusion import WEIGHTS, cosine_of

if TYPE_CHECKING:
    from core.protocols import Hash

log = logging.getLogger("qshift.evidence")

RECOVERED = 0.2
"""Sd of the nearest cosine that the adapted twin has to win back before it counts: docs/lab/log.md."""
SEVERE = (1.5, 2.5)
"""Median drop (its lower bound) from which the adapted twin counts without recovery, and fully.
Line art is recognised better after alignment although it comes no nearer to the gallery: docs/lab/log.md."""
MOST, GOOD, MORE = (0.0, 0.3), (0.0, 0.5), 4.0
"""Median drop (its lower bound), and share of the drop that is won back, from which the adapted twin counts
more than the frozen one, and `MORE` times as much: docs/lab/log.md."""
HIT = 1.0
"""Drop in sd from which a query counts as hit: what is won back is asked of those alone, where there are any.
Clean queries among users of all kinds lose what the others win."""
NEAR, FARTHER = (0.0, 0.25), (1.0, 0.5)
"""A query that has lost no more than so much, and one that the adapted twin takes farther away by so much, in
sd, and the largest weights that they get."""
COPY = 1 - 1e-5
"""Cosine from which a clean source query is the gallery item itself, which no later query will be."""


class Evidence:
    """Weighs the adapted twin by the batch.

    Args:
        config: `evidence`; without it the adapted twin always counts fully.
        reference: clean source queries of the base model, by modality.
        hash_: features -> codes, of the base model.
    """

    def __init__(
        self, config: AnswerConfig, reference: Mapping[Modality, DriftReference], hash_: Hash
    ) -> None:
        self._answer, self._clean_queries, self._hash = config, reference, hash_
        self._clean: dict[tuple[str, Modality], tuple[float, float]] = {}
        self._said: set[Modality] = set()

    def __call__(
        self, gallery: Gallery, modality: Modality, frozen: Twin, adapted: Twin, counted: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Weights [B], each one of `WEIGHTS`, by the evidence of the rows that count."""
        if self._answer.evidence is None:
            return np.ones(len(counted))
        lost = self._lost(gallery, modality, frozen)
        rows = _distinct(frozen.codes, counted)
        if lost is None or not len(rows):
            return np.zeros(len(counted))
        left = self._standardised(gallery, modality, adapted)
        weights = np.full(len(counted), weight(Drop.of(lost[rows], left[rows]), self._answer.evidence))
        for cases, (_, most) in ((lost <= NEAR[0], NEAR), (left - lost >= FARTHER[0], FARTHER)):
            weights[cases] = np.minimum(weights[cases], most)
        return weights

    def quiet(self, gallery: Gallery, modality: Modality, frozen: Twin, counted: NDArray[np.bool_]) -> bool:
        """Whether the weight is 0 whatever the adapted twin answers: the frozen side shows no shift."""
        if self._answer.evidence is None:
            return False
        lost, rows = self._lost(gallery, modality, frozen), _distinct(frozen.codes, counted)
        if lost is None or not len(rows):
            return True
        return weight(Drop.of(lost[rows], np.full(len(rows), -math.inf)), self._answer.evidence) == 0.0

    def _lost(self, gallery: Gallery, modality: Modality, frozen: Twin) -> NDArray[np.float64] | None:
        """How far the frozen cosines lie below clean ones, in sd; None: nothing to compare them with."""
        if modality in self._clean_queries:
            return self._standardised(gallery, modality, frozen)
        if modality not in self._said:
            self._said.add(modality)
            log.warning(
                "the base model has no clean reference for such queries: the frozen twin answers alone",
                extra={"modality": modality},
            )
        return None

    def _standardised(self, gallery: Gallery, modality: Modality, twin: Twin) -> NDArray[np.float64]:
        mean, sd = self._reference(gallery, modality)
        below: NDArray[np.float64] = (mean - nearest(gallery, twin.encoded, twin.hits)) / sd
        return below

    def _reference(self, gallery: Gallery, modality: Modality) -> tuple[float, float]:
        """Mean and sd of the clean source queries' cosine to their nearest item of this gallery."""
        key = (gallery.version, modality)
        if key not in self._clean:
            features = self._clean_queries[modality].features
            codes = self._hash(torch.from_numpy(np.array(features)), modality)
            hits = gallery.search(codes, self._answer.shortlist)
            found = nearest(gallery, Encoded(features, codes), hits, itself=False)
            self._clean[key] = (float(found.mean()), max(float(found.std()), 1e-6))
        return self._clean[key]


def _distinct(codes: Codes, counted: NDArray[np.bool_]) -> NDArray[np.intp]:
    """First rows of each code among those that count: a query asked again and again proves nothing new."""
    rows = np.flatnonzero(counted)
    firsts: NDArray[np.intp] = rows[np.sort(np.unique(codes[rows], axis=0, return_index=True)[1])]
    return firsts


@dataclass(frozen=True, slots=True)
class Drop:
    """How far the nearest cosines of a batch lie below clean ones, in sd of these, over `rows` queries.

    `mean` and `median` of the frozen twin; `hit` the mean of the queries that are hit, of all where none is,
    and `back` how much of it the adapted twin wins back.
    """

    mean: float
    median: float
    hit: float
    back: float
    rows: int

    @classmethod
    def of(cls, lost: NDArray[np.float64], left: NDArray[np.float64]) -> Drop:
        """From the drops [n] of the frozen and of the adapted twin, n > 0."""
        hit = lost > HIT if (lost > HIT).any() else np.ones(len(lost), bool)
        back = (lost - left)[hit].mean()
        return cls(
            float(lost.mean()), float(np.median(lost)), float(lost[hit].mean()), float(back), len(lost)
        )


def weight(drop: Drop, evidence: tuple[float, float]) -> float:
    """Weight of the adapted twin, one of `WEIGHTS`; the more of the drop it wins back, the larger.

    Whether a shift is severe, and has hit most queries, is asked of the median: a few hopeless queries among
    clean ones must not speak for them.

    Args:
        drop: of the batch.
        evidence: mean drop (its lower bound) where the adapted twin begins to count, and counts as much as
            the frozen one.
    """
    unsure = 2.0 / math.sqrt(drop.rows)  # two standard errors of a mean
    severe = _ramp(drop.median - unsure, SEVERE)
    say = _ramp(drop.mean - unsure, evidence) * max(_ramp(drop.back, (0.0, RECOVERED)), severe)
    if say == 0.0:
        return 0.0
    good = _ramp(drop.back / max(drop.hit, RECOVERED), GOOD)
    return _listed(say * (1.0 + (MORE - 1.0) * _ramp(drop.median - unsure, MOST) * max(good, severe)))


def _listed(weight: float) -> float:
    """The nearest of `WEIGHTS` by its logarithm; half of the smallest stands for 0."""
    finite = [listed for listed in WEIGHTS if 0 < listed < math.inf]
    places = [finite[0] / 2, *finite]
    nearest = min(places, key=lambda place: abs(math.log(weight / place)))
    return nearest if nearest in WEIGHTS else 0.0


def _ramp(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return min(1.0, max(0.0, (value - low) / (high - low)))


def nearest(gallery: Gallery, queries: Encoded, hits: Hits, itself: bool = True) -> NDArray[np.float64]:
    """Cosine [B] to the nearest item of the shortlist; without `itself`, the query's own copy is left out."""
    cosine = cosine_of(gallery.features(hits.keys), queries)
    cosine[hits.keys < 0] = -1.0
    if not itself:
        cosine[cosine > COPY] = -1.0
    found: NDArray[np.float64] = cosine.max(axis=1)
    return found
