"""Quiet batches: where the frozen side shows no shift, the adapted twin is not asked and nothing is learned.

Held against the same pipeline without the gate, batch by batch from the same state: what is served is equal
to the bit, at the onset of a shift, on sorted, tiny and alternating streams.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from picture_world import noised, picture_world
from source_world import ITEMS, SIZE, WIDTH, source_world, unit

from core.config import Config
from core.protocols import Fusion
from core.records import Coordinates
from core.types import Floats, Hits, Outcome, Query, QueryBatch
from encoders.base_model import Base
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from qshift.build import Engine, assemble
from stream.session import Session


@pytest.fixture(scope="module")
def world() -> tuple[Base, VersionedGallery]:
    return source_world()


def built(world: tuple[Base, VersionedGallery], **answer: object) -> Engine:
    document = {"batch": {"size": SIZE, "floor": 8}, "answer": {"shortlist": 30, "frozen_share": 1, **answer}}
    return assemble(Config.model_validate(document), world[0], GalleryVersions(world[1]))


def batch(
    world: tuple[Base, VersionedGallery], seq: int, shift: float, rows: int = SIZE, item: int = -1
) -> QueryBatch:
    """Queries around items (or one item); `shift` moves all of them the same way."""
    rng, gallery = np.random.default_rng(seq), world[1]
    chosen = rng.integers(ITEMS, size=rows) if item < 0 else np.full(rows, item)
    noise = 0.4 * rng.normal(size=(rows, WIDTH)) / WIDTH**0.5
    direction = unit(np.random.default_rng(99).normal(size=(1, WIDTH)))
    vectors = unit(gallery.features(gallery.keys()[chosen]) + noise + shift * direction)
    encoder = world[0].encoders["vector"]
    queries = tuple(
        Query(Coordinates("q", 0, seq * SIZE + row), "vector", vector, prepared=encoder.prepare(vector))
        for row, vector in enumerate(vectors)
    )
    return QueryBatch("0:vector", seq, "vector", queries)


STREAMS = {
    "onset": [(0.0, SIZE, -1)] * 6 + [(1.6, SIZE, -1)] * 6,
    "alternating": [(1.6 * (n % 2), SIZE, -1) for n in range(12)],
    "sorted": [(0.0, SIZE, n) for n in range(12)],
    "tiny": [(1.6 * (n > 5), 3, -1) for n in range(12)],
}


def batches(world: tuple[Base, VersionedGallery], name: str) -> Iterator[QueryBatch]:
    for seq, (shift, rows, item) in enumerate(STREAMS[name]):
        yield batch(world, seq, shift, rows, item)


def same(one: Hits, other: Hits) -> bool:
    return np.array_equal(one.keys, other.keys) and np.array_equal(one.distances, other.distances)


def copied(engine: Engine, session: Session) -> Session:
    other = Session(engine.pipeline, "vector")
    other.restore(*session.snapshot())
    return other


class NeverQuiet:
    """A fusion that always asks the adapted twin."""

    def __init__(self, fusion: Fusion) -> None:
        self.twin, self.together = fusion.twin, fusion.together

    def quiet(self, *_: object) -> bool:
        return False


@pytest.mark.parametrize("name", STREAMS)
def test_what_is_served_is_what_fusion_would_serve(world: tuple[Base, VersionedGallery], name: str) -> None:
    gated, asking = built(world), built(world)
    asking.pipeline.retrieval.fusion = NeverQuiet(asking.pipeline.retrieval.fusion)
    session = Session(gated.pipeline, "vector")
    quiet = []
    for one in batches(world, name):
        before = session.state_hash()
        expected = copied(asking, session).answer(one)
        outcome = session.learn(session.answer(one))
        quiet.append(outcome.quiet)
        assert same(outcome.served, expected.served) and same(outcome.frozen.answer, expected.frozen.answer)
        assert outcome.state_hash == expected.state_hash == before
        np.testing.assert_array_equal(outcome.weights, expected.weights)
        if outcome.quiet:
            assert (outcome.weights == 0).all() and same(outcome.served, outcome.frozen.answer)
            assert (outcome.forwards, outcome.step and outcome.step.reason) == (1, "no-shift")
            assert session.state_hash() == before
        elif len(one) >= 8:
            assert session.state_hash() != before
    expected_quiet = {
        "onset": [True] * 6 + [False] * 6,
        "alternating": [True, False] * 6,
        "sorted": [True] * 12,
    }
    if name in expected_quiet:
        assert quiet == expected_quiet[name]


def test_a_shift_is_learned_as_soon_as_it_begins(world: tuple[Base, VersionedGallery]) -> None:
    """Quiet batches before a shift do not delay it: the state is that of a lane which only met the shift."""
    late, early = built(world), built(world)
    after, alone = Session(late.pipeline, "vector"), Session(early.pipeline, "vector")
    outcomes: list[Outcome] = []
    for one in batches(world, "onset"):
        outcomes.append(after.learn(after.answer(one)))
        if not outcomes[-1].quiet:
            alone.learn(alone.answer(one))
    assert sum(outcome.quiet for outcome in outcomes) == 6
    assert after.state_hash() == alone.state_hash()


def test_the_fused_answer_needs_the_gate_for_every_rule_but_none(
    world: tuple[Base, VersionedGallery],
) -> None:
    one = batch(world, 0, 0.0)
    for fuse in ("mixture", "max", "sum", "none"):
        engine = built(world, fuse=fuse)
        assert Session(engine.pipeline, "vector").answer(one).quiet == (fuse != "none")


@pytest.fixture(scope="module")
def pictures() -> tuple[Base, VersionedGallery, Floats]:
    return picture_world()


def test_the_onset_of_a_shift_aligns_as_if_it_had_been_expected(
    pictures: tuple[Base, VersionedGallery, Floats],
) -> None:
    """Early activations are kept where a shift is expected; an onset has a forward that ends with them."""
    base, gallery, shown = pictures
    engine = built((base, gallery))
    encoder, outcomes = base.encoders["image"], []
    surprised, expecting = Session(engine.pipeline, "image"), Session(engine.pipeline, "image")
    for seq, dark in enumerate((0, 0, 1, 1, 0, 1)):
        queries = []
        for row in range(SIZE):
            picture = shown[(seq * SIZE + row) % len(shown)] * (0.3 if dark else 1.0)
            seen = noised(picture, 1000 * seq + row, 8)
            at = Coordinates("q", 0, seq * SIZE + row)
            queries.append(Query(at, "image", b"", prepared=encoder.prepare(seen)))
        one = QueryBatch("0:image", seq, "image", tuple(queries))
        found = []
        for session in (surprised, expecting):
            if session is expecting:
                session.expects_shift = True
            found.append(session.learn(session.answer(one)))
        outcomes.append(found[0])
        assert found[0].quiet == found[1].quiet == (not dark)
        assert same(found[0].served, found[1].served)
        assert surprised.state_hash() == expecting.state_hash()
    assert [one.forwards for one in outcomes] == [1, 1, 2, 2, 1, 2]
    assert surprised.aligner is not None and surprised.aligner.styles() > 1
