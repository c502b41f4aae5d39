"""The frozen twin asked for a sample under a strong shift that has lasted (`answer.frozen_share`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from picture_world import noised, picture_world
from source_world import SIZE

from core.config import Config
from core.records import Coordinates
from core.types import Floats, Outcome, Query, QueryBatch
from encoders.base_model import Base
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from index.weighing import MORE
from monitoring.judged import included
from qshift.benchmarks.suite.judge import Judge
from qshift.build import Engine, assemble, ranked
from stream.frozen import Glance, Seen
from stream.sampling import FEWEST, LASTING, STRONG, Sampling, padded, strong
from stream.session import Session

World = tuple[Base, VersionedGallery, Floats]
ITEMS_SHOWN = 128
DARK, DARKER, CLEAN = 0.45, 0.2, 1.0


@pytest.fixture(scope="module")
def world() -> World:
    return picture_world()


def built(world: World, share: float = 0.2, rate: float = 0.25, **adapt: object) -> Engine:
    document = {
        "batch": {"size": SIZE, "floor": 8}, "adapt": adapt, "labels": {"rate": rate},
        "answer": {"shortlist": 30, "frozen_share": share},
    }  # fmt: skip
    return assemble(Config.model_validate(document), world[0], GalleryVersions(world[1]))


def batch(world: World, seq: int, light: float, rows: int = SIZE, clean: int = 0) -> QueryBatch:
    """Pictures in little light; `clean` of them in full."""
    encoder, shown = world[0].encoders["image"], world[2]
    queries = []
    for row in range(rows):
        picture = shown[(seq * SIZE + row) % len(shown)] * (light if row >= clean else CLEAN)
        at = Coordinates("q", 0, seq * SIZE + row)
        prepared = encoder.prepare(noised(picture, 1000 * seq + row, 8))
        queries.append(Query(at, "image", b"", prepared=prepared))
    return QueryBatch("0:image", seq, "image", tuple(queries))


def through(session: Session, one: QueryBatch) -> Outcome:
    return session.learn(session.answer(one))


def lasting(world: World, engine: Engine) -> Session:
    """A lane that a strong shift has lasted in."""
    session = Session(engine.pipeline, "image")
    for seq in range(LASTING):
        assert through(session, batch(world, seq, DARK)).paired.all()
    return session


def copied(engine: Engine, session: Session) -> Session:
    other = Session(engine.pipeline, "image")
    other.restore(*session.snapshot())
    return other


def test_the_frozen_twin_is_asked_for_the_labelled_and_pairs_them_as_ever(world: World) -> None:
    sampled, whole = built(world), built(world, share=1.0)
    session = lasting(world, sampled)
    other = copied(whole, session)
    one = batch(world, LASTING, DARK)
    part, full = through(session, one), through(other, one)
    paired = part.paired
    assert full.paired.all() and paired.sum() == FEWEST
    labelled = [included(query.at, "qshift", 0.25) for query in one.queries]
    assert 0 < sum(labelled) < FEWEST and paired[labelled].all()
    assert (part.weights[~paired] == np.inf).all() and (part.weights[paired] == STRONG).all()
    np.testing.assert_allclose(part.frozen.features[paired], full.frozen.features[paired], atol=1e-5)
    np.testing.assert_array_equal(part.frozen.codes[paired], full.frozen.codes[paired])
    np.testing.assert_array_equal(part.frozen.answer.keys[paired], full.frozen.answer.keys[paired])
    # What stands for the frozen twin elsewhere is the adapted one, which is served.
    np.testing.assert_array_equal(part.frozen.codes[~paired], part.adapted.codes[~paired])
    np.testing.assert_array_equal(part.served.keys[~paired], part.adapted.answer.keys[~paired])
    assert not len(part.frozen_entropy) and len(full.frozen_entropy) == SIZE


@pytest.mark.parametrize("clean", [SIZE, SIZE // 2])
def test_the_end_of_a_shift_is_met_by_both_twins_at_once(world: World, clean: int) -> None:
    """Where the sample is not shifted, or not as strongly, all rows are asked for before it is answered."""
    sampled, whole = built(world), built(world, share=1.0)
    session = lasting(world, sampled)
    other, one = copied(whole, session), batch(world, LASTING, DARK, clean=clean)
    part, full = through(session, one), through(other, one)
    assert part.paired.all() and session.lasting == 0 and part.quiet == full.quiet == (clean == SIZE)
    np.testing.assert_array_equal(part.weights, full.weights)
    np.testing.assert_array_equal(part.served.keys, full.served.keys)
    np.testing.assert_allclose(part.frozen.features, full.frozen.features, atol=1e-5)
    assert len(part.frozen_entropy) == SIZE
    assert through(session, batch(world, LASTING + 1, DARK)).paired.all()  # and the next shift has to last


def test_a_lane_that_is_restored_asks_for_the_same_rows(world: World) -> None:
    """A kill between any two batches: the answers are byte-identical."""
    engine = built(world)
    session = Session(engine.pipeline, "image")
    for seq, light in enumerate([DARK] * (LASTING + 2) + [CLEAN, DARK]):
        one = batch(world, seq, light)
        again = through(copied(engine, session), one)
        outcome = through(session, one)
        assert outcome.state_hash == again.state_hash
        np.testing.assert_array_equal(outcome.paired, again.paired)
        for mine, theirs in ((outcome.served, again.served), (outcome.frozen.answer, again.frozen.answer)):
            np.testing.assert_array_equal(mine.keys, theirs.keys)
            np.testing.assert_array_equal(mine.scores, theirs.scores)
        assert copied(engine, session).state_hash() == session.state_hash()


def test_how_long_it_has_lasted_is_part_of_the_state(world: World) -> None:
    session = lasting(world, built(world))
    tensors, meta = session.snapshot()
    assert meta["lasting"] == LASTING
    before = session.state_hash()
    session.lasted(1)
    assert session.state_hash() != before
    session.restore(tensors, {**meta, "lasting": LASTING})
    assert session.state_hash() == before
    session.reset()
    assert session.lasting == 0 and "lasting" not in session.snapshot()[1]


def test_asked_for_all_nothing_is_counted(world: World) -> None:
    """States are what they were before there was a setting."""
    session = lasting(world, built(world, share=1.0))
    assert session.lasting == 0 and "lasting" not in session.snapshot()[1]
    default = Config()
    whole = default.model_copy(update={"answer": default.answer.model_copy(update={"frozen_share": 1.0})})
    assert "frozen_share" not in str(whole.decisions()) and default.answer.frozen_share == 0.3
    assert {name for name, part in whole.decisions().items() if default.decisions()[name] != part} == {
        "answer"
    }


@pytest.mark.parametrize("adapt", [{"method": "rest"}, {"method": "neo"}, {"align": {"enabled": False}}])
def test_what_learns_from_the_frozen_features_has_all_of_them(world: World, adapt: dict[str, object]) -> None:
    engine = built(world, **adapt)
    session = Session(engine.pipeline, "image")
    session.lasting = LASTING
    outcome = through(session, batch(world, 0, DARK))
    assert np.isfinite(outcome.frozen.features).all()
    assert outcome.paired.all() or adapt == {"method": "neo"}  # which looks at the adapted ones alone


def test_whoever_looks_at_the_source_has_all_rows_asked_for(world: World) -> None:
    engine = built(world)
    session, one = lasting(world, engine), batch(world, LASTING, DARK)
    answered = session.answer(one)
    assert not answered.side.paired.all() and torch.isnan(answered.side.meant).any()
    expected = (
        world[0]
        .encoders["image"]
        .encode(world[0].encoders["image"].collate([query.prepared for query in one.queries], SIZE))
    )
    torch.testing.assert_close(answered.source, expected, atol=1e-5, rtol=1e-5)
    assert answered.side.paired.all()


def test_a_sample_holds_what_is_drawn_and_fills_its_rows(world: World) -> None:
    engine = built(world)
    session, one = lasting(world, engine), batch(world, LASTING, DARK)
    for drawn, asked in ((0, FEWEST), (5, FEWEST), (FEWEST, FEWEST), (FEWEST + 1, FEWEST + 8), (25, SIZE)):
        rows = Sampling(lambda at, most=drawn: at.offset % SIZE < most).rows(session, one)
        assert rows[:drawn].all() and rows.sum() == asked
    assert Sampling(lambda at: False).rows(session, batch(world, LASTING, DARK, rows=20)).all()
    mended = replace(one.queries[3], repaired="a word")
    some = replace(one, queries=(*one.queries[:3], mended, *one.queries[4:]))
    assert Sampling(lambda at: False).rows(session, some).all()
    assert [padded(count) for count in (1, 8, 9, 19)] == [8, 8, 16, 24]
    assert STRONG == MORE


def test_where_the_frozen_vote_still_counts_it_is_asked_for_all(world: World) -> None:
    """The adapted twin outvotes it four to one in all rows, and yet many answers are others without it."""
    session = Session(built(world).pipeline, "image")
    for seq in range(LASTING + 2):
        outcome = through(session, batch(world, seq, DARKER))
        assert outcome.paired.all() and (outcome.weights == STRONG).all()


def test_the_adapted_twin_has_to_outvote_and_to_answer_as_both_do() -> None:
    def said(rows: int, weighty: int, differing: int) -> bool:
        return strong(
            np.where(np.arange(rows) < weighty, 4.0, 2.0).astype(np.float32), np.arange(rows) >= differing
        )

    assert said(64, 48, 5) and not said(64, 47, 0) and not said(64, 64, 6)
    assert said(16, 12, 2) and not said(16, 11, 0) and not said(16, 16, 3) and not said(15, 15, 0)
    assert strong(np.full(16, np.inf, np.float32), np.ones(16, np.bool_))  # labels may say so


def test_a_glance_sees_what_a_whole_forward_sees(world: World) -> None:
    encoder = world[0].encoders["image"]
    pixels = encoder.collate([query.prepared for query in batch(world, 0, DARK).queries], SIZE)
    whole: list[int] = []
    expected = {}

    def watch(layer: int, inputs: torch.Tensor) -> None:
        whole.append(layer)
        expected[layer] = inputs.clone()

    features = encoder.encode(pixels, None, watch)
    glance = Glance((0, 2))
    with pytest.raises(Seen):
        encoder.encode(pixels, None, glance)
    assert len(whole) == 4 and glance.seen.keys() == {0, 2}
    assert all(torch.equal(glance.seen[layer], expected[layer]) for layer in (0, 2))
    torch.testing.assert_close(encoder.encode(pixels), features)  # and leaves nothing behind


def test_the_benchmark_judges_the_frozen_twin_of_all_rows(world: World) -> None:
    sampled, whole = built(world), built(world, share=1.0)
    session = lasting(world, sampled)
    other, one = copied(whole, session), batch(world, LASTING, DARK)
    part, full = through(session, one), through(other, one)
    labels = {query.at.offset: world[1].identifier(query.at.offset % ITEMS_SHOWN) for query in one.queries}
    judges = [Judge(labels, ranked(sampled), {}, lambda _: full.frozen) for _ in range(2)]
    for judge, outcome in zip(judges, (part, full)):
        judge.observe(outcome)
    assert len(judges[0].frozen) == SIZE and judges[0].frozen == judges[1].frozen
    assert judges[0].adapted == judges[1].adapted
