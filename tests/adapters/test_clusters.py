"""Style clusters: the whitened space, when a kind of query is founded, and what a lane remembers."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from adapters.online import clusters
from adapters.online.clusters import APART, EPS, LINEAR, PATIENCE, SHRINK, StyleClusters, StyleSpace
from core.config import ClusterConfig
from core.references import Calibration

WIDTHS = (3, 2, 3)
PARTS = (slice(0, 3), slice(5, 8))  # the channels of layers 0 and 2
SIZE = 2 * 6  # mean and log sd of each
CONFIG = ClusterConfig(most=6, founding=8, quantile=0.95, layers=(0, 2))


def pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Channel means and sds [count, 8] of clean pictures; the channels go together, as they do."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(8) + 0.25 * np.random.default_rng(99).normal(size=(8, 8))
    mean = 0.5 + rng.normal(size=(count, 8)) @ mixing
    sd = np.exp(0.3 * rng.normal(size=(count, 8)) + 0.03 * mean)
    return mean.astype(np.float32), sd.astype(np.float32)


def calibration(count: int = 400) -> Calibration:
    mean, sd = pictures(0, count)
    return Calibration(np.zeros((count, 2), np.float32), mean, sd, WIDTHS)


def early(mean: np.ndarray, sd: np.ndarray) -> list[torch.Tensor]:
    """Inputs [b, C, 1, 2] of layers 0 and 2 that have these channel statistics exactly."""
    pixels = torch.from_numpy(np.stack((mean + sd, mean - sd), axis=2)[:, :, None])
    return [pixels[:, part] for part in PARTS]


def made(config: ClusterConfig = CONFIG) -> StyleClusters:
    return StyleClusters(StyleSpace(calibration(), config), config)


def kind(found: StyleClusters, axis: int, seed: int = 0, rows: int = 12, away: float = 3.0) -> np.ndarray:
    """Styles [rows, 12] around a point `away` radii from the clean domain, on an axis (negative: below)."""
    centre = np.zeros(SIZE)
    centre[abs(axis) % SIZE] = math.copysign(away * found.radius, axis)
    return centre + 0.3 * np.random.default_rng(seed).normal(size=(rows, SIZE))


def clean(seed: int, rows: int) -> np.ndarray:
    """Styles well inside the clean radius."""
    return 0.5 * np.random.default_rng(seed).normal(size=(rows, SIZE))


def state(found: StyleClusters) -> str:
    tensors, meta = found.snapshot()
    return json.dumps([{name: array.tolist() for name, array in tensors.items()}, meta])


def send(found: StyleClusters, styles: np.ndarray) -> list[int]:
    routing = found.route(styles)
    found.commit(routing)
    labels: list[int] = routing.labels.tolist()
    return labels


def lengths(mean: np.ndarray, sd: np.ndarray) -> list[float]:
    """Mahalanobis lengths under the shrunk clean covariance, entry by entry."""
    source = calibration()

    def style(m: np.ndarray, s: np.ndarray) -> list[float]:
        return [
            value
            for part in PARTS
            for value in (*map(float, m[part]), *(math.log(float(v) + EPS) for v in s[part]))
        ]

    base = np.array([style(m, s) for m, s in zip(source.mean, source.sd)])
    centre = base.mean(0)
    covariance = np.empty((SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            both = sum((a - centre[i]) * (b - centre[j]) for a, b in zip(base[:, i], base[:, j]))
            both /= len(base) - 1
            covariance[i, j] = both + SHRINK * EPS**2 if i == j else (1 - SHRINK) * both
    gaps = [np.array(style(m, s)) - centre for m, s in zip(mean, sd)]
    return [math.sqrt(gap @ np.linalg.solve(covariance, gap)) for gap in gaps]


# The space


def test_lengths_are_mahalanobis_and_the_radius_is_their_quantile() -> None:
    source, found = calibration(), made()
    clean_lengths = lengths(source.mean, source.sd)
    assert found.radius == pytest.approx(np.quantile(clean_lengths, 0.95), rel=1e-6)
    mean, sd = pictures(5, 40)
    mean[20:] += 20.0  # far: these are kept shorter
    expected, full = [], LINEAR * found.radius
    for length in lengths(mean, sd):
        expected.append(length if length <= full else full + 2 * math.log(1 + length - full))
    got = np.linalg.norm(found.styles(early(mean, sd)), axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert (got[:20] < full).sum() > 15 and (got[20:] > full).all()


def test_clean_styles_have_about_unit_covariance() -> None:
    source, found = calibration(), made()
    styles = found.styles(early(source.mean, source.sd))
    assert styles.shape == (400, SIZE) and styles.dtype == np.float64
    covariance = np.cov(styles.T)
    # Exactly so but for the shrinking and for the few clean pictures whose lengths are kept shorter.
    assert np.abs(np.diag(covariance) - 1).max() < 0.25
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.25
    share = (np.linalg.norm(styles, axis=1) > found.radius).mean()
    assert share == pytest.approx(0.05, abs=0.01)


def test_a_short_style_keeps_its_direction_and_a_long_one_too() -> None:
    found = made()
    mean, sd = pictures(5, 1)
    near = found.styles(early(mean, sd))[0]
    middle = calibration().mean.mean(0)
    far = found.styles(early(middle + 40 * (mean - middle), np.full_like(sd, 1.0)))[0]
    further = found.styles(early(middle + 80 * (mean - middle), np.full_like(sd, 1.0)))[0]
    assert np.linalg.norm(further) > np.linalg.norm(far) > np.linalg.norm(near)
    cosine = far @ further / np.linalg.norm(far) / np.linalg.norm(further)
    assert cosine > 0.99
    # Twice the shift is 2 log 2 further, not twice as far.
    assert np.linalg.norm(further) - np.linalg.norm(far) == pytest.approx(2 * math.log(2), abs=0.2)


# Founding


def test_clean_batches_found_nothing() -> None:
    found = made()
    for batch in range(20):
        assert set(send(found, found.styles(early(*pictures(100 + batch, 64))))) == {0}
    assert found.ids == (0,)
    np.testing.assert_array_equal(found.snapshot()[0]["centroids"], np.zeros((1, SIZE)))
    assert found.snapshot()[0]["counts"].tolist() == [20 * 64]


def test_two_styles_in_a_mixed_batch_found_two_pure_clusters() -> None:
    found = made()
    mean, sd = pictures(7, 60)
    mean[20:40] += 15.0
    sd[40:] *= 0.05
    order = np.random.default_rng(0).permutation(60)
    labels = np.array(send(found, found.styles(early(mean[order], sd[order]))))
    truth = (order >= 20).astype(int) + (order >= 40)
    assert found.ids == (0, 1, 2)
    groups = [set(labels[truth == group].tolist()) for group in range(3)]
    assert groups[0] == {0} and sorted(groups[1] | groups[2]) == [1, 2]
    assert len(groups[1]) == len(groups[2]) == 1


@pytest.mark.parametrize(("rows", "expected"), [(7, (0,)), (8, (0, 1))])
def test_fewer_than_the_founding_rows_found_nothing(rows: int, expected: tuple[int, ...]) -> None:
    found = made()
    labels = send(found, np.vstack((clean(1, 30), kind(found, 2, rows=rows))))
    assert found.ids == expected
    assert labels[30:] == [expected[-1]] * rows


def test_the_rows_of_a_kind_add_up_within_one_batch_only() -> None:
    found = made()
    for batch in range(5):
        send(found, kind(found, 2, seed=batch, rows=7))
    assert found.ids == (0,)


@pytest.mark.parametrize("away", [2.0, 3.0, 5.0])
def test_far_rows_without_a_common_style_found_nothing(away: float) -> None:
    found = made()
    axes = np.vstack((np.eye(SIZE), -np.eye(SIZE))) * away * found.radius
    assert set(send(found, axes)) == {0}
    assert found.ids == (0,)


@pytest.mark.parametrize(("centre", "across", "founds"), [(0.85, 0.7, False), (0.95, 0.6, True)])
def test_the_outskirts_of_a_known_kind_found_nothing(centre: float, across: float, founds: bool) -> None:
    """All rows are far and near each other; what counts is their centre's distance."""
    found = made()
    axes = np.eye(SIZE)[1:]
    styles = found.radius * (centre * np.eye(SIZE)[0] + across * np.vstack((axes, -axes)))
    assert (np.linalg.norm(styles, axis=1) > found.radius).all()
    assert (centre > APART) is founds
    send(found, styles)
    assert found.ids == ((0, 1) if founds else (0,))


def test_outskirts_do_not_keep_another_kind_from_being_found() -> None:
    found = made()
    axes = np.eye(SIZE)[1:]
    outskirts = found.radius * (0.85 * np.eye(SIZE)[0] + 0.7 * np.vstack((axes, -axes)))
    labels = send(found, np.vstack((outskirts, kind(found, -3))))
    assert found.ids == (0, 1) and labels[-12:] == [1] * 12


# What a lane remembers


def test_a_kind_that_comes_back_gets_its_id_again() -> None:
    found = made()
    seen = [set(send(found, kind(found, axis, seed))) for seed, axis in enumerate((2, 5, 2, 5, 2))]
    assert seen == [{1}, {2}, {1}, {2}, {1}]
    assert found.snapshot()[0]["counts"].tolist() == [0, 36, 24]


def test_a_centroid_is_the_mean_of_its_rows_and_follows_with_inertia(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seen = made(), []
    for seed in range(3):
        seen.append(kind(found, 2, seed))
        send(found, seen[-1])
    np.testing.assert_allclose(found.snapshot()[0]["centroids"][1], np.vstack(seen).mean(0), rtol=1e-9)
    monkeypatch.setattr(clusters, "INERTIA", 24)
    before = found.snapshot()[0]["centroids"][1]
    late = kind(found, 2, 7)
    send(found, late)
    expected = before + 12 / 24 * (late.mean(0) - before)
    np.testing.assert_allclose(found.snapshot()[0]["centroids"][1], expected, rtol=1e-9)


def test_the_clean_domain_never_moves() -> None:
    found = made()
    send(found, clean(0, 50) + 0.5)
    np.testing.assert_array_equal(found.snapshot()[0]["centroids"][0], np.zeros(SIZE))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_than_most(most: int) -> None:
    found = made(ClusterConfig(most=most, layers=(0, 2)))
    styles = np.vstack([kind(found, axis, axis % 7) for axis in (1, 3, -5, 8)])
    send(found, styles)
    send(found, styles)
    assert len(found.ids) == most and found.ids == tuple(range(most))


def test_the_longest_unused_gives_way_only_after_patience() -> None:
    found = made(ClusterConfig(most=3, layers=(0, 2)))
    assert set(send(found, kind(found, 2))) == {1}
    assert set(send(found, kind(found, 5))) == {2}
    for _ in range(PATIENCE - 3):
        send(found, clean(1, 4))
    other = kind(found, -8)
    early_routing = found.route(other)  # batch PATIENCE - 1, and kind 1 was used in batch 0
    assert early_routing.retired == () and early_routing.table.ids == (0, 1, 2)
    send(found, clean(1, 4))
    routing = found.route(other)
    assert routing.retired == (1,) and routing.table.ids == (0, 2, 3)
    assert set(routing.labels.tolist()) == {3}
    found.commit(routing)
    assert found.ids == (0, 2, 3)
    assert set(send(found, kind(found, 5, 9))) == {2}


def test_an_id_is_never_given_twice() -> None:
    found = made(ClusterConfig(most=2, layers=(0, 2)))
    for number, axis in enumerate((1, 3, 5), start=1):
        assert set(send(found, kind(found, axis))) == {number}
        for _ in range(PATIENCE):
            send(found, clean(0, 2))


def put(found: StyleClusters, places: Sequence[float], counts: Sequence[int]) -> None:
    """A table with centroids on one axis, at these radii from the clean domain."""
    centroids = np.zeros((len(places) + 1, SIZE))
    centroids[1:, 4] = np.array(places) * found.radius
    used = np.array([0, *range(7, 7 + len(places))])
    tensors = {"centroids": centroids, "counts": np.array([5, *counts]), "used": used}
    ids = list(range(len(places) + 1))
    found.restore(tensors, {"ids": ids, "next": len(ids), "batches": 20})


@pytest.mark.parametrize(
    ("places", "counts", "merged", "ids", "left"),
    [
        ((3.0, 3.45), (10, 4), {2: 1}, (0, 1), [5, 14]),
        ((3.0, 3.45), (4, 10), {1: 2}, (0, 2), [5, 14]),
        ((3.0, 3.55), (4, 10), {}, (0, 1, 2), [5, 4, 10]),
        # 2 joins 3, the larger; 3 is .6 from 1 and stays.
        ((3.0, 3.3, 3.6), (9, 4, 5), {2: 3}, (0, 1, 3), [5, 9, 9]),
        ((3.0, 6.0, 3.2), (9, 4, 5), {3: 1}, (0, 1, 2), [5, 14, 4]),
        ((0.2,), (9,), {}, (0, 1), [5, 9]),
    ],
)
def test_clusters_that_have_met_are_one(
    places: tuple[float, ...], counts: tuple[int, ...], merged: dict[int, int], ids: tuple[int, ...],
    left: list[int],
) -> None:  # fmt: skip
    found = made()
    put(found, places, counts)
    got = found.commit(found.route(np.zeros((0, SIZE))))
    assert got == merged and found.ids == ids
    tensors = found.snapshot()[0]
    assert tensors["counts"].tolist() == left
    if got:
        (gone, into), *_ = got.items()
        assert tensors["used"][found.ids.index(into)] == 6 + max(gone, into)
        assert len(tensors["centroids"]) == len(ids)


def test_routing_changes_nothing_until_it_is_committed() -> None:
    found = made()
    send(found, kind(found, 2))
    before = state(found)
    routing = found.route(np.vstack((kind(found, 5), clean(0, 3), kind(found, 2))))
    assert state(found) == before
    again = found.route(np.vstack((kind(found, 5), clean(0, 3), kind(found, 2))))
    np.testing.assert_array_equal(routing.labels, again.labels)
    found.commit(routing)
    assert state(found) != before and found.ids == (0, 1, 2)


def test_restoring_continues_identically() -> None:
    one = made(ClusterConfig(most=3, layers=(0, 2)))
    for seed, axis in enumerate((2, 5, 2)):
        send(one, kind(one, axis, seed))
    tensors, meta = one.snapshot()
    kept = {name: array.copy() for name, array in tensors.items()}
    other = made(ClusterConfig(most=3, layers=(0, 2)))
    other.restore(tensors, json.loads(json.dumps(meta)))
    for seed, axis in enumerate((5, 8, 2, -3)):
        styles = kind(one, axis, 10 + seed)
        assert send(one, styles) == send(other, styles)
        assert state(one) == state(other)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, kept[name])  # a snapshot is no view


def test_permuted_rows_get_permuted_labels() -> None:
    one, other = made(), made()
    styles = np.vstack((kind(one, 2), clean(0, 10), kind(one, 5), kind(one, -8, rows=20)))
    order = np.random.default_rng(3).permutation(len(styles))
    labels, moved = np.array(send(one, styles)), np.array(send(other, styles[order]))
    np.testing.assert_array_equal(moved, labels[order])
    assert set(labels.tolist()) == {0, 1, 2, 3}


def test_an_empty_batch() -> None:
    found = made()
    routing = found.route(np.zeros((0, SIZE)))
    assert routing.labels.shape == (0,) and routing.retired == ()
    assert found.commit(routing) == {} and found.ids == (0,)


@pytest.mark.parametrize(
    "bad",
    [math.nan, 1e12, 1e30, math.inf, -math.inf],
)
def test_broken_pixels_do_not_poison_the_table(bad: float) -> None:
    found = made()
    send(found, kind(found, 2))
    mean, sd = pictures(3, 20)
    pixels = early(mean, sd)
    good = found.route(found.styles(pixels)).labels
    for layer in pixels:
        layer[:10, 0, 0, 0] = bad
    styles = found.styles(pixels)
    labels = np.array(send(found, styles))
    np.testing.assert_array_equal(labels[10:], good[10:])
    assert np.isfinite(found.snapshot()[0]["centroids"]).all()
    assert set(send(found, kind(found, 2, 5))) == {1}
    assert set(send(found, found.styles(early(*pictures(4, 20))))) == {0}
