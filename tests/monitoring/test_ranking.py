"""Tie-aware measures against the mean over every order that the ties allow."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest

from core.errors import GalleryError
from monitoring import ranking


def orders(distance, relevant):
    """Every ranking that agrees with the distances, each as a list of relevance."""
    for order in permutations(range(len(distance))):
        ranked = [distance[i] for i in order]
        if all(a <= b for a, b in pairwise(ranked)):
            yield [bool(relevant[i]) for i in order]


def plain_ap(ranked):
    found, total = 0, 0.0
    for rank, hit in enumerate(ranked, 1):
        if hit:
            found += 1
            total += found / rank
    return total / sum(ranked)


def expected(measure, distance, relevant):
    values = [measure(ranked) for ranked in orders(distance, relevant)]
    return sum(values) / len(values)


CASES = [
    ([1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0]),
    ([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 1, 0]),
    ([3, 1, 1, 2, 2, 2], [1, 0, 1, 1, 0, 0]),
    ([2, 2, 1, 1, 3, 3], [0, 1, 0, 0, 1, 1]),
    ([5, 5, 5, 0, 0, 9], [0, 0, 1, 0, 0, 0]),
    ([0.25, 0.25, -1.5, 0.25, 7.0, 7.0], [1, 1, 1, 1, 1, 1]),
    ([4], [1]),
    ([4, 4], [1, 0]),
]


@pytest.mark.parametrize("distance, relevant", CASES)
def test_every_measure_is_the_mean_over_all_orders(distance, relevant):
    d, r = np.array(distance), np.array(relevant, bool)
    assert ranking.average_precision(d, r) == pytest.approx(expected(plain_ap, distance, relevant), abs=1e-14)
    assert ranking.recall_at_1(d, r) == pytest.approx(expected(lambda x: x[0], distance, relevant), abs=1e-14)
    for k in (1, 2, 3, 5, 6, 9):
        found = expected(lambda x: sum(x[:k]), distance, relevant)  # noqa: B023
        assert ranking.precision_at(d, r, k) == pytest.approx(found / k, abs=1e-14)
        assert ranking.recall_at(d, r, k) == pytest.approx(found / sum(relevant), abs=1e-14)


def test_random_small_galleries_match_enumeration():
    generator = np.random.default_rng(0)
    for _ in range(25):
        d, r = generator.integers(0, 4, 6), generator.random(6) < 0.5
        r[generator.integers(6)] = True
        assert ranking.average_precision(d, r) == pytest.approx(expected(plain_ap, d, r), abs=1e-14)


def test_histogram_path_equals_array_path():
    generator = np.random.default_rng(1)
    classes, distance = generator.integers(0, 5, 400), generator.integers(0, 33, 400)
    histogram = np.zeros((6, 40))
    np.add.at(histogram, (classes, distance), 1)
    found = ranking.class_average_precision(histogram)
    for c in range(5):
        assert found[c] == pytest.approx(ranking.average_precision(distance, classes == c), abs=1e-13)
    assert np.isnan(found[5])


def test_levels_by_counts_are_the_levels_of_the_items():
    generator = np.random.default_rng(3)
    for head in ([], [0.25, 0.5], [np.nan, 4.0, 0.5, np.inf, np.nan]):
        behind, right = generator.integers(4, 9, 50), generator.random(50 + len(head)) < 0.3
        distance = np.concatenate((head, behind))
        places = np.arange(12)
        told = ranking.counted_levels(
            np.concatenate((head, places)),
            np.concatenate((right[: len(head)], np.bincount(behind[right[len(head) :]], minlength=12))),
            np.concatenate((np.ones(len(head), int), np.bincount(behind, minlength=12))),
        )
        assert told.dtype == np.int64 and told.tolist() == ranking.levels(distance, right).tolist()


def test_harmonic_numbers_are_exact_to_rounding():
    whole = np.array([0, 1, 2, 254, 255, 256, 257, 1000, 10**5])
    slow = [math.fsum(1.0 / i for i in range(1, n + 1)) for n in whole.tolist()]
    assert ranking.harmonic(whole).tolist() == pytest.approx(slow, abs=4e-15, rel=0)


def test_ap_and_first_are_the_two_measures_and_unknown_where_nothing_is_relevant():
    generator = np.random.default_rng(4)
    d, r = generator.integers(0, 9, 40), generator.random(40) < 0.2
    measures = ranking.average_precision(d, r), ranking.recall_at_1(d, r)
    assert ranking.ap_and_first(ranking.levels(d, r)) == measures
    assert np.isnan(ranking.ap_and_first(ranking.levels(d, np.zeros(40, bool)))).all()
    assert np.isnan(ranking.ap_and_first(np.zeros((2, 0), np.int64))).all()


def test_without_ties_it_is_ordinary_ap_on_a_large_gallery():
    generator = np.random.default_rng(2)
    d, r = generator.permutation(5000), generator.random(5000) < 0.02
    assert ranking.average_precision(d, r) == pytest.approx(plain_ap(list(r[np.argsort(d)])), abs=1e-12)


def test_edges():
    none = np.zeros(3, bool)
    assert np.isnan(ranking.average_precision(np.arange(3), none))
    assert np.isnan(ranking.recall_at_1(np.arange(3), none))
    assert np.isnan(ranking.recall_at(np.arange(3), none, 2))
    assert ranking.precision_at(np.arange(3), none, 2) == 0.0
    assert np.isnan(ranking.average_precision(np.zeros(0), np.zeros(0, bool)))
    with_nan, right = np.array([np.nan, 2.0, np.nan, 1.0]), np.array([1, 0, 0, 0], bool)
    assert ranking.average_precision(with_nan, right) == pytest.approx((1 / 3 + 1 / 4) / 2)
    with pytest.raises(GalleryError, match="one length"):
        ranking.average_precision(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(GalleryError, match="at least 1"):
        ranking.precision_at(np.zeros(3), none, 0)
