"""The falling curve: against the formula of isotonic regression, by hand, and kept with a base."""

import numpy as np
import pytest

from core.errors import ArtifactError
from core.expected import fitted, precision_at, read, written
from core.references import ExpectedQuality


def slow(drops: list[float], precision: list[float]) -> dict[float, float]:
    """Drop -> value of the best falling steps: the least, over where a run begins, of the largest mean."""
    places = sorted(set(drops))
    inside = [[p for d, p in zip(drops, precision) if d == place] for place in places]

    def mean(first: int, last: int) -> float:
        values = [value for each in inside[first : last + 1] for value in each]
        return sum(values) / len(values)

    count = len(places)
    return {
        place: min(max(mean(first, last) for last in range(at, count)) for first in range(at + 1))
        for at, place in enumerate(places)
    }


def test_values_by_hand() -> None:
    curve = fitted([0, 1, 2, 4], [0.9, 0.4, 0.6, 0.1])  # 1 and 2 stand in the wrong order
    assert curve.drops.tolist() == [0, 1.5, 4] and curve.queries == 4
    assert curve.precision == pytest.approx([0.9, 0.5, 0.1])
    asked = np.array([-5, 0, 0.75, 1.5, 2.75, 9, np.nan])
    assert precision_at(curve, asked) == pytest.approx([0.9, 0.9, 0.7, 0.5, 0.3, 0.1, np.nan], nan_ok=True)


def test_what_only_rises_is_one_mean() -> None:
    curve = fitted([3, 1, 2], [0.9, 0.1, 0.5])
    assert curve.drops.tolist() == [2] and curve.precision == pytest.approx([0.5])


def test_equal_drops_count_together_in_any_order() -> None:
    one, other = fitted([1, 1, 0], [0.2, 0.6, 0.8]), fitted([0, 1, 1], [0.8, 0.6, 0.2])
    assert one.drops.tolist() == other.drops.tolist() == [0, 1]
    assert one.precision == pytest.approx([0.8, 0.4]) and other.precision == pytest.approx([0.8, 0.4])


def test_it_is_isotonic_regression() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        drops = np.round(rng.normal(size=40), 1)  # many are equal
        precision = np.clip(0.6 - 0.3 * drops + 0.4 * rng.normal(size=40), 0, 1)
        curve, best = fitted(drops, precision), slow(drops.tolist(), precision.tolist())
        runs: dict[float, list[float]] = {}
        for drop in drops.tolist():
            runs.setdefault(round(best[drop], 9), []).append(drop)
        levels = sorted(runs, reverse=True)
        assert curve.precision == pytest.approx(levels, abs=1e-6), f"seed {seed}"
        assert curve.drops == pytest.approx([np.mean(runs[level]) for level in levels], abs=1e-6), f"{seed}"


def test_a_base_keeps_it() -> None:
    curve = fitted([0, 1, 2], [0.9, 0.5, 0.1])
    again = read(written(curve))
    assert (again.drops == curve.drops).all() and (again.precision == curve.precision).all()
    assert again.queries == 3 and again.drops.dtype == np.float32


def test_what_cannot_be_fitted_is_refused() -> None:
    for drops, precision in (([], []), ([1.0], [0.5, 0.5]), ([np.nan], [0.5]), ([1.0], [np.inf])):
        with pytest.raises(ArtifactError):
            fitted(drops, precision)


def test_what_is_no_such_curve_is_refused() -> None:
    def curve(drops: list[float], precision: list[float]) -> dict[str, np.ndarray]:
        return written(ExpectedQuality(np.float32(drops), np.float32(precision), 2))

    wrong = [
        (curve([], []), "expected as many"),
        (curve([0, 1], [0.5]), "expected as many"),
        (curve([0, np.nan], [0.5, 0.4]), "all of them numbers"),
        (curve([1, 0], [0.5, 0.4]), "rises"),
        (curve([0, 1], [0.4, 0.5]), "rises"),
        (curve([0, 1], [1.5, 0.5]), "0 to 1"),
        ({"drops": np.zeros(1, np.float32)}, "lacks 'precision'"),
    ]
    for tensors, reason in wrong:
        with pytest.raises(ArtifactError, match=reason):
            read(tensors)
