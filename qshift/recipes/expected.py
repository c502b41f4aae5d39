"""How good answers are to be expected to be, by what is seen of a query without its label.

The base's own pictures are shifted in a few ways, aligned and answered; each answer has its true average
precision and its drop (`index.evidence`). One falling curve through all of them, of both twins, is what the
service shows beside labelled quality. It decides nothing.

Ours; docs/methods/expected.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from core.config import Config
from core.expected import fitted
from core.records import Coordinates
from core.references import ExpectedQuality
from core.seeds import generator
from core.types import Floats, Outcome, Query, QueryBatch, Twin
from encoders.base_model import Base
from index.evidence import Evidence, nearest
from index.exact import nearest as shortlisted
from index.fusion import BEHIND
from index.gallery import Label, VersionedGallery
from index.versions import GalleryVersions
from monitoring.ranking import ap_and_first, counted_levels
from qshift.build import Engine, assemble, with_method
from qshift.recipes.encode import BATCH, Count
from qshift.shifts.images import PICTURE_SHIFTS, Picture
from stream.session import Session

KINDS = ("blur", "brightness", "impulse", "pixelate", "invert", "jitter")
"""Of `PICTURE_SHIFTS`, as for choosing settings. "core" asks kin of three: impulse, brightness, pixelate."""
LEVELS = (0, 2, 4)
BATCHES = len(KINDS) * len(LEVELS)
"""Batches that `measure_expected` asks, and steps that it counts."""
PURPOSE = "expected quality"
"""Part of the key of every draw: query streams use other purposes, so no draw is shared."""

Curve = Callable[[Base], ExpectedQuality | None]
"""Measures a base that is whole but for this; None where nothing can be judged."""


@dataclass(frozen=True, slots=True)
class CleanPictures:
    """Queries as they will come, but without any shift.

    Args:
        pictures: n of uint8 [H, W, 3], at least a batch.
        labels: of each; items that carry it are right.
        own: [n] positions of the items that they are copies of, where those that will come are none: left
            out of ranking and cosine.
    """

    pictures: Sequence[Picture]
    labels: Sequence[str]
    own: NDArray[np.int64] | None = None


def gallery_of(base: Base, items: Floats, labels: Sequence[Label]) -> VersionedGallery:
    """Items by their unit features [N, D], with their labels."""
    codes = base.head.codes(torch.from_numpy(items), "image")
    names = [str(item) for item in range(len(items))]
    return VersionedGallery(base.bits, names, codes, labels, items, base_version=base.version)


def measure_expected(
    base: Base, gallery: VersionedGallery, clean: CleanPictures, seed: int = 0, count: Count | None = None
) -> ExpectedQuality | None:
    """The curve of a base's pictures; None where not one of their answers can be judged.

    Args:
        base: with an image tower and a reference of clean pictures.
        gallery: with features; its keys are 0..N-1.
        clean: what asks.
        seed: of which pictures ask, and of the shifts.
        count: takes `BATCHES` steps.
    """
    engine = assemble(with_method(Config(), "aligned+fused"), base, GalleryVersions(gallery))
    judge = _Judge(engine, gallery, clean)
    found: list[tuple[float, float]] = []
    for rows, outcome in _answered(engine, clean, seed):
        found += judge.of(rows, outcome.frozen)
        if not outcome.quiet:  # else the frozen twin stands for the adapted one
            found += judge.of(rows, outcome.adapted)
        if count is not None:
            count.step("answering shifted pictures")
    known = np.array([pair for pair in found if not np.isnan(pair[1])]).reshape(-1, 2)
    return fitted(known[:, 0], known[:, 1]) if len(known) else None


def _answered(engine: Engine, clean: CleanPictures, seed: int) -> Iterator[tuple[NDArray[np.int64], Outcome]]:
    """Each shift at each level: one batch, met by a lane that has seen nothing yet."""
    encoder = engine.base.encoders["image"]
    for kind in KINDS:
        shift = PICTURE_SHIFTS[kind]
        for level in LEVELS:
            which = f"{kind}/{level}"
            rows = generator(seed, which, PURPOSE).permutation(len(clean.pictures))[:BATCH]
            queries = []
            for place, row in enumerate(rows.tolist()):
                draw = generator(seed, f"{which}/{row}", PURPOSE)
                picture = shift.apply(clean.pictures[row], shift.levels[level], draw)
                at = Coordinates(PURPOSE, 0, place)
                queries.append(Query(at, "image", b"", prepared=encoder.prepare(picture)))
            session = Session(engine.pipeline, "image")
            batch = QueryBatch("0:image", 0, "image", tuple(queries))
            yield rows, session.learn(session.answer(batch))


class _Judge:
    """Drop and true average precision of a twin's answers, own items left out."""

    def __init__(self, engine: Engine, gallery: VersionedGallery, clean: CleanPictures) -> None:
        answer, base = engine.config.answer, engine.base
        self._gallery, self._clean, self._shortlist = gallery, clean, answer.shortlist
        self._mean, self._sd = Evidence(answer, base.reference, base.head.codes).clean(gallery, "image")
        self._items = gallery.features(gallery.keys())

    def of(self, rows: NDArray[np.int64], twin: Twin) -> list[tuple[float, float]]:
        """(drop, AP) of each row; AP is NaN where no other item carries its label."""
        own = None if self._clean.own is None else self._clean.own[rows]
        near = nearest(self._gallery, twin.encoded, twin.hits, but=own)
        bits, cosines = self._gallery.distances(twin.codes), twin.features @ self._items.T
        found = []
        for place, row in enumerate(rows.tolist()):
            right = np.zeros(len(self._items), np.int64)
            right[self._gallery.carriers(self._clean.labels[row])] = 1
            but = None if own is None else int(own[place])
            precision = average_precision(bits[place], cosines[place], right, self._shortlist, but)
            found.append((float((self._mean - near[place]) / self._sd), precision))
        return found


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
