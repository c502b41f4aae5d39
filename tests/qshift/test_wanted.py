"""What queries want of their answers, through the pipeline: filters, top, threshold.

The oracle of a filter is a gallery of the allowed items alone, which nobody filters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from core.config import Config
from core.errors import Refused
from core.expected import PARTS, fitted, written
from core.filters import ANYTHING, Wanted, filter_of, wanted
from core.records import Coordinates
from core.references import DriftReference, SourceConstants
from core.types import Codes, Floats, Hits, Keys, Outcome, Query, QueryBatch
from encoders.base_model import Base
from encoders.head import HashHead
from encoders.vector import VectorEncoder
from index.gallery import Backend, VersionedGallery
from index.versions import GalleryVersions
from qshift.build import Engine, assemble
from qshift.observers import watching
from stream.codec import Answer, decode_answer
from stream.session import Session

WIDTH, BITS, ITEMS, SIZE, SHORTLIST = 24, 64, 80, 32, 30
BACKENDS: list[Backend] = ["faiss", "exact"]


def unit(rows: np.ndarray) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


class World:
    """A base of vectors, its items, each with a number and a colour, and galleries of some of them."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        rng = np.random.default_rng(0)
        self.items = unit(rng.normal(size=(ITEMS, WIDTH)))
        weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
        self.head = HashHead(weight, np.zeros(BITS, np.float32), {"vector": np.zeros(WIDTH, np.float32)})
        clean = unit(self.items[rng.integers(ITEMS, size=200)] + 0.08 * rng.normal(size=(200, WIDTH)))
        zeros = np.zeros(len(clean), np.float32)
        self.base = Base(
            "test", BITS, WIDTH, {"vector": VectorEncoder(WIDTH)}, self.head,
            {"vector": SourceConstants(0.1, 2.0, 0.05, 1e-2, SIZE)}, {},
            {"vector": DriftReference(clean, zeros, zeros)}, "v",
        )  # fmt: skip
        self.attributes = [{"n": number, "colour": "rgb"[number % 3]} for number in range(ITEMS)]

    def gallery(
        self,
        chosen: Sequence[int] = range(ITEMS),
        backend: Backend = "exact",
        kind: type[VersionedGallery] = VersionedGallery,
    ) -> VersionedGallery:
        names, places = [f"item-{i}" for i in chosen], np.array(chosen, np.int64)
        codes = self.head.codes(torch.from_numpy(self.items[places]), "vector")
        return kind(
            BITS, names, codes, names, self.items[places], keys=places, backend=backend, base_version="v",
            attributes=[self.attributes[i] for i in chosen],
        )  # fmt: skip

    def engine(self, gallery: VersionedGallery | None = None, **answer: Any) -> Engine:
        document = {"batch": {"size": SIZE, "floor": 8}, "answer": {"shortlist": SHORTLIST, **answer}}
        return assemble(
            Config.model_validate(document), self.base, GalleryVersions(gallery or self.gallery())
        )

    def batch(self, seq: int, wants: Sequence[Wanted] = (), shift: float = 1.6) -> QueryBatch:
        rng = np.random.default_rng(seq)
        near = self.items[rng.integers(ITEMS, size=SIZE)] + 0.08 * rng.normal(size=(SIZE, WIDTH))
        vectors = unit(near + shift * np.eye(WIDTH)[0])
        queries = [
            Query(
                Coordinates("q", 0, seq * SIZE + row), "vector", vector, prepared=torch.from_numpy(vector),
                wanted=wants[row % len(wants)] if wants else ANYTHING,
            )
            for row, vector in enumerate(vectors)
        ]  # fmt: skip
        return QueryBatch("0:vector", seq, "vector", tuple(queries))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def run(engine: Engine, *batches: QueryBatch) -> tuple[list[Outcome], list[list[bytes]], Session]:
    session = Session(engine.pipeline, "vector")
    outcomes, answers = [], []
    for batch in batches:
        answered = session.answer(batch)
        answers.append([value for value, _, _ in engine.codec.answers(answered)])
        outcomes.append(session.learn(answered))
    return outcomes, answers, session


def drawn(rng: np.random.Generator) -> tuple[Wanted, list[int]]:
    """A filter, and the items that it allows."""
    low, high = sorted(int(n) for n in rng.integers(-5, ITEMS + 5, size=2))
    colours = [c for c in "rgbx" if rng.random() < 0.5] or ["r"]
    kind = rng.integers(3)
    said: dict[str, Any] = {} if kind == 1 else {"n": {"from": low, "to": high}}
    said |= {} if kind == 0 else {"colour": colours}
    right = [
        number for number in range(ITEMS)
        if (kind == 1 or low <= number <= high) and (kind == 0 or "rgb"[number % 3] in colours)
    ]  # fmt: skip
    return wanted(filter=said), right


def same(one: Hits, other: Hits, row: int) -> bool:
    return np.array_equal(one.keys[row], other.keys[row]) and np.array_equal(
        one.distances[row], other.distances[row]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rerank", [True, False])
def test_a_filtered_answer_is_that_of_a_gallery_of_the_allowed_items(
    world: World, backend: Backend, rerank: bool
) -> None:
    """A thousand filters, of both twins alone and of both together, where each counts as much."""
    rng, seq, seen = np.random.default_rng(4), 0, 0
    settings = {"evidence": None, "rerank": rerank}
    filtered = world.engine(world.gallery(backend=backend), **settings)
    while seen < 1000 // len(BACKENDS):  # each batch is asked of a gallery for each of its filters
        pairs = [drawn(rng) for _ in range(SIZE)]
        outcome = run(filtered, world.batch(seq, [want for want, _ in pairs]))[0][0]
        fusion = filtered.fusion
        for row, (_, right) in enumerate(pairs):
            alone = world.gallery(right)
            sides = []
            for twin in (outcome.frozen, outcome.adapted):
                hits = alone.search(twin.codes, SHORTLIST)
                sides.append(fusion.twin(alone, twin.encoded, hits))
                assert same(twin.answer, sides[-1].answer, row)
            served, _ = fusion.together(alone, "vector", sides[0], sides[1], np.zeros(SIZE, bool))
            assert same(outcome.served, served, row), (seq, row)
        seen, seq = seen + SIZE, seq + 1


@pytest.mark.parametrize("shift", [0.0, 1.6])
def test_who_wants_nothing_is_answered_to_the_bit_as_if_nobody_did(world: World, shift: float) -> None:
    wants = [ANYTHING, wanted(3), ANYTHING, wanted(25), wanted(filter={"colour": "r"}), ANYTHING]
    plain = run(world.engine(), *(world.batch(seq, (), shift) for seq in range(4)))
    mixed = run(world.engine(), *(world.batch(seq, wants, shift) for seq in range(4)))
    for number in range(4):
        for row in range(SIZE):
            if wants[row % len(wants)] is ANYTHING:
                assert mixed[1][number][row] == plain[1][number][row]
    assert mixed[1] != plain[1]


@pytest.mark.parametrize("shift", [0.0, 0.6, 1.6])
def test_what_queries_want_of_answers_teaches_nothing(world: World, shift: float) -> None:
    """State, weights, and every figure of an outcome but the answers come from the whole gallery."""
    wants = [wanted(5, {"n": 3}), wanted(filter={"n": -1})]
    plain = run(world.engine(), *(world.batch(seq, (), shift) for seq in range(4)))
    mixed = run(world.engine(), *(world.batch(seq, wants, shift) for seq in range(4)))
    assert plain[2].state_hash() == mixed[2].state_hash()
    for one, other in zip(plain[0], mixed[0]):
        assert np.array_equal(one.weights, other.weights) and one.quiet == other.quiet
        assert np.array_equal(one.frozen_entropy, other.frozen_entropy)
        assert np.array_equal(one.adapted.hits.keys, other.adapted.hits.keys) and one.step == other.step


def test_a_filter_that_allows_nothing_is_an_empty_answer(world: World) -> None:
    outcomes, answers, _ = run(world.engine(), world.batch(1, [wanted(filter={"colour": "x"})]))
    assert (outcomes[0].served.keys == -1).all()
    assert all(decode_answer(value).results == () for value in answers[0])


@pytest.mark.parametrize("rerank", [True, False])
def test_top_is_the_head_of_a_longer_answer(world: World, rerank: bool) -> None:
    """Of the answer that a configuration of that many gives; `answer.top` for who does not say."""
    tops = [1, 7, 10, 11, SHORTLIST, 0]
    engine = world.engine(rerank=rerank)
    found = run(engine, world.batch(1, [wanted(top or None) for top in tops]))[1][0]
    for top in {*tops} - {0} | {10}:
        whole = run(world.engine(rerank=rerank, top=top), world.batch(1))[1][0]
        for row, value in enumerate(found):
            if (tops[row % len(tops)] or 10) == top:
                assert decode_answer(value).results == decode_answer(whole[row]).results, (top, row)
    with pytest.raises(Refused, match=r"top: 31 items, at most 30 are served \(answer.shortlist\)"):
        engine.pipeline.admit(replace(world.batch(1).queries[0], wanted=wanted(31)))
    assert engine.pipeline.admit(replace(world.batch(1).queries[0], wanted=wanted(30))).wanted.top == 30


def test_filter_and_top_together(world: World) -> None:
    want = wanted(4, {"colour": ["g", "b"]})
    for answer in map(decode_answer, run(world.engine(), world.batch(1, [want]))[1][0]):
        assert len(answer.results) == 4
        assert all(int(name.removeprefix("item-")) % 3 for name, _ in answer.results)


class Asked(VersionedGallery):
    """Writes down how many queries each search with a filter is of; None: without."""

    asked: ClassVar[list[int | None]] = []

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        self.asked.append(None if allowed is None else len(codes))
        return super().search(codes, k, allowed)


def test_the_gallery_is_asked_once_for_each_filter_and_twin(world: World) -> None:
    asked = Asked.asked
    engine = world.engine(world.gallery(kind=Asked))
    run(engine, world.batch(0))
    asked.clear()
    run(engine, world.batch(1))
    plain = len(asked)
    assert not any(asked), "without a filter nothing is limited"
    asked.clear()
    wants = [wanted(filter={"n": 1}), ANYTHING, wanted(filter={"colour": "r"}), wanted(filter={"n": 1})]
    run(engine, world.batch(2, wants))
    assert [n for n in asked if n is not None] == [SIZE // 2, SIZE // 4] * 2
    assert len(asked) == plain + 4


# -- what an answer says --------------------------------------------------------------------------------


def decoded(answers: list[bytes]) -> list[Answer]:
    return [decode_answer(value) for value in answers]


def test_the_score_of_a_mixture_is_the_belief_of_both_twins(world: World) -> None:
    """Every item is a candidate, so that a softmax over all of them says what each twin believes."""
    engine = world.engine(evidence=None, shortlist=ITEMS)
    (outcome,), (answers,), _ = run(engine, world.batch(1))
    gallery = engine.versions.current()
    for row, answer in enumerate(decoded(answers)):
        assert (answer.decided_by, answer.weight) == ("mixture", 1.0)
        beliefs = []
        for twin in (outcome.frozen, outcome.adapted):
            cosines = [float(item @ twin.features[row]) for item in gallery.features(gallery.keys())]
            raised = [math.exp(cosine / 0.1) for cosine in cosines]
            beliefs.append([one / sum(raised) for one in raised])
        right = {f"item-{n}": (a + b) / 2 for n, (a, b) in enumerate(zip(*beliefs))}
        assert answer.scores == pytest.approx([right[name] for name, _ in answer.results], abs=2e-6)
        assert answer.scores == pytest.approx(sorted(right.values(), reverse=True)[:10], abs=2e-6)


def test_answers_by_codes_have_no_scores(world: World) -> None:
    answers = run(world.engine(rerank=False), world.batch(1))[1][0]
    assert {score for answer in decoded(answers) for score in answer.scores} == {None}


def test_the_score_of_a_twin_alone_is_its_cosine(world: World) -> None:
    engine = world.engine()
    (outcome,), (answers,), _ = run(engine, world.batch(1, shift=0.0))
    gallery = engine.versions.current()
    for row, answer in enumerate(decoded(answers)):
        assert (answer.decided_by, answer.weight) == ("frozen", 0.0)
        cosines = gallery.features(outcome.served.keys[row]) @ outcome.frozen.features[row]
        assert answer.scores == pytest.approx(cosines, abs=2e-6)


def test_without_fusion_the_adapted_twin_decides(world: World) -> None:
    answers = run(world.engine(fuse="none"), world.batch(1))[1][0]
    assert {answer.decided_by for answer in decoded(answers)} == {"adapted"}


def test_a_base_without_a_curve_is_not_sure_and_never_abstains(world: World) -> None:
    answers = decoded(run(world.engine(), world.batch(1, [wanted(threshold=1.0)]))[1][0])
    assert {(answer.confidence, answer.abstained) for answer in answers} == {(None, False)}
    assert all(len(answer.results) == 10 for answer in answers)


def test_a_filter_is_written_once_in_its_order() -> None:
    one, other = wanted(filter={"b": 1, "a": 2}), wanted(filter={"a": 2, "b": 1})
    assert one == other and hash(one) == hash(other) and one.filter == filter_of({"a": 2, "b": 1})


def test_what_abstained_is_counted_for_series_and_page(world: World) -> None:
    """By the same rule as answers, outside of the loop; a repeated batch counts once."""
    head = HashHead(world.head.weight.numpy(), np.zeros(BITS, np.float32), {"image": np.zeros(WIDTH)})
    base = replace(
        world.base, encoders={"image": VectorEncoder(WIDTH)}, head=head,
        constants={"image": world.base.constants["vector"]},
        reference={"image": world.base.reference["vector"]},
        extras={PARTS["image"]: written(fitted([-3.0, 0.0, 5.0, 30.0], [1.0, 0.8, 0.3, 0.0]))},
    )  # fmt: skip
    config = Config.model_validate({"batch": {"size": SIZE, "floor": 8}, "answer": {"shortlist": SHORTLIST}})
    engine = assemble(config, base, GalleryVersions(world.gallery()))
    session, seen = Session(engine.pipeline, "image"), watching(engine, "a title", "")
    sure = wanted(threshold=0.8)
    abstained = 0
    for seq, wants in enumerate(([sure], [ANYTHING], [sure, ANYTHING])):
        batch = world.batch(seq, wants, shift=0.2)
        queries = tuple(replace(query, modality="image") for query in batch.queries)
        answered = session.answer(replace(batch, lane="0:image", modality="image", queries=queries))
        said = decoded([value for value, _, _ in engine.codec.answers(answered)])
        abstained += sum(answer.abstained for answer in said)
        outcome = session.learn(answered)
        for observer in (seen.metrics, seen.history):
            observer.observe(outcome)
    for observer in (seen.metrics, seen.history):
        observer.observe(replace(outcome, repeated=True))
    assert 0 < abstained < 1.5 * SIZE
    registry = seen.metrics.registry
    assert registry.get_sample_value("qshift_abstained_answers_total", {"lane": "0:image"}) == abstained
    page = seen.history.snapshot()
    assert page["abstained"] == abstained and page["subtitle"].startswith(f"{ITEMS:,} items")
    fewer = world.gallery(range(ITEMS - 10))
    seen.searched(fewer)
    assert seen.history.snapshot()["subtitle"].startswith(f"{ITEMS - 10:,} items")
    assert registry.get_sample_value("qshift_index_info", {"version": fewer.version}) == 1
