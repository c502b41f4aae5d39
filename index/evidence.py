"""What tells how far the adapted twin is to be trusted in a batch, without labels: cosines of both twins.

Has the batch shifted? The frozen cosines to the nearest gallery item are held against those of clean source
queries in the same gallery. And does adaptation help? It may bring the queries nearer to the gallery again,
or apart: a shift gathers them in a corner where all are near to something, and to the wrong thing. What
follows from that is in `index/weighing.py`.

The first question needs the frozen twin alone. Where its answer is no, the batch is quiet: the frozen answer
is served whatever the adapted twin would say, so that it is not asked at all.

Ours; measured in docs/methods/fusion.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from core.config import AnswerConfig
from core.protocols import Gallery
from core.references import DriftReference
from core.types import Codes, Encoded, Floats, Hits, Keys, Modality, Twin
from index.fusion import cosines
from index.gathered import Votes, gathered, votes
from index.weighing import CLASSES, Drop, limited, weight

if TYPE_CHECKING:
    from core.protocols import Hash

log = logging.getLogger("qshift.evidence")

MOST_ALIKE = 0.99
"""Mean cosine of clean queries that all look alike: what is still more alike has hardly gathered."""
COPY = 1 - 1e-5
"""Cosine from which a clean source query is the gallery item itself, which no later query will be."""

NEIGHBOURS, AROUND = 10, 100
"""Nearest items of a query that are asked whether they carry the label of the first: for the weight of the
twins, and for the quality to expect, which is that of a ranking much longer than ten."""
PICTURE_SHARE = 0.5
"""Of a composed query: the other half is text, which shifts with no picture, so that half as large a drop is
as much evidence: docs/lab/log.md."""
CORNERS: frozenset[Modality] = frozenset(("composed",))
"""Kinds of query whose gathering counts beside their drop: docs/lab/log.md."""
SHARED = 0.2
"""Share of agreeing neighbours of clean queries from which items share labels at all."""
KEPT = 64
"""Gallery versions, times modalities, whose clean figures are remembered: a gallery may change for ever."""


class Evidence:
    """Weighs the adapted twin by the batch.

    Args:
        config: `evidence`; without it the adapted twin always counts fully.
        reference: clean source queries of the base model, by modality.
        hash_: features -> codes, of the base model.
        missed: modalities without clean queries of which that was said; all that ask of one base share it.
    """

    def __init__(
        self, config: AnswerConfig, reference: Mapping[Modality, DriftReference], hash_: Hash,
        missed: set[Modality] | None = None,
    ) -> None:  # fmt: skip
        self._answer, self._clean_queries, self._hash = config, reference, hash_
        self._clean: dict[tuple[str, Modality], tuple[float, float, float, Votes]] = {}
        self._together: dict[Modality, float] = {}
        self._agreed: tuple[tuple[Twin, str, Agreement], ...] = ()
        self._missed = set() if missed is None else missed

    def __call__(
        self, gallery: Gallery, modality: Modality, frozen: Twin, adapted: Twin, counted: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Weights [B], each one of `WEIGHTS`, by the evidence of the rows that count."""
        if self._answer.evidence is None:
            return np.ones(len(counted))
        rows = _distinct(frozen.codes, counted)
        if not self._compared(modality) or not len(rows):
            return np.zeros(len(counted))
        near = [seen(gallery, twin) for twin in (frozen, adapted)]
        lost, left = (self.below(gallery, modality, found.max(axis=1)) for found in near)
        before, after = (together(twin.features[rows]) for twin in (frozen, adapted))
        apart = (before - after) / (1.0 - self._clean_together(modality))
        agreed = math.inf
        if self.agreement_of_clean(gallery, modality) > CLASSES:
            shares = [
                self.agreed(gallery, twin, found).near[rows] for twin, found in zip((frozen, adapted), near)
            ]
            agreed = _agreed(*shares)
        drop = Drop.of(lost[rows], left[rows], apart, agreed, self._crowded(modality, frozen, rows))
        return limited(weight(drop, self._bounds(modality)), drop, lost, left)

    def quiet(self, gallery: Gallery, modality: Modality, frozen: Twin, counted: NDArray[np.bool_]) -> bool:
        """Whether the weight is 0 whatever the adapted twin answers: the frozen side shows no shift."""
        if self._answer.evidence is None:
            return False
        lost, rows = self.drops(gallery, modality, frozen), _distinct(frozen.codes, counted)
        if lost is None or not len(rows):
            return True
        crowded = self._crowded(modality, frozen, rows)
        best = Drop.of(lost[rows], np.full(len(rows), -math.inf), math.inf, crowded=crowded)
        return weight(best, self._bounds(modality)) == 0.0

    def _bounds(self, modality: Modality) -> tuple[float, float]:
        low, high = self._answer.evidence or (0.0, 0.0)
        share = PICTURE_SHARE if modality == "composed" else 1.0
        return share * low, share * high

    def drops(self, gallery: Gallery, modality: Modality, twin: Twin) -> NDArray[np.float64] | None:
        """How far a twin's nearest cosines [B] lie below clean ones, in sd; None: nothing to compare with."""
        return self._standardised(gallery, modality, twin) if self._compared(modality) else None

    def _compared(self, modality: Modality) -> bool:
        """Whether there are clean queries to compare with; where there are none it is said once of a base."""
        if modality not in self._clean_queries and modality not in self._missed:
            self._missed.add(modality)
            log.warning(
                "the base model has no clean reference for such queries: the frozen twin answers alone",
                extra={"modality": modality},
            )
        return modality in self._clean_queries

    def _standardised(self, gallery: Gallery, modality: Modality, twin: Twin) -> NDArray[np.float64]:
        return self.below(gallery, modality, seen(gallery, twin).max(axis=1))

    def knows(self, modality: Modality) -> bool:
        """Whether the base has clean queries of this kind to compare with."""
        return modality in self._clean_queries

    def below(
        self, gallery: Gallery, modality: Modality, cosines: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """How far nearest cosines [B] lie below those of clean queries of a known kind, in their sd."""
        mean, sd = self.clean(gallery, modality)
        drops: NDArray[np.float64] = (mean - cosines) / sd
        return drops

    def agreed(self, gallery: Gallery, twin: Twin, cosine: NDArray[np.float64] | None = None) -> Agreement:
        """`agreement` [B] of a twin, whose cosines [B, K] may be known; kept for the two asked last.

        Weights and confidence of a batch look at the same twins, one after the other.
        """
        for known, version, shares in self._agreed:
            if known is twin and version == gallery.version:
                return shares
        cosine = seen(gallery, twin) if cosine is None else cosine
        shares = agreement(gallery, twin.hits.keys, cosine)
        self._agreed = (*self._agreed[-1:], (twin, gallery.version, shares))
        return shares

    def gathered(self, gallery: Gallery, modality: Modality, twin: Twin) -> NDArray[np.float64]:
        """How far a twin's answers have gathered on few labels (`index/gathered.py`): [B], all the same."""
        drop = float(self._standardised(gallery, modality, twin).mean())
        usual = self.clean_votes(gallery, modality)
        return np.full(len(twin.codes), gathered(self.agreed(gallery, twin).votes, usual, drop))

    def clean_votes(self, gallery: Gallery, modality: Modality) -> Votes:
        """Labels that clean queries' nearest items carry."""
        return self._of_clean(gallery, modality)[3]

    def classes(self, gallery: Gallery, modality: Modality) -> bool:
        """Whether items of this gallery share labels, so that agreement says something of a ranking."""
        return self.agreement_of_clean(gallery, modality) > SHARED

    def agreement_of_clean(self, gallery: Gallery, modality: Modality) -> float:
        """Mean share of the nearest items of clean queries that agree; own items are left out."""
        return self._of_clean(gallery, modality)[2]

    def _crowded(self, modality: Modality, twin: Twin, rows: NDArray[np.intp]) -> float:
        """How much nearer to each other these queries are than clean ones, as a share of what those leave.

        0 of kinds of query for which nobody has looked whether that tells a shift from a batch of one class.
        """
        if modality not in CORNERS:
            return 0.0
        clean = self._clean_together(modality)
        return (together(twin.features[rows]) - clean) / (1.0 - clean)

    def _clean_together(self, modality: Modality) -> float:
        if modality not in self._together:
            self._together[modality] = min(together(self._clean_queries[modality].features), MOST_ALIKE)
        return self._together[modality]

    def clean(self, gallery: Gallery, modality: Modality) -> tuple[float, float]:
        """Mean and sd of the clean source queries' cosine to their nearest item of this gallery."""
        return self._of_clean(gallery, modality)[:2]

    def _of_clean(self, gallery: Gallery, modality: Modality) -> tuple[float, float, float, Votes]:
        key = (gallery.version, modality)
        if key not in self._clean:
            clean = self._clean_queries[modality]
            codes = self._hash(torch.from_numpy(np.array(clean.features)), modality)
            hits = gallery.search(codes, self._answer.shortlist)
            near = others(gallery, Encoded(clean.features, codes), hits, clean.own)
            shares = agreement(gallery, np.where(near > -1.0, hits.keys, -1), near)
            found = near.max(axis=1)
            sd = max(float(found.std()), 1e-6)
            made = (float(found.mean()), sd, float(shares.near.mean()), shares.votes)
            self._clean[key] = made
            while len(self._clean) > KEPT:
                self._clean.pop(list(self._clean)[0], None)  # noqa: RUF015, another thread may be here, too
            return made
        return self._clean[key]


def _distinct(codes: Codes, counted: NDArray[np.bool_]) -> NDArray[np.intp]:
    """First rows of each code among those that count: a query asked again and again proves nothing new."""
    rows = np.flatnonzero(counted)
    firsts: NDArray[np.intp] = rows[np.sort(np.unique(codes[rows], axis=0, return_index=True)[1])]
    return firsts


def _agreed(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Standard errors by which neighbours agree more than before."""
    more = after - before
    return float(more.mean() / max(more.std() / math.sqrt(len(more)), 1e-6))


@dataclass(frozen=True)
class Agreement:
    """Shares [n] of nearest items that carry a label of the nearest of all: of ten, and of a hundred.

    `labels` are those of each item that is a neighbour of any, `place` [n, K] says which of them, `known`
    [n, K] where there is one.
    """

    near: NDArray[np.float64]
    around: NDArray[np.float64]
    labels: Sequence[frozenset[str]]
    place: NDArray[np.intp]
    known: NDArray[np.bool_]

    @cached_property
    def votes(self) -> Votes:
        """Labels of the hundred, of all n together: counted where somebody asks, weights do not."""
        return votes(self.labels, self.place, self.known)


def agreement(gallery: Gallery, keys: Keys, cosine: NDArray[np.float64]) -> Agreement:
    """How far the nearest items of a shortlist agree.

    The labels are the gallery's: of no query's label is anything known.

    Args:
        keys, cosine: [n, K] of the shortlist; key -1 is no item.
    """
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :AROUND]
    near = np.take_along_axis(keys, order, 1)
    unique, place = np.unique(near, return_inverse=True)
    labels = [frozenset(gallery.labels_of(key) if key >= 0 else ()) for key in unique.tolist()]
    place = place.reshape(near.shape)
    same, known = _alike(labels, place), near >= 0
    there = known.copy()
    same[:, :1] = known[:, :1] = True  # whatever it is, it agrees with itself
    ten, hundred = ((same & known)[:, :most].sum(1) / known[:, :most].sum(1) for most in (NEIGHBOURS, AROUND))
    return Agreement(ten, hundred, labels, place, there)


def _alike(labels: Sequence[frozenset[str]], place: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[n, K]: whether the labels in these places have one in common with those of the first in a row."""
    if all(len(own) < 2 for own in labels):  # as of most galleries, and much faster
        numbers: dict[str, int] = {}
        one = np.array([numbers.setdefault(label, len(numbers)) for own in labels for label in own or ("",)])
        some = np.array([bool(own) for own in labels])
        single: NDArray[np.bool_] = (one[place] == one[place[:, :1]]) & some[place]
        return single
    rows = [(labels[row[0]], [labels[at] for at in row]) for row in place.tolist()]
    return np.array([[not first.isdisjoint(other) for other in row] for first, row in rows]).reshape(
        place.shape
    )


def together(features: Floats) -> float:
    """Mean cosine of two different ones of unit features [n, D]; 0 of fewer than two."""
    count = len(features)
    if count < 2:
        return 0.0
    length = float(np.linalg.norm(features.astype(np.float64).sum(0)))
    return (length**2 / count - 1.0) / (count - 1.0)


def others(gallery: Gallery, queries: Encoded, hits: Hits, made_of: Floats | None) -> NDArray[np.float64]:
    """Cosine [B, K] to every item of the shortlist; -1 for what is left out.

    That is the query's own copy, told by its cosine, and the items with the features `made_of` [B, D].
    """
    cosine = cosines(gallery, queries, hits)
    cosine[cosine > COPY] = -1.0
    if made_of is not None:
        cosine[np.einsum("bkd,bd->bk", gallery.features(hits.keys), made_of) > COPY] = -1.0
    return cosine


def seen(gallery: Gallery, twin: Twin) -> NDArray[np.float64]:
    """A twin's cosines [B, K] to its shortlist: those that its answer was taken by, where it has them."""
    return cosines(gallery, twin.encoded, twin.hits) if twin.cosines is None else twin.cosines
