"""The served answer: twin fusion against a loop, its weight by a loop, and judged as it was served."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from core.config import Config
from core.records import Coordinates
from core.references import DriftReference
from core.types import Encoded, Floats, Hits, Twin
from encoders.head import HashHead
from index.evidence import AROUND, COPY, KEPT, NEIGHBOURS, Evidence, agreement, seen, together
from index.fusion import TwinFusion
from index.gallery import VersionedGallery
from index.judging import Judge
from index.weighing import CLASSES, HIT, SEVERE, Drop, limited, weight
from monitoring.judged import Remembered
from monitoring.ranking import Levels, ap_and_first, average_precision, counted_levels, recall_at_1

WIDTH, BITS, ITEMS, TOP = 16, 32, 30, 5


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def directions(seed: int, rows: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(rows, WIDTH)))


def near(items: np.ndarray, spread: float, seed: int) -> np.ndarray:
    """Queries around items."""
    return unit(items + spread * np.random.default_rng(seed).normal(size=items.shape) / WIDTH**0.5)


def alike(queries: np.ndarray) -> float:
    """Mean cosine of two different queries, pair by pair."""
    pairs = [float(a @ b) for i, a in enumerate(queries.astype(np.float64)) for b in queries[:i]]
    return sum(pairs) / len(pairs) if pairs else 0.0


class Answers(NamedTuple):
    frozen: Hits
    adapted: Hits
    served: Hits
    weights: Floats


class World:
    """A gallery, a head, clean reference queries, and how both twins see a batch."""

    def __init__(
        self, reference: np.ndarray | None = None, count: int = ITEMS, classes: int = 0, **answer: Any
    ) -> None:
        settings = {"top": TOP, "shortlist": 8, **answer}
        self.config = Config.model_validate({"answer": settings})
        self.items = directions(0, count)
        weight = np.random.default_rng(1).normal(size=(BITS, WIDTH)).astype(np.float32)
        self.head = HashHead(weight, np.zeros(BITS, np.float32), {"vector": np.zeros(WIDTH, np.float32)})
        codes = self.codes(self.items)
        names = [f"item-{i}" for i in range(count)]
        keys = np.arange(count, dtype=np.int64) * 3 + 7  # not the positions
        labels = names
        if classes:
            self.items = unit(self.items + directions(9, classes)[np.arange(count) % classes])
            codes, labels = self.codes(self.items), [f"class-{i % classes}" for i in range(count)]
        self.gallery = VersionedGallery(BITS, names, codes, labels, self.items, keys=keys, backend="exact")
        self.clean = near(self.items[np.arange(60) % count], 0.5, 2) if reference is None else reference
        zeros = np.zeros(len(self.clean), np.float32)
        self.known = {"vector": DriftReference(self.clean, zeros, zeros)}
        self.weigher = Evidence(self.config.answer, self.known, self.head.codes)
        self.fusion = TwinFusion(self.config.answer, self.weigher)
        self.judge = Judge(self.config.answer, self.fusion)

    def levels(self, kept: Remembered, label: str) -> list[Levels]:
        twins = (
            Encoded(features[None], code[None])
            for features, code in (
                (kept.frozen_features, kept.frozen_code), (kept.adapted_features, kept.adapted_code)
            )
        )  # fmt: skip
        found = self.judge.rankings(self.gallery, *twins, kept.weight, label)
        return [counted_levels(*counts) for counts in found]

    def codes(self, features: np.ndarray) -> np.ndarray:
        return self.head.codes(torch.from_numpy(features), "vector")

    def seen(self, features: np.ndarray) -> Twin:
        encoded = Encoded(features, self.codes(features))
        hits = self.gallery.search(encoded.codes, self.config.answer.shortlist)
        return self.fusion.twin(self.gallery, encoded, hits)

    def answer(
        self, adapted: np.ndarray, frozen: np.ndarray, repaired: Any = None, modality: Any = "vector"
    ) -> Answers:
        marks = np.zeros(len(frozen), bool) if repaired is None else np.array(repaired)
        one, other = self.seen(frozen), self.seen(adapted)
        served, weights = self.fusion.together(self.gallery, modality, one, other, marks)
        return Answers(one.answer, other.answer, served, weights)

    def slow_weights(self, adapted: np.ndarray, frozen: np.ndarray, counted: list[int]) -> list[float]:
        """Weights of all rows, by the evidence of those that count."""
        usual = self.usual(self.clean)
        lost, left = self.drops(frozen, usual), self.drops(adapted, usual)
        hit = [row for row in counted if lost[row] > HIT] or counted
        values = sorted(lost[row] for row in counted)
        median = (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2
        drop = Drop(
            sum(values) / len(values), median, sum(lost[row] for row in hit) / len(hit),
            sum(lost[row] - left[row] for row in hit) / len(hit),
            (alike(frozen[counted]) - alike(adapted[counted])) / (1 - alike(self.clean)), len(counted),
        )  # fmt: skip
        assert self.config.answer.evidence is not None
        found = []
        for row in range(len(frozen)):
            one = weight(drop, self.config.answer.evidence)
            one = min(one, 0.25) if lost[row] <= 0 else one
            farther = left[row] >= lost[row] + 1 and drop.apart < 0.15
            found.append(min(one, 0.5) if farther else one)
        return found

    def usual(self, clean: np.ndarray) -> tuple[float, float]:
        """Mean and spread of the nearest cosine of clean queries, by a loop."""
        nearest = [self.nearest(query, False) for query in clean]
        mean = sum(nearest) / len(nearest)
        return mean, math.sqrt(sum((v - mean) ** 2 for v in nearest) / len(nearest))

    def drops(self, queries: np.ndarray, usual: tuple[float, float]) -> list[float]:
        """Standardised drop of the nearest cosine of every row, by a loop."""
        mean, sd = usual
        return [(mean - self.nearest(query, True)) / sd for query in queries]

    def evidence(self, frozen: np.ndarray, clean: np.ndarray) -> list[float]:
        return self.drops(frozen, self.usual(clean))

    def nearest(self, query: np.ndarray, itself: bool) -> float:
        hits = self.gallery.search(self.codes(query[None]), self.config.answer.shortlist)
        found = [float(self.feature(key) @ query.astype(np.float64)) for key in hits.keys[0] if key >= 0]
        return max(cosine for cosine in found if itself or cosine <= COPY)

    def feature(self, key: int) -> np.ndarray:
        return self.gallery.features(np.array([key]))[0].astype(np.float64)

    def slow(self, adapted: np.ndarray, frozen: np.ndarray, mode: str, weight: float) -> list[int]:
        """The best keys of one query: candidates of either twin, then the score of the mode."""
        size, tau = self.config.answer.shortlist, self.config.answer.fuse_temperature
        bits = [self.gallery.distances(self.codes(query[None]))[0] for query in (adapted, frozen)]
        keys = self.gallery.keys().tolist()
        own = [{k for _, k in sorted(zip(row.tolist(), keys))[:size]} for row in bits]
        mixed = {"sum": bits[0] + bits[1], "mixture": weight * bits[0] + bits[1]}
        both = mixed.get(mode, np.minimum(*bits))
        row = bits[0] if mode == "none" else both
        pool = own[0] if mode == "none" else own[0] | own[1]
        chosen = [k for _, k in sorted(zip(row.tolist(), keys)) if k in pool][:size]
        cosines = [[float(self.feature(k) @ q.astype(np.float64)) for k in chosen] for q in (adapted, frozen)]
        beliefs = []
        for side in cosines:
            raised = [math.exp(c / tau) for c in side]
            beliefs.append([r / sum(raised) for r in raised])
        score = []
        for place in range(len(chosen)):
            a, f = cosines[0][place], cosines[1][place]
            by = {"none": a, "max": max(a, f), "sum": a + f}
            mixed = beliefs[1][place] + weight * beliefs[0][place]
            score.append(mixed if mode == "mixture" else by[mode])
        order = sorted(range(len(chosen)), key=lambda place: -score[place])
        return [chosen[place] for place in order][:TOP]


def twins(world: World, rows: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Two twins that see different queries."""
    frozen = near(world.items[:rows], 2.0, 3)
    return near(frozen, 1.0, 4), frozen


# What is served


@pytest.mark.parametrize("classes", [0, 3])
def test_cosines_that_a_twin_brings_weigh_as_those_taken_anew(classes: int) -> None:
    """To the bit: they are the answer's own, of the same shortlist."""
    world = World(evidence=(0.0, 2.0), classes=classes)
    frozen, adapted = (world.seen(queries) for queries in reversed(twins(world)))
    anew = [replace(twin, cosines=None) for twin in (frozen, adapted)]
    none = np.zeros(12, bool)
    served, weights = world.fusion.together(world.gallery, "vector", frozen, adapted, none)
    again, same = world.fusion.together(world.gallery, "vector", *anew, none)
    np.testing.assert_array_equal(weights, same)
    assert (weights > 0).any() and served.scores is not None and again.scores is not None
    np.testing.assert_array_equal(served.scores, again.scores)
    for twin, other in zip((frozen, adapted), anew):
        assert twin.cosines is not None
        np.testing.assert_array_equal(twin.cosines, seen(world.gallery, other))


@pytest.mark.parametrize("shortlist", [8, ITEMS, 50])
@pytest.mark.parametrize("mode", ["none", "max", "sum", "mixture"])
def test_served_equals_the_slow_loop(mode: str, shortlist: int) -> None:
    world = World(fuse=mode, shortlist=shortlist, evidence=None)
    adapted, frozen = twins(world)
    answers = world.answer(adapted, frozen)
    np.testing.assert_array_equal(answers.weights, np.ones(12, np.float32))
    for row in range(12):
        a, f = adapted[row], frozen[row]
        assert answers.served.keys[row].tolist() == world.slow(a, f, mode, 1.0)
        assert answers.frozen.keys[row].tolist() == world.slow(f, f, "none", 1.0)
        assert answers.adapted.keys[row].tolist() == world.slow(a, a, "none", 1.0)
    assert (answers.frozen.keys != answers.adapted.keys).any(1).sum() > 6  # or the modes would not differ


@pytest.mark.parametrize(("full", "largest"), [(100.0, 0.25), (60.0, 0.5), (2.0, 4.0)])
def test_other_weights_equal_the_slow_loop(full: float, largest: float) -> None:
    world = World(evidence=(0.0, full))
    adapted, frozen = near(world.items[:12], 1.0, 4), twins(world)[1]
    frozen[:2], adapted[3] = world.items[:2], frozen[3] + 3 * directions(8, 1)
    answers = world.answer(adapted, unit(frozen))
    weights = world.slow_weights(adapted, frozen, list(range(12)))
    assert answers.weights.tolist() == weights and max(weights) == largest
    if largest == 4:
        assert sorted(set(weights)) == [0.25, 0.5, 4.0], "rows have limits of their own"
    served = answers.served.keys.tolist()
    assert served == [world.slow(a, f, "mixture", w) for a, f, w in zip(adapted, frozen, weights)]
    assert served != [world.slow(a, f, "mixture", 1.0) for a, f in zip(adapted, frozen)]


def same(one: Hits, other: Hits, rows: Any = slice(None)) -> bool:
    pairs = ((one.keys, other.keys), (one.distances, other.distances))
    return all(np.array_equal(a[rows], b[rows]) for a, b in pairs)


@pytest.mark.parametrize("rerank", [True, False])
def test_weight_zero_serves_exactly_the_frozen_answer(rerank: bool) -> None:
    world = World(rerank=rerank, evidence=(90.0, 99.0))
    answers = world.answer(*twins(world))
    assert (answers.weights == 0).all()
    assert same(answers.served, answers.frozen) and not same(answers.served, answers.adapted)


@pytest.mark.parametrize("evidence", [(90.0, 99.0), (-99.0, -90.0), None])
def test_repaired_rows_serve_exactly_the_adapted_answer(evidence: tuple[float, float] | None) -> None:
    world = World(evidence=evidence)
    adapted, frozen = twins(world)
    repaired = np.arange(12) % 3 == 0
    answers = world.answer(adapted, frozen, repaired)
    assert np.isinf(answers.weights).tolist() == repaired.tolist()
    assert same(answers.served, answers.adapted, repaired)
    plain = world.answer(adapted[~repaired], frozen[~repaired])
    np.testing.assert_array_equal(answers.served.keys[~repaired], plain.served.keys)
    np.testing.assert_array_equal(answers.weights[~repaired], plain.weights)
    everything = world.answer(adapted, frozen, np.ones(12, bool))
    assert np.isinf(everything.weights).all() and same(everything.served, everything.adapted)


def test_without_rerank_codes_alone_decide() -> None:
    world = World(rerank=False, evidence=None)
    adapted, frozen = twins(world)
    answers = world.answer(adapted, frozen)
    ours, theirs = (world.gallery.distances(world.codes(side)) for side in (adapted, frozen))
    keys = world.gallery.keys().tolist()
    for row in range(12):
        own = [{key for _, key in sorted(zip(side[row].tolist(), keys))[:8]} for side in (ours, theirs)]
        mixed = sorted((a + f, key, min(a, f)) for a, f, key in zip(ours[row], theirs[row], keys))
        best = [(key, near) for _, key, near in mixed if key in own[0] | own[1]][:TOP]
        served = zip(answers.served.keys[row].tolist(), answers.served.distances[row].tolist())
        assert list(served) == best


def test_fewer_items_than_wanted_leave_unused_places() -> None:
    world = World(count=3, evidence=None)
    answers = world.answer(*twins(world, 3))
    for hits in (answers.served, answers.frozen, answers.adapted):
        assert hits.keys.shape == (3, TOP)
        assert (hits.keys[:, 3:] == -1).all() and (np.sort(hits.keys[:, :3]) == [7, 10, 13]).all()


# How much the adapted twin counts


def test_clean_queries_give_no_weight_and_far_ones_all() -> None:
    world = World()
    clean = near(world.items[np.arange(64) % ITEMS], 0.5, 77)
    far = near(world.items[np.arange(64) % ITEMS], 4.0, 77)
    assert (world.answer(clean, clean).weights == 0).all()
    recovered = world.items[np.arange(64) % ITEMS]
    assert (world.answer(recovered, far).weights == 4).all()
    assert (world.answer(near(world.items, 0.0, 0), near(world.items, 0.0, 0)).weights == 0).all()


@pytest.mark.parametrize("rows", [1, 4, 25])
@pytest.mark.parametrize("spread", [0.3, 0.7, 1.5])
def test_weights_equal_the_slow_loop(rows: int, spread: float) -> None:
    world = World(shortlist=ITEMS, evidence=(-1.0, 3.0))
    frozen, adapted = near(world.items[:rows], spread, 5), near(world.items[:rows], 0.7, 6)
    found = world.answer(adapted, frozen).weights.tolist()
    assert found == world.slow_weights(adapted, frozen, list(range(rows)))


def test_repaired_rows_are_no_evidence() -> None:
    world = World(shortlist=ITEMS, evidence=(0.0, 25.0))
    frozen = np.vstack((near(world.items[:9], 1.5, 5), directions(9, 9)))
    recovered = np.vstack((world.items[:9], frozen[9:]))
    marks = [False] * 9 + [True] * 9
    expected = world.slow_weights(recovered, frozen, list(range(9)))[:9]
    assert world.answer(recovered, frozen, marks).weights.tolist() == [*expected, *[math.inf] * 9]
    assert expected != world.slow_weights(recovered, frozen, list(range(18)))[:9]


def test_clean_figures_of_galleries_that_are_no_more_are_forgotten() -> None:
    world = World(count=KEPT + 20)
    evidence, gallery = Evidence(world.config.answer, world.known, world.head.codes), world.gallery
    figures = {}
    for number in range(KEPT + 9):
        gallery = gallery.remove([f"item-{number}"])
        figures[gallery.version] = evidence.clean(gallery, "vector")
    assert len(evidence._clean) == KEPT and len(set(figures.values())) > 1
    assert evidence.clean(gallery, "vector") == figures[gallery.version]


def test_the_reference_leaves_its_own_copies_out() -> None:
    """Clean queries that are gallery items themselves are judged by the next nearest."""
    copies = directions(0, ITEMS)
    world = World(reference=copies, shortlist=ITEMS, evidence=(-8.0, 0.0))
    frozen = near(world.items[:9], 2.0, 6)
    expected = world.slow_weights(world.items[:9], frozen, list(range(9)))
    assert world.answer(world.items[:9], frozen).weights.tolist() == expected
    assert max(expected) > 0, "against themselves all would lie far below"


def test_pictures_taken_again_do_not_pass_for_their_own_neighbours() -> None:
    """Crops of items lie nearest to these items, where the pictures of whoever asks will not."""
    world = World(shortlist=ITEMS)
    crops, zeros = near(world.items, 0.2, 8), np.zeros(ITEMS, np.float32)
    known = {"vector": DriftReference(crops, zeros, zeros, own=world.items)}
    found = Evidence(world.config.answer, known, world.head.codes).clean(world.gallery, "vector")
    others = [
        max(float(world.feature(key) @ crop) for key in world.gallery.keys().tolist() if key != own)
        for crop, own in zip(crops.astype(np.float64), world.gallery.keys().tolist())
    ]
    assert found == pytest.approx((np.mean(others), np.std(others)), abs=1e-3)
    known = {"vector": DriftReference(crops, zeros, zeros)}
    assert Evidence(world.config.answer, known, world.head.codes).clean(world.gallery, "vector")[0] > 0.9


def test_after_a_moderate_shift_who_recovers_nothing_has_no_say() -> None:
    world = World(shortlist=ITEMS, evidence=(-5.0, -4.0))
    frozen = near(world.items, 0.6, 6)
    lost = np.mean(world.evidence(frozen, world.clean))
    assert 0.4 < lost < SEVERE[0]
    assert (world.answer(frozen, frozen).weights == 0).all()
    assert (world.answer(near(frozen, 1.0, 8), frozen).weights == 0).all()
    seen = []
    for share in np.linspace(0, 1, 41):
        moved = unit(frozen + share * (world.items - frozen))
        seen.append(float(world.answer(moved, frozen).weights[0]))
    assert seen == sorted(seen) and len(set(seen)) > 2, "the more is won back, the more it counts"
    assert seen[0] == 0 and seen[-1] > 1


@pytest.mark.parametrize(
    ("mean", "median", "back", "expected"),
    [
        (0.3, 0.3, 0.3, 0.0),  # sure of .05: clean
        (0.46, 0.46, 0.46, 0.25),  # sure of .21: .1 of a shift, that most queries show: .28
        (0.46, 0.1, 0.46, 0.0),  # the same of a few: .1 is nearer to 0 than to .25
        (0.7, 0.7, 0.7, 2.0),  # sure of .45: half a shift, all of it won back
        (1.5, 1.5, 0.0, 0.0),  # a shift, nothing won back
        (1.5, 1.5, 0.1, 0.5),  # half of what is asked for, and .13 of a good part
        (1.5, 1.5, 0.6, 4.0),  # 1 + 3 * .8 = 3.4
        (1.5, 1.5, 0.3, 2.0),  # 1 + 3 * .4 = 2.2
        (3.0, 0.2, 2.5, 1.0),  # a few hopeless queries do not speak for the others
        (2.25, 2.25, -0.7, 1.0),  # sure of 2.0: half-way to severe, farther away than before: .5 * (1 + 1.5)
        (2.25, 0.2, -0.7, 0.0),  # the same because of a few hopeless queries
        (2.25, 2.25, 0.15, 2.0),  # won back counts more: .75 * (1 + 1.5) = 1.9
        (3.0, 2.9, -0.7, 4.0),  # severe: line art
        (-1.0, -1.0, 1.0, 0.0),
    ],
)
def test_the_weight_of_a_full_batch(mean: float, median: float, back: float, expected: float) -> None:
    assert weight(Drop(mean, median, mean, back, 0.0, 64), (0.15, 0.75)) == expected


def test_what_is_won_back_is_asked_of_who_is_hit() -> None:
    """Of four users two are hit, and the other two lose by the adapted twin."""
    lost, left = np.array([3.0, 2.0, 0.1, -0.1]), np.array([1.0, 1.0, 2.1, 1.9])
    assert Drop.of(lost, left, 0.1) == Drop(1.25, 1.05, 2.5, 1.5, 0.1, 4)
    unhit = Drop.of(lost[2:], left[2:], 0.1)
    assert (unhit.hit, unhit.back) == pytest.approx((0.0, -2.0))


def test_queries_that_part_again_speak_for_the_adapted_twin() -> None:
    """Noise gathers the queries of a transformer in a corner: parted they lie farther from the gallery."""
    found = [weight(Drop(2.2, 1.9, 2.2, -3.0, apart, 64), (0.15, 0.75)) for apart in (0.0, 0.1, 0.15, 0.3)]
    assert found == [0.25, 0.25, 1.0, 4.0]
    assert weight(Drop(0.3, 0.3, 0.3, -3.0, 0.9, 64), (0.15, 0.75)) == 0.0, "without a shift nothing does"
    drop = Drop(2.2, 1.9, 2.2, -3.0, 0.3, 64)
    lost, left = np.array([2.0, 2.0, -0.1]), np.array([5.0, 2.0, -1.0])
    assert limited(4.0, drop, lost, left).tolist() == [4.0, 4.0, 0.25]
    assert limited(4.0, replace(drop, apart=0.1), lost, left).tolist() == [0.5, 4.0, 0.25]


def test_in_a_corner_less_of_a_drop_is_asked_and_near_queries_have_a_say() -> None:
    """All is near to something there, so that cosines fall by less than the standard errors asked for."""
    corner = Drop(0.35, 0.3, 1.8, 0.9, 0.4, 64, crowded=0.4)
    assert corner.cornered == 1.0
    assert weight(corner, (0.075, 0.375)) == 2.0
    for alone in ({"crowded": 0.1}, {"apart": 0.05}, {"back": 0.0}):
        assert weight(replace(corner, **alone), (0.075, 0.375)) <= 0.25, f"{alone}: no corner"
        assert replace(corner, **alone).cornered == 0.0
    assert weight(replace(corner, mean=0.05), (0.075, 0.375)) == 0.0, "without a shift nothing does"
    assert [replace(corner, rows=rows).cornered for rows in (2, 6, 8, 64)] == pytest.approx([0, 0, 0.5, 1])
    lost, left = np.array([1.0, -0.1, 0.5]), np.array([0.2, -1.0, 2.0])
    assert limited(4.0, corner, lost, left).tolist() == [4.0, 4.0, 4.0]
    assert limited(4.0, replace(corner, crowded=0.1), lost, left).tolist() == [4.0, 0.25, 4.0]


def test_a_corner_counts_for_composed_queries_alone() -> None:
    """Nobody has looked at other kinds, of which a batch of one class may gather as well."""
    world = World()
    frozen = unit(near(world.items[np.arange(32) % ITEMS], 0.6, 3) + 2 * directions(5, 1))
    twin, counted = world.seen(frozen), np.ones(32, bool)
    rows = np.sort(np.unique(twin.codes, axis=0, return_index=True)[1])
    lost = np.array(world.drops(frozen, world.usual(world.clean)))[rows]
    assert alike(frozen[rows]) - alike(world.clean) > 0.3
    bound = float(lost.mean()) - 1.0 / math.sqrt(len(rows))  # between two standard errors and half of one
    quiet = {}
    for kind, share in (("vector", 1.0), ("composed", 2.0)):
        evidence = (share * bound, share * bound + 0.01)
        config = Config.model_validate({"answer": {"top": TOP, "shortlist": 8, "evidence": evidence}}).answer
        codes = lambda features, kind: world.head.codes(features, "vector")  # noqa: E731
        weigher = Evidence(config, {kind: world.known["vector"]}, codes)
        quiet[kind] = weigher.quiet(world.gallery, kind, twin, counted)
    assert quiet == {"vector": True, "composed": False}


def test_queries_that_are_gathered_give_no_more_than_an_equal_say() -> None:
    """Another domain's pictures come nearer to the gallery, and nearer to each other: to its wrong items."""
    found = [weight(Drop(2.0, 2.0, 2.0, 1.5, apart, 64), (0.15, 0.75)) for apart in (0.0, -0.02, -0.04, -0.3)]
    assert found == [4.0, 4.0, 2.0, 1.0]


def test_in_a_gallery_of_classes_neighbours_that_do_not_agree_take_the_say_away() -> None:
    """By standard errors: none at -1, an equal say at most at 0, all at 2."""
    found = [
        weight(Drop(2.0, 2.0, 2.0, 1.5, 0.0, 64, agreed), (0.15, 0.75))
        for agreed in (-2.0, -1.0, -0.5, 0.0, 1.0, 2.0, math.inf)
    ]
    assert found == [0.0, 0.0, 0.25, 0.5, 2.0, 4.0, 4.0]
    gathered = Drop(2.0, 2.0, 2.0, 1.5, 0.2, 64, -9.0)
    assert weight(gathered, (0.15, 0.75)) == 4.0, "who parts queries that had gathered is not asked"
    severe = Drop(3.0, 2.9, 3.0, -0.7, 0.0, 64, -1.0)
    assert weight(severe, (0.15, 0.75)) == 0.0, "worse neighbours are no way out of a severe shift"


def test_agreement_is_the_share_of_the_labels_of_the_first() -> None:
    world = World(classes=3, shortlist=ITEMS)
    queries = near(world.items[:7], 0.8, 9)
    rows, twin = np.array([0, 2, 5]), world.seen(queries)
    shares = []
    for row in rows:
        order = sorted(
            world.gallery.keys().tolist(), key=lambda key: -float(world.feature(key) @ queries[row])
        )
        labels = [world.gallery.labels_of(key)[0] for key in order[:NEIGHBOURS]]
        shares.append(labels.count(labels[0]) / NEIGHBOURS)
    found = agreement(world.gallery, twin.hits.keys, seen(world.gallery, twin)).near[rows]
    assert found.tolist() == pytest.approx(shares) and 0.2 < found.mean() < 1


@pytest.mark.parametrize("several", [False, True])
def test_agreement_of_items_with_no_label_one_or_several(several: bool) -> None:
    """Near is of ten, around of a hundred; places that nothing fills count nowhere."""
    rng = np.random.default_rng(4)
    own = [[(), ("a",), ("b",), ("a", "b")][int(kind)] for kind in rng.integers(0, 3 + several, 150)]
    features = directions(3, 150)
    codes = np.zeros((150, 4), np.uint8)
    gallery = VersionedGallery(32, [str(item) for item in range(150)], codes, own, features, backend="exact")
    keys = np.stack([rng.permutation(150)[:120] for _ in range(9)]).astype(np.int64)
    cosine = rng.uniform(-0.9, 0.9, keys.shape)
    keys[0, 5:], keys[1], keys[2, ::2] = -1, -1, -1
    cosine[keys < 0] = -1.0
    found = agreement(gallery, keys, cosine)
    for row in range(9):
        order = [keys[row, place] for place in np.argsort(-cosine[row], kind="stable")]
        for most, share in ((NEIGHBOURS, found.near[row]), (AROUND, found.around[row])):
            near = [int(key) for key in order[:most] if key >= 0]
            agreeing = [key for key in near[1:] if set(own[key]) & set(own[near[0]])]
            assert share == pytest.approx((1 + len(agreeing)) / max(len(near), 1)), f"row {row}, {most}"


@pytest.mark.parametrize(("classes", "asked"), [(0, False), (2, True), (10, False)])
def test_the_weight_asks_whether_neighbours_agree_where_there_are_classes(classes: int, asked: bool) -> None:
    """Where labels have one item, or three, ten neighbours cannot agree: nothing is concluded from it."""
    world = World(classes=classes, shortlist=ITEMS, evidence=(-8.0, 0.0))
    frozen, adapted = near(world.items, 2.0, 6), near(world.items, 0.6, 7)
    twins = [world.seen(queries) for queries in (frozen, adapted)]
    before, after = (
        agreement(world.gallery, twin.hits.keys, seen(world.gallery, twin)).near for twin in twins
    )
    assert (world.weigher.agreement_of_clean(world.gallery, "vector") > CLASSES) == asked
    assert not classes or after.mean() != before.mean()
    for one, other, more in ((adapted, frozen, after - before), (frozen, adapted, before - after)):
        lost, left = (np.array(world.drops(side, world.usual(world.clean))) for side in (other, one))
        apart = (alike(other) - alike(one)) / (1 - alike(world.clean))
        agreed = float(more.mean() / (more.std() / math.sqrt(ITEMS))) if asked else math.inf
        expected = weight(Drop.of(lost, left, apart, agreed), (-8.0, 0.0))
        assert world.answer(one, other).weights.max() == expected


def test_how_alike_queries_are_equals_pair_by_pair() -> None:
    for count in (1, 2, 7):
        rows = near(np.repeat(directions(3, 1), count, axis=0), 1.0, 4)
        assert together(rows) == pytest.approx(alike(rows), abs=1e-6)


def test_fewer_queries_prove_less() -> None:
    found = [weight(Drop(2.9, 2.9, 2.9, -0.6, 0.0, rows), (0.15, 0.75)) for rows in (1, 4, 16, 64)]
    assert found == [0.0, 1.0, 4.0, 4.0]


def test_a_query_asked_again_and_again_counts_once() -> None:
    world = World(shortlist=ITEMS, evidence=(0.0, 4.0))
    frozen = near(world.items[:4], 0.7, 6)
    again = np.vstack((frozen, np.repeat(frozen[:1], 12, axis=0)))
    copies = np.vstack((world.items[:4], np.repeat(world.items[:1], 12, axis=0)))
    once = world.answer(world.items[:4], frozen).weights
    assert world.answer(copies, again).weights.tolist() == [*once, *[once[0]] * 12]
    assert once.tolist() == world.slow_weights(world.items[:4], frozen, [0, 1, 2, 3])
    assert once.tolist() != world.slow_weights(copies, again, list(range(16)))[:4]


def test_without_clean_queries_the_frozen_twin_answers_alone_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(evidence=(-99.0, -90.0))  # any drop would count fully
    adapted, frozen = twins(world, 3)
    marks = np.zeros(3, bool)
    for _ in range(2):
        answers = world.answer(adapted, frozen, modality="image")
        assert (answers.weights == 0).all() and same(answers.served, answers.frozen)
        assert world.fusion.quiet(world.gallery, "image", world.seen(frozen), marks)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "the base model has no clean reference for such queries"
    ]


@pytest.mark.parametrize("mode", ["max", "sum", "mixture"])
def test_quiet_says_exactly_where_no_adapted_answer_could_count(mode: str) -> None:
    seen = set()
    for seed in range(40):
        world = World(fuse=mode, shortlist=ITEMS)
        rows = (1, 3, 9, 24)[seed % 4]
        frozen = near(world.items[np.arange(rows)], 0.1 * seed, seed)
        marks = np.arange(rows) % 5 == 4
        quiet = world.fusion.quiet(world.gallery, "vector", world.seen(frozen), marks)
        best = world.answer(world.items[np.arange(rows)], frozen, marks)  # nothing recovers more than this
        assert quiet == (best.weights[~marks] == 0).all()
        if quiet:
            assert same(best.served, best.frozen, ~marks)
        seen.add(quiet)
    assert seen == {True, False}


@pytest.mark.parametrize("answer", [{"fuse": "none"}, {"evidence": None}])
def test_without_fusion_or_evidence_no_batch_is_quiet(answer: dict[str, Any]) -> None:
    world = World(**answer)
    assert not world.fusion.quiet(world.gallery, "vector", world.seen(world.items[:9]), np.zeros(9, bool))


# Judged as it was served


def slow_distances(world: World, kept: Remembered) -> list[np.ndarray]:
    """Distances [N] of the frozen, adapted and served ranking, item by item: what the levels stand for."""
    answer, every = world.config.answer, world.gallery.features(world.gallery.keys())
    bits = world.gallery.distances(np.stack((kept.frozen_code, kept.adapted_code)))
    cosines = [every @ side for side in (kept.frozen_features, kept.adapted_features)]

    def ranked(row: np.ndarray, score: Any) -> np.ndarray:
        distance = row.astype(np.float64)
        if answer.rerank:
            shortlist = np.argsort(distance, kind="stable")[: answer.shortlist]
            distance += 4.0
            distance[shortlist] = 1.0 - score(shortlist)
        return distance

    def mixed(shortlist: np.ndarray) -> np.ndarray:
        frozen, adapted = (side[shortlist].astype(np.float64) for side in cosines)
        if answer.fuse == "mixture":
            raised = [np.exp(side / answer.fuse_temperature) for side in (frozen, adapted)]
            return (raised[0] / raised[0].sum() + kept.weight * raised[1] / raised[1].sum()) / (
                1 + kept.weight
            )
        return np.maximum(frozen, adapted) if answer.fuse == "max" else (frozen + adapted) / 2

    alone, moved = (ranked(bits[i], lambda near, i=i: cosines[i][near].astype(np.float64)) for i in (0, 1))
    if answer.fuse == "none" or kept.weight == np.inf:
        return [alone, moved, moved]
    if kept.weight == 0:
        return [alone, moved, alone]
    fused = {"sum": bits.sum(0), "max": bits.min(0), "mixture": bits[0] + kept.weight * bits[1]}[answer.fuse]
    own = [np.argsort(row, kind="stable")[: answer.shortlist] for row in bits]
    found = np.isin(np.arange(len(fused)), np.concatenate(own))
    shortlist = sorted(np.flatnonzero(found), key=lambda place: (fused[place], place))[: answer.shortlist]
    served = fused + 1000.0  # what neither twin found stands behind what was answered from
    served[shortlist] = 1.0 - mixed(np.array(shortlist)) if answer.rerank else fused[shortlist]
    return [alone, moved, served]


@pytest.mark.parametrize("rerank", [True, False])
@pytest.mark.parametrize("mode", ["none", "max", "sum", "mixture"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 4.0, np.inf])
@pytest.mark.parametrize(("count", "shortlist"), [(700, 20), (700, 900), (1, 8)])
def test_levels_measure_what_the_distances_of_all_items_do(
    mode: str, rerank: bool, weight: float, count: int, shortlist: int
) -> None:
    world = World(fuse=mode, shortlist=shortlist, rerank=rerank, count=count, classes=7)
    frozen = near(world.items[: min(count, 5)], 2.0, 3)
    adapted = near(frozen, 1.0, 4)
    for row in range(len(frozen)):
        kept = Remembered(
            Coordinates("q", 0, row), world.gallery.version, row, world.codes(frozen)[row],
            world.codes(adapted)[row], frozen[row], adapted[row], weight,
        )  # fmt: skip
        expected = slow_distances(world, kept)
        for label in ("class-0", f"class-{min(count - 1, 6)}"):
            relevant = world.gallery.relevant(label)
            found = world.levels(kept, label)
            for levels, distances in zip(found, expected, strict=True):
                ap, first = ap_and_first(levels)
                assert ap == pytest.approx(average_precision(distances, relevant), abs=1e-12, rel=0)
                assert first == pytest.approx(recall_at_1(distances, relevant), abs=1e-12, rel=0)
                assert levels.sum() == count and levels[0].sum() == relevant.sum()


def test_features_that_are_no_numbers_rank_behind_everything() -> None:
    world = World(fuse="none", shortlist=8, classes=3)
    code, broken = world.codes(world.items[:1])[0], np.full(WIDTH, np.nan, np.float32)
    kept = Remembered(Coordinates("q", 0, 0), world.gallery.version, 0, code, code, broken, broken)
    found = world.levels(kept, "class-0")
    assert found[0].sum(0)[-1] == 8
    slow = average_precision(slow_distances(world, kept)[0], world.gallery.relevant("class-0"))
    assert ap_and_first(found[0])[0] == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("rerank", [True, False])
@pytest.mark.parametrize(
    ("mode", "evidence", "shortlist"),
    [
        ("mixture", None, 8),
        ("mixture", (0.0, 40.0), 8),
        ("mixture", (90.0, 99.0), 8),
        ("max", None, 8),
        ("none", None, 8),
        ("sum", None, 8),
    ],
)
def test_levels_rank_as_the_answer_did(
    mode: str, evidence: tuple[float, float] | None, shortlist: int, rerank: bool
) -> None:
    world = World(fuse=mode, evidence=evidence, shortlist=shortlist, rerank=rerank)
    adapted, frozen = twins(world)
    repaired = np.arange(12) == 4
    answers = world.answer(adapted, frozen, repaired)
    keys = world.gallery.keys()
    for row in range(12):
        kept = Remembered(
            Coordinates("q", 0, row), world.gallery.version, row, world.codes(frozen)[row],
            world.codes(adapted)[row], frozen[row], adapted[row], float(answers.weights[row]),
        )  # fmt: skip
        expected = slow_distances(world, kept)
        for distances, hits in zip(expected, (answers.frozen, answers.adapted, answers.served)):
            assert keys[np.argsort(distances, kind="stable")][:TOP].tolist() == hits.keys[row].tolist()
        for place in range(ITEMS):  # every item has a label of its own: its levels are its place
            found = world.levels(kept, f"item-{place}")
            for levels, distances in zip(found, expected):
                before, ties = (distances < distances[place]).sum(), (distances == distances[place]).sum()
                level = int(np.flatnonzero(levels[0])[0])
                assert (levels[:, :level].sum(), levels[:, level].sum()) == (before, ties)


@pytest.mark.parametrize("rerank", [True, False])
def test_rankings_by_several_weights_are_those_by_each(rerank: bool) -> None:
    world = World(classes=5, rerank=rerank)
    views = [near(world.items[:1], spread, 3) for spread in (2.0, 3.0)]
    adapted, frozen = (Encoded(view, world.codes(view)) for view in views)
    weights, judge, gallery = (4.0, 0.0, math.inf, 0.25, 4.0), world.judge, world.gallery
    for one, counts in zip(weights, judge.weighed(gallery, frozen, adapted, weights, "class-2"), strict=True):
        alone = judge.rankings(gallery, frozen, adapted, one, "class-2")[2]
        assert all(map(np.array_equal, counts, alone))
    assert not any(len(c.items) for c in judge.weighed(gallery, frozen, adapted, weights, "unheard of"))


def test_a_label_of_no_item_has_no_levels() -> None:
    world = World()
    code = world.codes(world.items[:1])[0]
    kept = Remembered(Coordinates("q", 0, 0), "v", 0, code, code, world.items[0], world.items[0])
    assert not any(levels.any() for levels in world.levels(kept, "unheard of"))


def test_a_composed_query_needs_half_the_evidence() -> None:
    """Half of it is text, which no shift of pictures moves."""
    world = World(shortlist=ITEMS)
    clean = DriftReference(world.clean, np.zeros(60, np.float32), np.zeros(60, np.float32))
    head = HashHead(
        np.random.default_rng(1).normal(size=(BITS, WIDTH)).astype(np.float32), np.zeros(BITS, np.float32),
        {"image": np.zeros(WIDTH, np.float32), "composed": np.zeros(WIDTH, np.float32)},
    )  # fmt: skip
    evidence = Evidence(world.config.answer, {"image": clean, "composed": clean}, head.codes)
    counted, quiet = np.ones(ITEMS, bool), {}
    for spread in (*np.linspace(0.5, 0.7, 41), 1.2):
        twin = world.seen(near(world.items, spread, 6))
        quiet[spread] = [
            evidence.quiet(world.gallery, modality, twin, counted) for modality in ("image", "composed")
        ]
    assert quiet[0.5] == [True, True] and quiet[1.2] == [False, False]
    assert [True, False] in quiet.values() and [False, True] not in quiet.values()
