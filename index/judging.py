"""Ranks a whole gallery for one query as its answer was ranked: what late labels are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.config import AnswerConfig
from core.protocols import Gallery
from core.types import Encoded
from index.exact import nearest
from index.fuse import Mode, fuse_distances
from index.fusion import BEHIND, TwinFusion


class Counts(NamedTuple):
    """A ranking told by counts at each distance [M], in any order; equal distances are one place."""

    distance: NDArray[np.float64]
    relevant: NDArray[np.int64]
    """Items at it that carry the label."""
    items: NDArray[np.int64]
    """All items at it."""


NOTHING = Counts(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))


class Judge:
    """Rankings of all items by the frozen twin, by the adapted one, and as served.

    Args:
        config: shortlist, fusion.
        fusion: that answered.
    """

    def __init__(self, config: AnswerConfig, fusion: TwinFusion) -> None:
        self._answer, self._fusion = config, fusion

    def rankings(
        self, gallery: Gallery, frozen: Encoded, adapted: Encoded, weight: float, label: str
    ) -> tuple[Counts, Counts, Counts]:
        """Of one query, a single row of either twin; `weight` is the adapted twin's in what was served."""
        served = np.inf if self._answer.fuse == "none" else weight
        alone, moved, fused = self.weighed(gallery, frozen, adapted, (0.0, np.inf, served), label)
        return alone, moved, fused

    def weighed(
        self, gallery: Gallery, frozen: Encoded, adapted: Encoded, weights: Sequence[float], label: str
    ) -> list[Counts]:
        """Of one query as each weight of the adapted twin would have it answered; 0 and inf are a twin alone.

        Only the shortlist has an order of its own; behind it the items stand by whole distances, and
        histograms say all there is to know: nothing of the size of the gallery is sorted or kept.
        """
        carriers = gallery.carriers(label)
        if not len(carriers):
            return [NOTHING] * len(weights)
        bits = gallery.distances(np.concatenate((frozen.codes, adapted.codes)))
        near = [nearest(row, self._answer.shortlist, np.bincount(row)) for row in bits]
        both = np.union1d(*near)  # in the order of keys: what the answer's shortlist was taken from
        found: dict[float, Counts] = {}
        for weight in weights:
            if weight in found:
                continue
            if weight in (0.0, np.inf):  # judged as it would have answered: re-ranked by its own features
                one, twin = (0, frozen) if weight == 0.0 else (1, adapted)
                found[weight] = self._ranked(gallery, carriers, bits[one], near[one], twin, twin, "none", 1.0)
                continue
            fused = fuse_distances(bits[1:], bits[:1], self._answer.fuse, weight)[0]
            best = both[np.argsort(fused[both], kind="stable")[: self._answer.shortlist]]
            if not self._answer.rerank:
                fused += (fused.max() + 1) * ~np.isin(np.arange(len(fused)), best)
            found[weight] = self._ranked(
                gallery, carriers, fused, best, adapted, frozen, self._answer.fuse, weight
            )
        return [found[weight] for weight in weights]

    def _ranked(
        self, gallery: Gallery, carriers: NDArray[np.int64], bits: NDArray[np.int32], near: NDArray[np.int64],
        first: Encoded, other: Encoded, mode: Mode, weight: float,
    ) -> Counts:  # fmt: skip
        every = np.bincount(bits)
        places = np.arange(len(every))
        right = np.bincount(bits[carriers], minlength=len(every))
        if not self._answer.rerank:
            return Counts(places.astype(np.float64), right, every)
        items = gallery.features(gallery.keys()[near])[None]
        known = np.ones((1, len(near)), dtype=bool)
        score = self._fusion.score(items, known, first, other, mode, np.array([weight]))[0]
        at = np.minimum(np.searchsorted(carriers, near), len(carriers) - 1)
        relevant = carriers[at] == near
        every -= np.bincount(bits[near], minlength=len(every))
        right -= np.bincount(bits[near[relevant]], minlength=len(every))
        return Counts(
            np.concatenate((1.0 - score, places + BEHIND)),
            np.concatenate((relevant, right)),
            np.concatenate((np.ones(len(near), np.int64), every)),
        )
