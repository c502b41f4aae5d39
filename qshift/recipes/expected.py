"""How good answers are to be expected to be, by what is seen of a query without its label.

The base's own clean queries are shifted in a few ways, aligned and answered; each answer has its true average
precision, its drop, the share of its hundred nearest items that agree (`index.evidence`), and how far its
batch has gathered on few labels (`index.gathered`). What is learned
from all of them, of both twins, is what the service shows beside labelled quality. It decides nothing.

Ours; docs/methods/expected.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from core.config import Config
from core.expected import ADAPTED, BOTH, FROZEN, fitted
from core.records import Coordinates
from core.references import ExpectedQuality
from core.seeds import generator
from core.types import Floats, Modality, Outcome, Query, QueryBatch, Twin
from encoders.base_model import Base
from index.evidence import Evidence, agreement
from index.exact import nearest as shortlisted
from index.fusion import BEHIND, cosines
from index.gallery import Label, VersionedGallery
from index.gathered import gathered
from index.versions import GalleryVersions
from monitoring.ranking import ap_and_first, counted_levels
from qshift.build import Engine, assemble, with_method
from qshift.recipes.asked import OF_CLASSES, PURPOSE, WAYS, CleanQueries
from qshift.recipes.encode import BATCH, Count
from stream.session import Session

JUDGED = 20_000
"""Items among which the quality to expect is measured, drawn where there are more."""
Curves = Mapping[Modality, ExpectedQuality]
Curve = Callable[[Base], Curves]
"""Measures a base that is whole but for this, by kind of query; without kinds of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was measured of n answers: drops [n], shares of agreeing items [n], average precision [n].

    `gathered` [n] is how far its batch has gathered on few labels, `ways` [n] the name of its shift, `twins`
    [n] whose they are, see `core.expected.FROZEN`; `classes` whether the items share labels, so that shares
    say something.
    """

    drops: NDArray[np.float64]
    shares: NDArray[np.float64]
    precision: NDArray[np.float64]
    twins: NDArray[np.int64]
    classes: bool
    gathered: NDArray[np.float64]
    ways: NDArray[np.str_]


def gallery_of(
    base: Base, items: Floats, labels: Sequence[Label], modality: Modality = "image"
) -> VersionedGallery:
    """Items by their unit features [N, D], with their labels; `modality` is theirs."""
    codes = base.head.codes(torch.from_numpy(items), modality)
    names = [str(item) for item in range(len(items))]
    return VersionedGallery(base.bits, names, codes, labels, items, base_version=base.version)


def first_found(queries: Floats, items: Floats, own: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Positions [n] of the items [N, D] nearest to clean queries [n, D]: right where nobody says what is.

    Args:
        own: [n] positions of items that are left out.
    """
    cosine = queries @ items.T
    if own is not None:
        cosine[np.arange(len(own)), own] = -2.0
    nearest: NDArray[np.int64] = cosine.argmax(1)
    return nearest


def curves_of(
    base: Base, gallery: VersionedGallery, asked: Iterable[CleanQueries], seed: int = 0,
    count: Count | None = None,
) -> Curves:  # fmt: skip
    """`measure_expected` of several kinds of query that ask one gallery."""
    found = {clean.modality: measure_expected(base, gallery, clean, seed, count) for clean in asked}
    return {modality: curve for modality, curve in found.items() if curve is not None}


def measure_expected(
    base: Base, gallery: VersionedGallery, clean: CleanQueries, seed: int = 0, count: Count | None = None
) -> ExpectedQuality | None:
    """The curve of a base's queries; None where not one of their answers can be judged.

    Args:
        base: with an encoder and a reference of clean queries of this kind.
        gallery: with features; its keys are 0..N-1.
        clean: what asks.
        seed: of which queries ask, and of the shifts.
        count: takes `batches_asked` steps.
    """
    found = measured_answers(base, gallery, clean, seed, count)
    if not len(found.precision):
        return None
    shares = found.shares if found.classes else None
    return fitted(found.drops, found.precision, shares, found.twins, found.gathered, found.ways)


def measured_answers(
    base: Base, gallery: VersionedGallery, clean: CleanQueries, seed: int = 0, count: Count | None = None
) -> Answers:
    """What `measure_expected` learns from; answers that cannot be judged are left out."""
    engine = assemble(with_method(Config(), "aligned+fused"), base, GalleryVersions(gallery))
    judge = _Judge(engine, gallery, clean)
    found: list[tuple[float, float, float, float, int, str]] = []
    ways = [way for way in WAYS[clean.modality] if judge.classes or way not in OF_CLASSES]
    for way, rows, outcome in _answered(engine, clean, seed, ways):
        alone = outcome.adapted is outcome.frozen  # nothing was shifted: the adapted twin was not asked
        found += [(*seen, BOTH if alone else FROZEN, way) for seen in judge.of(rows, outcome.frozen)]
        if not alone:
            found += [(*seen, ADAPTED, way) for seen in judge.of(rows, outcome.adapted)]
        if count is not None:
            count.step("answering shifted queries")
    if count is not None:
        for _ in range(len(WAYS[clean.modality]) - len(ways)):
            count.step("answering shifted queries")
    known = [answer for answer in found if not np.isnan(answer[2])]
    drops, shares, precision, together = np.array([answer[:4] for answer in known]).reshape(-1, 4).T
    twins = np.array([answer[4] for answer in known], np.int64)
    named = np.array([answer[5] for answer in known], np.str_)
    return Answers(drops, shares, precision, twins, judge.classes, together, named)


def _answered(
    engine: Engine, clean: CleanQueries, seed: int, ways: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.int64], Outcome]]:
    """Each shift at each level: one batch, met by a lane that has seen nothing yet."""
    kind = clean.modality
    for which in ways:
        rows = generator(seed, which, PURPOSE).permutation(len(clean.contents))[:BATCH]
        queries = []
        for place, row in enumerate(rows.tolist()):
            content = WAYS[kind][which](clean.contents[row], generator(seed, f"{which}/{row}", PURPOSE))
            asked = Query(Coordinates(PURPOSE, 0, place), kind, content)
            queries.append(engine.pipeline.admit(asked))
        session = Session(engine.pipeline, kind)
        batch = QueryBatch(f"0:{kind}", 0, kind, tuple(queries))
        yield which, rows, session.learn(session.answer(batch))


class _Judge:
    """Drop, agreement, true average precision and gathering of a twin's answers, own items left out."""

    def __init__(self, engine: Engine, gallery: VersionedGallery, clean: CleanQueries) -> None:
        answer, base, kind = engine.config.answer, engine.base, clean.modality
        self._gallery, self._clean, self._shortlist = gallery, clean, answer.shortlist
        evidence = Evidence(answer, base.reference, base.head.codes)
        self._mean, self._sd = evidence.clean(gallery, kind)
        self.classes, self._usual = evidence.classes(gallery, kind), evidence.clean_votes(gallery, kind)
        self._items = gallery.features(gallery.keys())

    def of(self, rows: NDArray[np.int64], twin: Twin) -> list[tuple[float, float, float, float]]:
        """(drop, share, AP, gathered) of each row; AP is NaN where no other item carries its label."""
        own = None if self._clean.own is None else self._clean.own[rows]
        keys, near = twin.hits.keys, cosines(self._gallery, twin.encoded, twin.hits)
        if own is not None:
            gone = keys == own[:, None]
            keys, near = np.where(gone, -1, keys), np.where(gone, -1.0, near)
        drops = (self._mean - near.max(axis=1)) / self._sd
        agreed = agreement(self._gallery, keys, near)
        together = gathered(agreed.votes, self._usual, float(drops.mean()))
        bits, every = self._gallery.distances(twin.codes), twin.features @ self._items.T
        found = []
        for place, row in enumerate(rows.tolist()):
            right = self._right(self._clean.labels[row])
            but = None if own is None else int(own[place])
            precision = average_precision(bits[place], every[place], right, self._shortlist, but)
            found.append((float(drops[place]), float(agreed.around[place]), precision, together))
        return found

    def _right(self, label: Label) -> NDArray[np.int64]:
        right = np.zeros(len(self._items), np.int64)
        for one in (label,) if isinstance(label, str) else label:
            right[self._gallery.carriers(one)] = 1
        return right


def average_precision(
    bits: NDArray[np.int32],
    cosines: Floats,
    relevant: NDArray[np.int64],
    shortlist: int,
    but: int | None = None,
) -> float:
    """AP of a twin's own ranking: the shortlist by code, ranked by cosine, the others behind it by code.

    Args:
        bits, cosines, relevant: [N] of every item; `relevant` 1 or 0.
        shortlist: how many are ranked by cosine.
        but: position of an item that is not there.
    """
    there = np.ones(len(bits), np.int64)
    if but is not None:
        bits = bits.copy()
        there[but], bits[but] = 0, bits.max() + 1
    short = shortlisted(bits, shortlist, np.bincount(bits))
    places = bits + BEHIND
    places[short] = 1.0 - cosines[short]
    return ap_and_first(counted_levels(places, relevant * there, there))[0]
