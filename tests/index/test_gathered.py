"""Votes of neighbours and how far they gather: against loops, and where nothing can be said."""

import math

import numpy as np
import pytest

from index.gathered import FAR, PRIOR, gathered, votes

CLEAN = {"a": 40.0, "b": 30.0, "c": 30.0}


def test_each_query_has_one_vote_that_its_neighbours_share() -> None:
    labels = [frozenset("a"), frozenset("bc"), frozenset(), frozenset("b")]
    place = np.array([[0, 1, 1, 3], [3, 0, 2, 2], [0, 0, 0, 0]])
    known = np.array([[True] * 4, [True, True, False, False], [False] * 4])
    found = votes(labels, place, known)
    assert found == pytest.approx(
        {"a": 1 / 4 + 1 / 2, "b": 2 * 1 / 4 / 2 + 1 / 4 + 1 / 2, "c": 2 * 1 / 4 / 2}
    )


def slow(batch: dict[str, float], drop: float) -> float:
    def entropy(worth: list[float]) -> float:
        return -sum(one / sum(worth) * math.log(one / sum(worth)) for one in worth if one)

    both = [batch.get(one, 0) + PRIOR * share / 100 for one, share in CLEAN.items()]
    both += [worth for label, worth in batch.items() if label not in CLEAN]
    lack = 1 - entropy(both) / entropy(list(CLEAN.values()))
    return max(0.0, lack) * min(max(drop, 0.0), FAR) / FAR


@pytest.mark.parametrize("drop", [-1.0, 0.0, 0.5, 3.9, 4.0, 12.0, math.nan])
def test_it_is_the_entropy_that_is_missing_as_far_as_the_batch_has_moved(drop: float) -> None:
    for batch in (
        {"a": 64.0},
        {"a": 30.0, "b": 2.0},
        {"a": 1.0, "b": 1.0, "c": 1.0},
        {"new": 9.0, "c": 1.0},
        {},
    ):
        right = 0.0 if math.isnan(drop) else slow(batch, drop)
        assert gathered(batch, CLEAN, drop) == pytest.approx(right)


def test_few_queries_sorted_ones_and_one_label_prove_little() -> None:
    assert gathered({"a": 1.0}, CLEAN, 9.0) < 0.05 < 0.4 < gathered({"a": 64.0}, CLEAN, 9.0)
    assert gathered({"a": 64.0}, CLEAN, 0.3) < 0.05
    assert gathered({"a": 64.0}, {"a": 9.0}, 9.0) == 0.0 == gathered({"a": 64.0}, {}, 9.0)


def test_votes_come_in_an_order_of_their_own():
    """Sums follow it, and a set of names has another order in each process."""
    names = [f"label {number}" for number in range(12)]
    found = votes([frozenset(names)], np.zeros((1, 1), np.intp), np.ones((1, 1), bool))
    assert list(found) == sorted(names)
