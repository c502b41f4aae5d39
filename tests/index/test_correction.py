"""Late labels and the weights of the twins: against plain loops, within bounds, and in a state."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.errors import ArtifactError
from core.records import Coordinates, Judgement
from index.correction import DECAY, FAR, KEPT, PRIOR, STEP, Correction, corrected
from index.fusion import WEIGHTS
from stream.steering import Steering

WIDTH = 8
RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
FALLING = RISING[::-1]


def at(offset: int) -> Coordinates:
    return Coordinates("q", 0, offset)


def label(offset: int, name: str = "a") -> Judgement:
    return Judgement(Coordinates("labels", 0, offset), at(offset), name)


def outcome(offsets: Sequence[int], quiet: bool = False, repaired: Sequence[int] = ()) -> Any:
    """What a correction looks at of one."""
    rng = np.random.default_rng(offsets[0])

    def twin() -> Any:
        return SimpleNamespace(
            features=rng.normal(size=(len(offsets), WIDTH)).astype(np.float32),
            codes=rng.integers(256, size=(len(offsets), 4)).astype(np.uint8),
        )

    queries = [SimpleNamespace(at=at(o), repaired="mended" * (o in repaired)) for o in offsets]
    batch = SimpleNamespace(queries=queries)
    return SimpleNamespace(batch=batch, quiet=quiet, frozen=twin(), adapted=twin(), gallery_version="v")


def made(aps: Any = None, samples: Any = lambda at: True, keep: bool = True) -> Correction:
    """AP by the label's name: rising or falling with the weight."""
    by_name = {"rises": RISING, "falls": FALLING}
    return Correction(samples, aps or (lambda version, frozen, adapted, name: by_name.get(name)), keep)


def taught(name: str, labels: int) -> Correction:
    correction = made()
    for start in range(0, labels, 32):
        offsets = range(start, min(labels, start + 32))
        correction.observe(outcome(offsets))
        for offset in offsets:
            assert correction.judge(label(offset, name))
    return correction


def slow(gains: list[list[float]]) -> list[int]:
    """The rule in plain loops, from the gains [n][W] of labels, oldest first."""
    fades = [math.exp(-(len(gains) - 1 - i) / DECAY) for i in range(len(gains))]
    n = sum(fades)
    chosen = []
    for rule in range(len(WEIGHTS)):
        best, place = 0.0, rule
        for other in range(len(WEIGHTS)):
            if not 0 < abs(other - rule) <= FAR:
                continue
            more = [g[other] - g[rule] for g in gains]
            mean = sum(f * d for f, d in zip(fades, more)) / n
            square = sum(f * d * d for f, d in zip(fades, more)) / n
            score = (-PRIOR * STEP * abs(other - rule) + n * mean) / (n + PRIOR)
            score -= math.sqrt(square / (n + PRIOR))
            if score > best:
                best, place = score, other
        chosen.append(place)
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_weights_are_those_of_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slope, aps = rng.normal() * 0.03, []
    for _ in range(200):
        aps.append((0.5 + slope * np.arange(7) + 0.1 * rng.normal(size=7)).tolist())
    correction = made(lambda version, frozen, adapted, name: aps[int(name)])
    gains = []
    for number in range(200):
        correction.observe(outcome([number]))
        correction.judge(label(number, str(number)))
        gains.append([100 * (ap - aps[number][0]) for ap in aps[number]])
    served = [correction.correct(np.array([weight]))[0] for weight in WEIGHTS]
    assert [WEIGHTS.index(weight) for weight in served] == slow(gains)
    assert served != list(WEIGHTS), "nothing was corrected: the test shows nothing"


def test_without_labels_the_rule_decides_to_the_bit() -> None:
    correction, weights = made(), np.array([0.0, 4.0, 0.25, math.inf, 1.0])
    correction.observe(outcome(range(64)))
    assert correction.correct(weights).tobytes() == weights.tobytes()
    assert corrected(0.0, np.zeros(7), np.zeros((7, 7))).tolist() == list(range(7))


def test_rows_with_a_limit_stay_within_it() -> None:
    rows = np.array([1.0, 0.25, 0.0, 1.0, 0.5])
    assert taught("rises", 60).correct(rows).tolist() == [4.0, 0.25, 0.0, 4.0, 0.5]
    assert taught("falls", 60).correct(rows).tolist() == [0.25, 0.25, 0.0, 0.25, 0.25]
    assert taught("falls", 60).correct(np.zeros(0)).tolist() == []


def test_one_label_moves_nothing_and_many_do() -> None:
    weights = np.array([1.0])
    assert taught("falls", 1).correct(weights).tolist() == [1.0]
    assert taught("falls", 60).correct(weights).tolist() == [0.25]
    assert taught("rises", 60).correct(weights).tolist() == [4.0]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e9, -1e9])
def test_whatever_labels_say_weights_stay_between_the_twins_and_near_the_rules_own(value: float) -> None:
    rng = np.random.default_rng(0)
    correction = made(lambda *_: (value * rng.normal(size=7)).tolist())
    for number in range(300):
        correction.observe(outcome([number]))
        correction.judge(label(number))
        for place, weight in enumerate(WEIGHTS):
            served = float(correction.correct(np.array([weight]))[0])
            assert served in WEIGHTS and abs(WEIGHTS.index(served) - place) <= FAR


def test_a_label_counts_once_and_only_for_a_remembered_query() -> None:
    correction = made()
    assert not correction.judge(label(3, "falls")), "before its query was answered"
    correction.observe(outcome(range(8), repaired=[2]))
    assert correction.judge(label(3, "falls"))
    before = correction.snapshot()
    assert not correction.judge(label(3, "rises")), "again"
    assert not correction.judge(label(99, "rises")), "of an unknown query"
    assert not correction.judge(label(2, "rises")), "of a text that was mended"
    assert correction.snapshot()[1] == before[1]
    assert correction.judge(label(4, "unheard of")), "of no item: nothing is learned, and it waits no more"
    assert not correction.remembers(at(4)) and correction.snapshot()[1]["labels"] == before[1]["labels"]


def test_only_sampled_queries_are_remembered_and_at_most_so_many() -> None:
    correction = made(samples=lambda at: at.offset % 2 == 0)
    for start in range(0, 64 * 20, 64):
        correction.observe(outcome(range(start, start + 64)))
    kept = [offset for offset in range(64 * 20) if correction.remembers(at(offset))]
    assert kept == list(range(64 * 20 - 2 * KEPT, 64 * 20, 2))
    tensors, _ = correction.snapshot()
    assert sum(array.nbytes for array in tensors.values()) <= KEPT * 2 * (4 * WIDTH + 4) + 8 * (7 + 49)


def test_features_are_kept_only_where_answers_are_ranked_by_them() -> None:
    correction = made(keep=False)
    correction.observe(outcome(range(4)))
    assert correction.snapshot()[0]["frozen.features"].shape == (4, 0)


def test_two_quiet_batches_end_the_shift_and_what_was_known_of_it() -> None:
    correction = taught("falls", 60)
    correction.observe(outcome(range(100, 110)))
    assert correction.observe(outcome(range(200, 210), quiet=True))
    assert correction.correct(np.array([1.0])).tolist() == [0.25], "a weak shift has single quiet batches"
    assert correction.remembers(at(100)) and not correction.remembers(at(200))
    assert correction.observe(outcome(range(210, 220), quiet=True))
    assert correction.correct(np.array([1.0])).tolist() == [1.0]
    assert not correction.remembers(at(100)) and not correction.remembers(at(210))
    assert not correction.observe(outcome(range(300, 310), quiet=True)), "there was nothing to forget"


def test_quiet_batches_are_counted_in_a_row_and_in_the_state() -> None:
    correction = taught("falls", 60)
    for start in (100, 300, 500):
        assert correction.observe(outcome([start], quiet=True))
        assert correction.observe(outcome([start + 100])), "the row ends"
    correction.observe(outcome([700], quiet=True))
    copy = made()
    copy.restore(*correction.snapshot())
    assert copy.correct(np.array([1.0])).tolist() == [0.25]
    copy.observe(outcome([701], quiet=True))
    assert copy.correct(np.array([1.0])).tolist() == [1.0]
    tensors, meta = correction.snapshot()
    del meta["quiet"]  # as of before
    copy.restore(tensors, meta)
    copy.observe(outcome([701], quiet=True))
    assert copy.correct(np.array([1.0])).tolist() == [0.25]


def test_a_snapshot_continues_as_the_original() -> None:
    original = taught("falls", 40)
    original.observe(outcome(range(100, 130)))
    tensors, meta = original.snapshot()
    copy = made()
    copy.restore({name: array.copy() for name, array in tensors.items()}, meta)
    for offset in range(100, 130):
        for one in (original, copy):
            one.judge(label(offset, "rises"))
    one, other = original.snapshot(), copy.snapshot()
    assert one[1] == other[1]
    assert {k: v.tobytes() for k, v in one[0].items()} == {k: v.tobytes() for k, v in other[0].items()}
    weights = np.array(WEIGHTS)
    assert original.correct(weights).tobytes() == copy.correct(weights).tobytes()


@pytest.mark.parametrize(
    "meta", [{}, {"labels": "many", "answered": []}, {"labels": 1.0, "answered": [["q"]]}]
)
def test_a_snapshot_that_is_none_is_refused(meta: dict[str, Any]) -> None:
    tensors, _ = made().snapshot()
    with pytest.raises(ArtifactError, match="labels"):
        made().restore(tensors, meta)


def test_asking_changes_nothing() -> None:
    correction = taught("falls", 40)
    before = correction.snapshot()
    correction.correct(np.array([4.0, 1.0]))
    after = correction.snapshot()
    assert before[1] == after[1] and all(np.array_equal(before[0][k], after[0][k]) for k in before[0])


def learned(steering: Steering) -> Any:
    tensors, meta = steering.snapshot()
    return {name: array.tolist() for name, array in tensors.items()}, meta


def test_a_rollback_brings_back_no_query_that_waited_no_longer() -> None:
    """Its label was read before, live; whoever repeats the log read it long ahead and holds it still."""
    live, ahead = Steering(made()), Steering(made())
    ahead.take(label(1, "rises"), {})
    for one in (live, ahead):
        one.apply({})
        one.correction.observe(outcome([1, 2]))
        kept = one.correction.snapshot()
        one.correction.observe(outcome([3], quiet=True))
        one.correction.observe(outcome([30], quiet=True))
        one.correction.observe(outcome([4]))
        if one is live:
            one.take(label(1, "rises"))
        one.correction.go_back(*kept)
        assert not one.correction.remembers(at(1)) and not one.correction.remembers(at(4))
        one.apply({"labels/0": 2})
    assert learned(live) == learned(ahead)


def test_a_rollback_leaves_what_waits_waiting() -> None:
    correction = made()
    correction.observe(outcome([1, 2]))
    kept = correction.snapshot()
    assert correction.judge(label(1, "rises"))
    correction.go_back(*kept)
    assert not correction.judge(label(1, "rises")), "the label has come"
    assert correction.judge(label(2, "rises"))


def test_a_second_label_of_one_that_was_passed_over_teaches_nothing() -> None:
    """Live the second comes alone; whoever repeats the log has read both and holds the first."""
    live, ahead = Steering(made()), Steering(made())
    first, second = (Judgement(Coordinates("labels", 0, place), at(1), "rises") for place in (0, 5))
    for judgement in (first, second):
        ahead.take(judgement, {})
    for one in (live, ahead):
        one.apply({})
        one.correction.observe(outcome([1]))
        if one is live:
            one.take(first)
        one.apply({"labels/0": 3}, teach=False)
        if one is live:
            one.take(second)
        one.apply({"labels/0": 6})
    assert learned(live) == learned(ahead)
