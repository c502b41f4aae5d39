"""How often a batch looks at the gallery: at each shortlist once, and twins that see the same search once.

Counted with a gallery that notes what it is asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from source_world import ITEMS, SIZE, WIDTH, source_world, unit

from core.config import Config
from core.records import Coordinates
from core.types import Codes, Floats, Hits, Keys, Query, QueryBatch
from encoders.base_model import Base
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from qshift.build import assemble
from stream.session import Session

SHORTLIST = 30


class Asked(VersionedGallery):
    """Notes the rows of each search, and the keys [B, K] of each look at features."""

    def note(self) -> None:
        self.searched: list[int] = []
        self.looked: list[tuple[int, ...]] = []

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        self.searched.append(len(codes))
        return super().search(codes, k, allowed)

    def features(self, keys: Keys) -> Floats:
        self.looked.append(keys.shape)
        return super().features(keys)


def world(adapt: dict[str, Any]) -> tuple[Session, Asked, Base]:
    base, plain = source_world()
    keys = plain.keys()
    ids = [plain.identifier(key) for key in keys.tolist()]
    gallery = Asked(
        plain.bits, ids, plain.codes_of(keys), ids, plain.features(keys), backend="exact", base_version="v"
    )
    gallery.note()
    document = {"batch": {"size": SIZE, "floor": 8}, "answer": {"shortlist": SHORTLIST}, "adapt": adapt}
    engine = assemble(Config.model_validate(document), base, GalleryVersions(gallery))
    return Session(engine.pipeline, "vector"), gallery, base


def batch(base: Base, shift: float, seq: int = 0) -> QueryBatch:
    rng = np.random.default_rng(seq)
    items = source_world()[1].features(np.arange(ITEMS))
    noise = 0.4 * rng.normal(size=(SIZE, WIDTH)) / WIDTH**0.5
    direction = unit(np.random.default_rng(99).normal(size=(1, WIDTH)))
    vectors = unit(items[rng.integers(ITEMS, size=SIZE)] + noise + shift * direction)
    prepare = base.encoders["vector"].prepare
    queries = [
        Query(Coordinates("q", 0, row), "vector", vector, prepared=prepare(vector))
        for row, vector in enumerate(vectors)
    ]
    return QueryBatch("0:vector", seq, "vector", tuple(queries))


@pytest.mark.parametrize(
    ("method", "shift", "searches", "shortlists"),
    [
        ("centring", 1.6, 2, 3),  # each twin's, and that of both together
        ("frozen", 1.6, 1, 2),  # of twins that see the same, and that of both together
        ("centring", 0.0, 1, 1),  # quiet: the adapted twin is not asked
    ],
)
def test_a_batch_looks_up_each_shortlist_once(
    method: str, shift: float, searches: int, shortlists: int
) -> None:
    session, gallery, base = world({"method": method, "align": {"enabled": method != "frozen"}})
    session.learn(session.answer(batch(base, 0.0)))  # looks at all clean queries, once
    if method == "centring":  # a state in which the adapted twin sees something else
        session.learn(session.answer(batch(base, shift, 1)))
    gallery.note()
    answered = session.answer(batch(base, shift, 2))
    assert answered.quiet == (shift == 0.0)
    assert gallery.searched == [SIZE] * searches
    weighed = bool((answered.weights > 0).any()) or answered.quiet
    assert gallery.looked.count((SIZE, SHORTLIST)) == shortlists - (not weighed)
    assert gallery.looked.count((SIZE, 1)) == 1  # entropy: the nearest item of each row, nothing else
    assert len(gallery.looked) == shortlists - (not weighed) + 1


def test_a_twin_that_sees_the_same_is_weighed_as_a_twin_of_its_own() -> None:
    """Not for quiet: the mixture of a twin with itself is that twin's answer, whatever its weight."""
    session, _, base = world({"method": "frozen", "align": {"enabled": False}})
    answered = session.answer(batch(base, 1.6))
    assert not answered.quiet and answered.adapted is not answered.frozen
    view, none = session.view(), np.zeros(SIZE, np.bool_)
    searched = replace(answered.adapted, cosines=None)  # as if it had been searched by itself
    served, weights = view.together(answered.frozen, searched, none)
    np.testing.assert_array_equal(weights, answered.weights)
    np.testing.assert_array_equal(served.keys, answered.served.keys)
    np.testing.assert_array_equal(answered.served.keys, answered.frozen.answer.keys)
