"""Intervals and tests against slow loops and against what they must do by definition."""

from itertools import product

import numpy as np
import pytest

from qshift.benchmarks.suite.significance import flipped, holm, interval, resampled


def test_one_seed_is_the_paired_bootstrap_over_queries() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(1.0, 2.0, (50, 1))
    means = resampled([gains], np.random.default_rng(1), 20000)[:, 0]
    assert means.mean() == pytest.approx(gains.mean(), abs=0.02)
    assert means.std() == pytest.approx(gains.std() / np.sqrt(50), rel=0.03)


def test_seeds_are_resampled_above_the_queries() -> None:
    # Queries of a seed agree: all that varies is the seed, and the spread must be that of three seeds.
    gains = [np.full((40, 1), value) for value in (0.0, 3.0, 6.0)]
    means = resampled(gains, np.random.default_rng(0), 20000)[:, 0]
    expected = sorted({sum(draw) / 3 for draw in product((0.0, 3.0, 6.0), repeat=3)})
    assert sorted(set(np.round(means, 9))) == pytest.approx(expected)
    shares = [np.mean([sum(d) / 3 == e for d in product((0.0, 3.0, 6.0), repeat=3)]) for e in expected]
    found = [float(np.mean(np.isclose(means, e))) for e in expected]
    assert found == pytest.approx(shares, abs=0.01)


def test_the_resamples_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(2)
    gains = [rng.normal(size=(n, 2)) for n in (7, 5, 9)]
    found = resampled(gains, np.random.default_rng(3), 40)
    draw = np.random.default_rng(3)
    chosen = draw.integers(3, size=(40, 3))
    slow = np.zeros((40, 2))
    for place in range(3):
        for seed in range(3):
            rows = [r for r in range(40) if chosen[r, place] == seed]
            picks = draw.integers(len(gains[seed]), size=(len(rows), len(gains[seed])))
            for row, pick in zip(rows, picks, strict=True):
                slow[row] += gains[seed][pick].mean(axis=0) / 3
    assert found == pytest.approx(slow, abs=1e-12)


def test_methods_share_resamples_and_differences_are_paired() -> None:
    gains = np.random.default_rng(0).normal(size=(30, 1))
    means = resampled([np.hstack([gains, gains + 1.0])], np.random.default_rng(0), 100)
    assert means[:, 1] - means[:, 0] == pytest.approx(np.ones(100))
    low, high = interval(means)
    assert np.all(low < high) and low.shape == (2,)


def test_sign_flips_agree_with_all_of_them() -> None:
    gains = np.array([[0.5], [1.2], [-0.3], [0.8], [0.1], [0.9], [1.5], [-0.2]])
    observed = abs(gains.sum())
    exact = np.mean(
        [abs(np.dot(signs, gains[:, 0])) >= observed - 1e-12 for signs in product((-1, 1), repeat=8)]
    )
    assert flipped(gains, np.random.default_rng(0), 40000)[0] == pytest.approx(exact, abs=0.006)


def test_no_gain_at_all_is_not_significant_and_a_clear_one_is() -> None:
    none, clear = np.zeros((40, 1)), np.ones((40, 1))
    p = flipped(np.hstack([none, clear]), np.random.default_rng(0), 1000)
    assert p[0] == 1.0 and p[1] == pytest.approx(1 / 1001)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.9, 0.8]) == [1.0, 1.0]
