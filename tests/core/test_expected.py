"""The falling curve: against the formula of isotonic regression, by hand, and kept with a base."""

import numpy as np
import pytest

from core.errors import ArtifactError
from core.expected import TWINS, fitted, precision_at, read, written
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


def seen(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drops, shares of ten and a precision that either alone does not tell."""
    rng = np.random.default_rng(seed)
    drops, shares = rng.normal(size=count), rng.integers(1, 11, count) / 10
    return drops, shares, np.clip(0.3 - 0.1 * drops + 0.5 * shares + 0.05 * rng.normal(size=count), 0, 1)


def test_where_neighbours_agree_is_a_term_of_its_own() -> None:
    drops, shares, precision = seen(400, 0)
    curve = fitted(drops, precision, shares)
    assert curve.agreed is not None
    both = curve.agreed[0]
    assert (np.diff(both.by_drop) <= 0).all() and (np.diff(both.by_share) >= 0).all()
    again = fitted(drops, precision)
    assert (again.drops == curve.drops).all() and (again.precision == curve.precision).all()
    new, at, right = seen(400, 1)
    alone, together = precision_at(curve, new), precision_at(curve, new, at)
    assert (alone == precision_at(again, new)).all()
    assert np.abs(together - right).mean() < 0.06 < 0.1 < np.abs(alone - right).mean()
    term, other = np.interp(new, both.drops, both.by_drop), np.interp(at, both.shares, both.by_share)
    assert together == pytest.approx(np.clip(term + other, 0, 1))
    assert np.isnan(precision_at(curve, np.array([np.nan]), np.array([0.5]))).all()


def test_a_curve_without_agreement_does_not_look_at_shares() -> None:
    curve = fitted([0, 1], [0.9, 0.1])
    assert precision_at(curve, np.array([0.5]), np.array([1.0])).tolist() == pytest.approx([0.5])


def test_a_base_keeps_both_terms_and_gives_equal_bytes() -> None:
    one, other = (written(fitted(*(lambda d, s, p: (d, p, s))(*seen(200, 3)))) for _ in range(2))
    terms = {f"{twin}.{name}" for twin in TWINS for name in ("drops", "by_drop", "shares", "by_share")}
    assert set(one) == {"drops", "precision", "queries"} | terms
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    again = read(one)
    assert again.agreed is not None and (again.agreed[1].by_share == one["adapted.by_share"]).all()
    old = {name: one[name] for name in ("drops", "precision", "queries")}
    assert read(old).agreed is None, "of a base from before there was agreement"


def test_terms_that_go_the_wrong_way_are_refused() -> None:
    whole = written(fitted([0, 1, 2], [0.9, 0.5, 0.1], [1.0, 0.5, 0.1]))
    wrong = [
        ({**whole, "adapted.by_share": np.float32([0.5, 0.4])}, "falls with the share"),
        ({**whole, "frozen.by_drop": np.float32([0.1, 0.4])}, "rises with the drop"),
        ({name: one for name, one in whole.items() if name != "frozen.by_drop"}, "lacks 'frozen.by_drop'"),
    ]
    wrong[0][0]["adapted.shares"] = wrong[1][0]["frozen.drops"] = np.float32([0, 1])
    for tensors, reason in wrong:
        with pytest.raises(ArtifactError, match=reason):
            read(tensors)
    with pytest.raises(ArtifactError, match="as many shares"):
        fitted([0.0, 1.0], [0.5, 0.5], [1.0])


def test_each_twin_has_terms_of_its_own_answers() -> None:
    """Answers of quiet batches stand for both; a twin without any takes all."""
    drops, shares, precision = seen(300, 5)
    twins = np.arange(300) % 3
    curve = fitted(drops, precision * np.where(twins == 1, 0.5, 1.0), shares, twins)
    assert curve.agreed is not None
    for adapted, other in ((False, 1), (True, 0)):
        kept = twins != other
        alone = fitted(drops[kept], (precision * np.where(twins == 1, 0.5, 1.0))[kept], shares[kept])
        found, right = (precision_at(one, drops, shares, adapted) for one in (curve, alone))
        assert (found == right).all()
    assert precision_at(curve, drops, shares, True).mean() < precision_at(curve, drops, shares).mean() - 0.1
    lonely, every = fitted(drops, precision, shares, np.zeros(300)), fitted(drops, precision, shares)
    assert lonely.agreed is not None and every.agreed is not None
    assert (lonely.agreed[1].by_share == every.agreed[1].by_share).all()


def gathering(seed: int, worth: float) -> dict[str, np.ndarray]:
    """Six kinds of shift in three batches each, of which some have gathered; then answers lose `worth`."""
    rng = np.random.default_rng(seed)
    batch = np.repeat(np.arange(18), 30)
    gathered = rng.permutation(np.linspace(0, 1, 18) ** 2)[batch]
    drops, shares = rng.normal(size=len(batch)), rng.random(len(batch))
    precision = np.clip(0.6 + 0.3 * shares - 0.05 * drops - worth * gathered, 0, 1)
    ways = np.array([f"kind {one // 3}/{one % 3}" for one in batch])
    return {
        "drops": drops,
        "precision": precision + 0.02 * rng.normal(size=len(batch)),
        "shares": shares,
        "twins": np.arange(len(batch)) % 3,
        "gathered": gathered,
        "ways": ways,
    }


def test_gathering_is_a_term_where_it_foretells_kinds_that_were_left_out() -> None:
    known, new = gathering(0, 0.5), gathering(1, 0.5)
    curve = fitted(**known)
    without = fitted(**{name: one for name, one in known.items() if name != "gathered"})
    assert curve.agreed is not None and without.agreed is not None
    for adapted, terms in enumerate(curve.agreed):
        assert terms.gathered is not None and terms.by_gathered is not None
        assert (np.diff(terms.gathered) > 0).all() and (np.diff(terms.by_gathered) <= 0).all()
        asked = new["drops"], new["shares"], bool(adapted)
        found = precision_at(curve, *asked, new["gathered"])
        assert np.abs(found - new["precision"]).mean() < 0.04
        assert np.abs(precision_at(without, *asked, new["gathered"]) - new["precision"]).mean() > 0.08
        assert (precision_at(curve, *asked) == precision_at(curve, *asked, np.zeros(len(new["drops"])))).all()


def test_gathering_is_left_alone_where_it_says_nothing() -> None:
    """One way to read it for all kinds is needed: here each kind has its own, or it is noise, or one kind."""
    plain = fitted(**{n: one for n, one in gathering(2, 0.5).items() if n not in ("gathered", "ways")})
    lone, unnamed = gathering(2, 0.5), gathering(2, 0.5)
    lone["ways"] = np.array([way.replace(way[:6], "kind 0") for way in lone["ways"]])
    del unnamed["ways"]
    for asked in (lone, unnamed):
        found = fitted(**asked)
        assert found.agreed is not None and found.agreed[0].gathered is None
        assert all((written(plain)[name] == one).all() for name, one in written(found).items())
    useless = gathering(3, 0.0)
    useless["gathered"] = np.where(useless["ways"] < "kind 3", 1.0, 0.0) * useless["gathered"]
    useless["precision"] = np.clip(useless["precision"] - 0.3 * (useless["ways"] >= "kind 5"), 0, 1)
    found = fitted(**useless)
    assert found.agreed is not None and found.agreed[0].gathered is None


def test_a_base_keeps_the_term_of_gathering_and_older_ones_have_none() -> None:
    whole = written(fitted(**gathering(0, 0.5)))
    again = read(whole)
    assert again.agreed is not None and again.agreed[1].by_gathered is not None
    assert (again.agreed[1].by_gathered == whole["adapted.by_gathered"]).all()
    old = read({name: one for name, one in whole.items() if "gathered" not in name})
    assert old.agreed is not None and old.agreed[0].gathered is None
    half = {name: one for name, one in whole.items() if name != "frozen.by_gathered"}
    with pytest.raises(ArtifactError, match=r"lacks 'frozen\.by_gathered'"):
        read(half)
    with pytest.raises(ArtifactError, match="rises with the gathering"):
        read({**whole, "frozen.gathered": np.float32([0, 1]), "frozen.by_gathered": np.float32([0, 1])})
    with pytest.raises(ArtifactError, match="as many shares, and gathered"):
        fitted([0.0, 1.0], [0.5, 0.5], [1.0, 1.0], gathered=[1.0])
