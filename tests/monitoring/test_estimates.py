"""Estimators against slow loops, against SciPy, and by coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from monitoring.estimates import BettingInterval, Fading, bootstrap_interval, normal_interval


def test_fading_equals_a_weighted_loop():
    generator = np.random.default_rng(0)
    values, faded = generator.random(300), Fading(0.97)
    for i, x in enumerate(values):
        faded.add(float(x))
        weights = np.array([0.97 ** (i - j) for j in range(i + 1)])
        seen = values[: i + 1]
        mean = (weights * seen).sum() / weights.sum()
        n = weights.sum() ** 2 / (weights**2).sum()
        assert faded.value == pytest.approx(mean, abs=1e-12)
        assert faded.n_eff == pytest.approx(n, rel=1e-9)
        if i:
            variance = (weights * (seen - mean) ** 2).sum() / weights.sum() * n / (n - 1)
            assert faded.variance == pytest.approx(variance, rel=1e-8)
    assert faded.n_eff == pytest.approx((1 + 0.97) / (1 - 0.97), rel=1e-3)


def test_without_fading_it_is_the_plain_mean_and_variance():
    values, faded = np.random.default_rng(1).random(50), Fading(1.0)
    for x in values:
        faded.add(float(x))
    estimate = faded.estimate(0.0, 1.0)
    low, high = normal_interval(values)
    assert faded.variance == pytest.approx(values.var(ddof=1))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((values.mean(), low, high))


def test_a_corrected_value_is_as_if_it_had_been_there():
    values = np.random.default_rng(2).random(40)
    right, wrong = Fading(0.95), Fading(0.95)
    for i, x in enumerate(values):
        right.add(float(x))
        wrong.add(0.123 if i == 31 else float(x))
    wrong.correct(0.123, float(values[31]), age=40 - 1 - 31)
    assert wrong.value == pytest.approx(right.value, abs=1e-14)
    assert wrong.variance == pytest.approx(right.variance, abs=1e-14)


def test_intervals_of_nothing_and_of_one_value():
    assert math.isnan(Fading().value) and math.isnan(Fading().estimate(0, 1).low)
    one = Fading()
    one.add(0.5)
    assert one.value == 0.5 and math.isnan(one.estimate(0, 1).low)
    for values in (np.zeros(0), np.ones(1)):
        assert all(math.isnan(v) for v in normal_interval(values))
        assert all(math.isnan(v) for v in bootstrap_interval(values, np.random.default_rng(0)))


def test_bootstrap_agrees_with_scipy_and_is_reproducible():
    values = np.random.default_rng(3).normal(0.1, 0.3, 200)
    ours = bootstrap_interval(values, np.random.default_rng(4))
    again = bootstrap_interval(values, np.random.default_rng(4))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours == again
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.006)


def slow_betting(values, alpha, grid):
    """The same sequence, one candidate and one value at a time."""
    inside = []
    for g in range(grid + 1):
        m, up, down = g / grid, 1.0, 1.0
        seen = [0.5]
        spread = 0.25
        for s, x in enumerate(values, 1):
            bet = math.sqrt(2 * math.log(2 / alpha) / (spread / s * s * math.log(1 + s)))
            up *= 1 + min(bet, 0.5 / m if m else math.inf) * (x - m)
            down *= 1 - min(bet, 0.5 / (1 - m) if m < 1 else math.inf) * (x - m)
            before = sum(seen) / len(seen)
            seen.append(x)
            spread += (x - before) * (x - sum(seen) / len(seen))
        if up / 2 + down / 2 < 1 / alpha:
            inside.append(m)
    return (max(0, min(inside) - 1 / grid), min(1, max(inside) + 1 / grid)) if inside else (math.nan,) * 2


def test_betting_interval_equals_the_slow_loop():
    values = np.random.default_rng(6).beta(2, 3, 60)
    fast = BettingInterval(0.05, grid=50)
    assert fast.bounds == (0.0, 1.0)
    for i, x in enumerate(values, 1):
        fast.update(float(x))
        if i % 15 == 0:
            assert fast.bounds == pytest.approx(slow_betting(values[:i], 0.05, 50), abs=1e-12)


def test_betting_interval_shrinks_around_the_mean():
    sequence, generator = BettingInterval(), np.random.default_rng(7)
    for _ in range(800):
        sequence.update(0.55 + float(generator.normal(0, 0.05)))
    low, high = sequence.bounds
    assert low < 0.55 < high and high - low < 0.06


def test_a_mean_that_moves_is_not_steady():
    still, moved = BettingInterval(), BettingInterval()
    generator = np.random.default_rng(10)
    for i in range(800):
        noise = float(generator.normal(0, 0.05))
        still.update(0.5 + noise)
        moved.update((0.2 if i < 400 else 0.9) + noise)
        assert moved.steady or i > 400
    assert still.steady and not moved.steady


@pytest.mark.slow
def test_betting_interval_covers_at_every_one_of_4000_looks():
    generator = np.random.default_rng(8)
    missed, streams = 0, 200
    for _ in range(streams):
        sequence = BettingInterval(0.05, grid=200)
        for x in (1 + np.clip(generator.normal(0.03, 0.15, 4000), -1, 1)) / 2:
            sequence.update(float(x))
            low, high = sequence.bounds
            if not low <= 0.515 <= high:
                missed += 1
                break
    assert missed <= 0.05 * streams


@pytest.mark.slow
def test_normal_and_bootstrap_intervals_cover():
    generator = np.random.default_rng(9)
    normal, boot, streams = 0, 0, 2000
    for _ in range(streams):
        values = generator.beta(1.2, 0.8, 150)
        low, high = normal_interval(values)
        normal += low <= 0.6 <= high
        low, high = bootstrap_interval(values, generator, 400)
        boot += low <= 0.6 <= high
    assert 0.935 <= normal / streams <= 0.965
    assert 0.925 <= boot / streams <= 0.965
