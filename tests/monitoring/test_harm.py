"""Harm and help are said when they are proved: never by looking often, and soon enough."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.harm import SignTest, Verdict


def draws(mean: float, count: int, seed: int) -> list[float]:
    """Differences of AP with an sd of .15."""
    return np.clip(np.random.default_rng(seed).normal(mean, 0.15, count), -1.0, 1.0).tolist()


def found_after(differences: list[float], before: list[float] | None = None) -> int:
    """How many labels a loss takes; one more than there are where it is not found."""
    test = SignTest()
    for d in before or []:
        test.update(d)
    return next((n for n, d in enumerate(differences, 1) if test.update(d)), len(differences) + 1)


def test_looking_after_every_label_finds_no_harm_that_is_not_there():
    false = sum(found_after(draws(0.0, 2000, seed)) <= 2000 for seed in range(200))
    assert false <= 4  # 1 % in expectation at most


def test_a_loss_of_five_points_is_found_within_three_hundred_labels():
    needed = [found_after(draws(-0.05, 600, seed)) for seed in range(300)]
    assert np.percentile(needed, 90) <= 310 and np.percentile(needed, 50) <= 240


def test_a_loss_after_a_long_good_stretch_is_found_too():
    needed = [found_after(draws(-0.05, 800, seed), draws(0.03, 1000, 1000 + seed)) for seed in range(100)]
    assert np.percentile(needed, 90) <= 400


def test_the_budget_is_one_over_all_finds():
    test = SignTest(alpha=0.01)
    slices = []
    for epoch in range(1, 2000):
        test.epoch = epoch
        slices.append(np.exp(-test._needed))
    assert sum(slices) == pytest.approx(0.01, rel=1e-3) and sum(slices) <= 0.01


def test_a_bet_does_not_know_the_value_it_is_made_on():
    past = draws(-0.05, 50, 1)
    after = []
    for last in (-0.4, 0.4):
        test = SignTest()
        for d in past:
            test.update(d)
        before = test.evidence
        test.update(last)
        after.append(np.exp((test.evidence - before) * test._needed) - 1.0)
    assert after[0] == pytest.approx(-after[1]) and after[0] > 0


def test_a_verdict_is_what_was_proved_last_and_lapses():
    verdict = Verdict()
    assert verdict.said == "waiting"
    verdict.update(0.0)
    assert verdict.said == "neutral"
    for _ in range(40):
        verdict.update(0.5)
    assert verdict.said == "helps" and verdict.alarms == 0
    for _ in range(60):
        verdict.update(-0.5)
    assert verdict.said == "harms" and verdict.alarms >= 1
    for _ in range(Verdict.STANDS + 1):
        verdict.update(0.0)
    assert verdict.said == "neutral"


def test_a_lasting_loss_stays_said():
    verdict, said = Verdict(), []
    for d in draws(-0.05, 5000, 7):
        verdict.update(d)
        said.append(verdict.said)
    first = said.index("harms")
    assert set(said[first:]) == {"harms"}


def test_labels_at_random_are_no_harm():
    """Labels flipped at random: differences are noise with many zeros, and the mean is 0."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        verdict = Verdict()
        for _ in range(1500):
            verdict.update(0.0 if rng.random() < 0.6 else float(rng.choice([-1.0, 1.0]) * rng.random()))
            assert verdict.said != "harms"
