"""What is answered from the two shortlists of a batch: by each twin alone, and by both together (served).

Twin fusion is a mixture: each twin spreads its belief over the candidates, softmax(cosine / tau), and the
served score is p_frozen + w p_adapted. Which items are candidates, and how the others stand behind them, is
decided by their codes alike: by d_frozen + w d_adapted. The weights w follow the batch's own evidence
(index/evidence.py); where w is 0 the frozen answer is served, unchanged, where infinite the adapted one.

Ours; measured in docs/methods/fusion.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.config import AnswerConfig
from core.protocols import Gallery
from core.types import Encoded, Floats, Hits, Modality, Twin
from index.fuse import STEP, Mode, fuse

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)
"""Of the adapted twin. 0 is the frozen answer, inf the adapted one."""
BEHIND = 4.0
"""Added to the score's distance of what is no candidate: it ranks behind every one that is."""
Scores = NDArray[np.float64]


class Evidence(Protocol):
    """How far the adapted twin is to be trusted in a batch. `counted` [B]: rows that give evidence."""

    def __call__(
        self, gallery: Gallery, modality: Modality, frozen: Twin, adapted: Twin, counted: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Its weights [B], each one of `WEIGHTS`."""

    def quiet(self, gallery: Gallery, modality: Modality, frozen: Twin, counted: NDArray[np.bool_]) -> bool:
        """Whether the weight is 0 whatever the adapted twin answers."""


class TwinFusion:
    """Answers batches.

    Args:
        config: shortlist, top, fusion.
        evidence: how far the adapted twin is to be trusted.
    """

    def __init__(self, config: AnswerConfig, evidence: Evidence) -> None:
        self._answer, self._evidence = config, evidence

    def twin(
        self, gallery: Gallery, seen: Encoded, hits: Hits, among: Hits | None = None, top: int | None = None
    ) -> Twin:
        """A twin, and what it answers by itself: its shortlist, re-ranked by its own features.

        Its cosines to the shortlist are taken here, once: answer, evidence and entropy all look at them.
        """
        top, chosen = self._answer.top if top is None else top, hits if among is None else among
        near = cosines(gallery, seen, hits)
        if self._answer.rerank:
            score = near if among is None else cosines(gallery, seen, among)
            alone = _ranked(chosen, score, top)
        else:
            alone = fuse(chosen, chosen, seen.codes, seen.codes, gallery.codes_of, top, "none")
        return Twin(seen, hits, alone, among, near)

    def together(
        self, gallery: Gallery, modality: Modality, frozen: Twin, adapted: Twin, repaired: NDArray[np.bool_],
        correct: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    ) -> tuple[Hits, Floats]:  # fmt: skip
        """The mixture; the twins' own answers where one of them counts alone."""
        if adapted is frozen:  # a quiet batch: the adapted twin was not asked
            return frozen.answer, np.zeros(len(repaired), np.float32)
        if self._answer.fuse == "none":
            return adapted.answer, np.ones(len(repaired), np.float32)
        weights = self._evidence(gallery, modality, frozen, adapted, ~repaired)
        if correct is not None:  # a command may bound weights anywhere: at most so much is the step below
            weights = np.floor(correct(weights) / STEP) * STEP
        weights[repaired] = np.inf
        mixed, alone = (weights > 0) & (weights < np.inf), weights == np.inf
        both = self._best(
            gallery, adapted.encoded, _candidates(adapted), frozen.encoded, _candidates(frozen),
            self._answer.fuse, np.where(mixed, weights, 1.0), frozen.answer.keys.shape[1],
        ) if mixed.any() else frozen.answer  # fmt: skip
        served = _rows(alone, adapted.answer, _rows(~mixed, frozen.answer, both))
        return served, weights.astype(np.float32)

    def quiet(self, gallery: Gallery, modality: Modality, frozen: Twin, repaired: NDArray[np.bool_]) -> bool:
        """Whether the frozen side alone already gives the adapted twin the weight 0, see `Evidence.quiet`."""
        return self._answer.fuse != "none" and self._evidence.quiet(gallery, modality, frozen, ~repaired)

    def _best(
        self, gallery: Gallery, first: Encoded, first_hits: Hits, other: Encoded, other_hits: Hits,
        mode: Mode, weights: NDArray[np.float64], top: int,
    ) -> Hits:  # fmt: skip
        answer = self._answer
        k = answer.shortlist if answer.rerank else top
        hits = fuse(first_hits, other_hits, first.codes, other.codes, gallery.codes_of, k, mode, weights)
        if not answer.rerank:
            return hits
        score = self.score(gallery.features(hits.keys), hits.keys >= 0, first, other, mode, weights)
        return _ranked(hits, score, top)

    def score(
        self, items: Floats, known: NDArray[np.bool_], adapted: Encoded, frozen: Encoded, mode: Mode,
        weights: NDArray[np.float64],
    ) -> Scores:  # fmt: skip
        """Scores [B, K] of candidates [B, K, D], at most 1."""
        near = cosine_of(items, adapted)
        if mode == "none":
            return near
        other, spread = cosine_of(items, frozen), weights[:, None]
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


def cosines(gallery: Gallery, queries: Encoded, hits: Hits) -> Scores:
    """Cosine [B, K] to every item of the shortlist; -1 in places that nothing fills."""
    cosine = cosine_of(gallery.features(hits.keys), queries)
    cosine[hits.keys < 0] = -1.0
    return cosine


def cosine_of(items: Floats, queries: Encoded) -> Scores:
    """[B, K, D] -> [B, K]."""
    cosine: Scores = np.einsum("bkd,bd->bk", items, queries.features).astype(np.float64)
    return cosine


def _ranked(hits: Hits, score: Scores, top: int) -> Hits:
    """The best of a shortlist by scores [B, K], `top` of them."""
    score = np.where(hits.keys >= 0, score, -BEHIND)
    order = np.argsort(-score, axis=1, kind="stable")[:, :top]
    return Hits(
        np.take_along_axis(hits.keys, order, 1),
        np.take_along_axis(hits.distances, order, 1),
        np.take_along_axis(score, order, 1),
    )


def _rows(chosen: NDArray[np.bool_], these: Hits, others: Hits) -> Hits:
    if not chosen.any():
        return others
    pick = chosen[:, None]
    keys, distances = (
        np.where(pick, these.keys, others.keys),
        np.where(pick, these.distances, others.distances),
    )
    if these.scores is None or others.scores is None:
        return Hits(keys, distances)
    return Hits(keys, distances, np.where(pick, these.scores, others.scores))


def _candidates(twin: Twin) -> Hits:
    """The shortlist that its answers are taken from."""
    return twin.hits if twin.among is None else twin.among
