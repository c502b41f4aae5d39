"""Measures of hashing evaluations against loops in plain Python, hand cases and all orders inside ties."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import ConfigError
from monitoring import hashing, ranking
from monitoring.hashing import RadiusCounts

CASES = [
    ([0, 1, 1, 3], [1, 1, 0, 1]),
    ([1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0]),
    ([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 1, 0]),
    ([2, 2, 1, 1, 3, 3], [0, 1, 0, 0, 1, 1]),
    ([5, 5, 5, 0, 0, 7], [0, 0, 1, 0, 0, 0]),
    ([4, 4], [1, 1]),
]


def asked(distance: list[int], relevant: list[int], bits: int = 8) -> tuple[Any, Any, Any, Any]:
    """One query whose gallery stands at these distances; the query's class is 1."""
    rows = np.arange(bits) < np.array(distance)[:, None]
    packed = np.packbits(rows, axis=1, bitorder="little")
    return np.zeros((1, packed.shape[1]), np.uint8), packed, np.array([1]), np.array(relevant)


def counted(distance: list[int], relevant: list[int], bits: int = 8) -> RadiusCounts:
    return hashing.radius_counts(*asked(distance, relevant, bits), bits)


def drawn(seed: int, queries: int = 12, items: int = 60, bits: int = 12, classes: int = 4) -> Any:
    draw = np.random.default_rng(seed)
    codes = [np.packbits(draw.random((n, bits)) < 0.5, axis=1, bitorder="little") for n in (queries, items)]
    return (*codes, draw.integers(0, classes, queries), draw.integers(0, classes, items), bits)


def orders(distance: list[int], relevant: list[int]) -> list[list[int]]:
    found = [
        [relevant[i] for i in order]
        for order in permutations(range(len(distance)))
        if sorted(distance) == [distance[i] for i in order]
    ]
    assert found
    return found


def plain_ap(ranked: list[int], total: int | None = None) -> float:
    hits = [i for i, hit in enumerate(ranked, 1) if hit]
    return sum(n / place for n, place in enumerate(hits, 1)) / (total or len(hits)) if hits else 0.0


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def measures(counts: RadiusCounts) -> list[Any]:
    ns = (1, 3, 10, 60, 100)
    return [
        hashing.map_all(counts), hashing.pooled_pr_area(counts), hashing.pr_by_radius(counts),
        hashing.precision_at(counts, ns), hashing.recall_at(counts, ns),
    ]  # fmt: skip


# Counts.


@pytest.mark.parametrize("bits", [1, 8, 12, 64, 70, 128])
def test_counts_are_those_of_a_loop_over_bits(bits: int) -> None:
    queries, items, y_q, y_g, _ = drawn(bits, 5, 40, bits)
    expected = np.zeros((2, 5, bits + 1), np.int64)
    for q in range(5):
        for i in range(40):
            d = sum((int(a) ^ int(b)).bit_count() for a, b in zip(queries[q], items[i]))
            expected[0, q, d] += 1
            expected[1, q, d] += int(y_q[q] == y_g[i])
    counts = hashing.radius_counts(queries, items, y_q, y_g, bits)
    assert counts.items.dtype == counts.relevant.dtype == np.int64
    assert np.array_equal(counts.items, expected[0]) and np.array_equal(counts.relevant, expected[1])


def test_blocks_of_queries_change_nothing() -> None:
    queries, items, y_q, y_g, bits = drawn(0, 5, 400_000, 6)
    whole = hashing.radius_counts(queries, items, y_q, y_g, bits)  # more pairs than are held at once
    for q in range(5):
        one = hashing.radius_counts(queries[q : q + 1], items, y_q[q : q + 1], y_g, bits)
        assert np.array_equal(one.items[0], whole.items[q])
        assert np.array_equal(one.relevant[0], whole.relevant[q])


def test_without_queries_or_items_there_is_nothing_to_count() -> None:
    queries, items, y_q, y_g, bits = drawn(0)
    none = hashing.radius_counts(queries[:0], items, y_q[:0], y_g, bits)
    assert none.items.shape == none.relevant.shape == (0, bits + 1)
    empty = hashing.radius_counts(queries, items[:0], y_q, y_g[:0], bits)
    assert empty.items.sum() == 0
    for counts, excluded in ((none, 0), (empty, 12)):
        value, left_out = hashing.map_all(counts)
        assert math.isnan(value) and left_out == excluded
        assert hashing.pr_by_radius(counts) == ()
        assert math.isnan(hashing.recall_at(counts, (1,))[0])
    assert hashing.precision_at(empty, (3,)) == (0.0,)
    assert hashing.map_at_k(queries, items[:0], y_q, y_g[:0], 5) == 0


# Mean average precision.


def test_the_hand_case() -> None:
    counts = counted([0, 1, 1, 3], [1, 1, 0, 1])
    assert hashing.pooled_pr_area(counts) == pytest.approx(11 / 18)
    assert hashing.map_all(counts)[0] == pytest.approx((1 + (1 + 2 / 3) / 2 + 3 / 4) / 3)
    assert round(hashing.map_all(counts)[0], 4) == 0.8611


@pytest.mark.parametrize("distance, relevant", CASES)
def test_map_all_is_the_mean_over_all_orders_inside_ties(distance: list[int], relevant: list[int]) -> None:
    expected = mean([plain_ap(ranked) for ranked in orders(distance, relevant)])
    assert hashing.map_all(counted(distance, relevant)) == (pytest.approx(expected, abs=1e-13), 0)


def test_map_all_is_the_sum_over_ties_and_the_mean_over_queries() -> None:
    counts = hashing.radius_counts(*drawn(1, 30, 300, 10, 3))
    values, other = [], []
    for items, relevant in zip(counts.items.tolist(), counts.relevant.tolist()):
        before = found = 0
        summed = Fraction(0)
        for n, g in zip(items, relevant):
            for j in range(1, n + 1):
                inside = Fraction((j - 1) * (g - 1), max(n - 1, 1))
                summed += Fraction(g, n) * (found + 1 + inside) / (before + j)
            before, found = before + n, found + g
        values.append(float(summed / found))
        distance = np.repeat(np.arange(11), items)
        hits = np.concatenate([np.arange(n) < g for n, g in zip(items, relevant)])
        other.append(ranking.average_precision(distance, hits))
    assert hashing.map_all(counts) == (pytest.approx(mean(values), abs=1e-13), 0)
    assert hashing.map_all(counts)[0] == pytest.approx(mean(other), abs=1e-13)


def test_queries_without_a_relevant_item_are_left_out_of_map_all_and_zero_in_map_at_k() -> None:
    _, codes, _, labels = asked([0, 1, 2, 3], [1, 0, 1, 0])
    queries, y = np.zeros((3, 1), np.uint8), np.array([1, 7, 1])
    one = plain_ap([1, 0, 1, 0])
    assert hashing.map_all(hashing.radius_counts(queries, codes, y, labels, 8)) == (pytest.approx(one), 1)
    assert hashing.map_at_k(queries, codes, y, labels, 4) == pytest.approx(2 * one / 3)
    counts = hashing.radius_counts(queries, codes, y, labels, 8)
    assert hashing.precision_at(counts, (1,))[0] == pytest.approx(2 / 3), "they count in precision"
    assert hashing.recall_at(counts, (3,))[0] == pytest.approx(1), "and not in recall"


def test_everything_relevant_is_one() -> None:
    queries, items, y_q, y_g, bits = drawn(2, classes=1)
    counts = hashing.radius_counts(queries, items, y_q, y_g, bits)
    assert hashing.map_all(counts) == (pytest.approx(1, abs=1e-13), 0)
    assert hashing.map_at_k(queries, items, y_q, y_g, 7) == pytest.approx(1)
    assert hashing.precision_at(counts, (1, 60)) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_map_at_k_divides_by_the_hits_within_k(k: int) -> None:
    distance, relevant = [7, 2, 0, 4, 5, 8, 1], [1, 1, 0, 0, 1, 1, 0]
    ranked = [relevant[distance.index(d)] for d in sorted(distance)]
    expected = plain_ap(ranked[:k])
    assert hashing.map_at_k(*asked(distance, relevant), k) == pytest.approx(expected)
    if k >= len(distance):
        assert hashing.map_all(counted(distance, relevant))[0] == pytest.approx(expected)


def test_map_at_k_breaks_ties_by_a_seeded_shuffle_and_not_by_the_order_of_the_gallery() -> None:
    distance, relevant = [1, 1, 1, 1, 1, 2], [1, 1, 0, 0, 0, 1]  # sorted by label: 1.0 if it broke the ties
    given = asked(distance, relevant)
    values = [hashing.map_at_k(*given, 3, seed=seed) for seed in range(400)]
    expected = mean([plain_ap(ranked[:3]) for ranked in orders(distance, relevant)])
    assert mean(values) == pytest.approx(expected, abs=0.05) and len(set(values)) > 2
    assert hashing.map_at_k(*given, 3) == values[0]
    queries, items, y_q, y_g, bits = drawn(3, 200, 300)
    by_label = np.argsort(y_g, kind="stable")
    value = hashing.map_at_k(queries, items[by_label], y_q, y_g[by_label], 300)
    counts = hashing.radius_counts(queries, items, y_q, y_g, bits)
    assert value == pytest.approx(hashing.map_all(counts)[0], abs=0.005)


# Invariants.


def test_neither_the_order_of_the_gallery_nor_the_names_of_classes_matter() -> None:
    queries, items, y_q, y_g, bits = drawn(4)
    expected = measures(hashing.radius_counts(queries, items, y_q, y_g, bits))
    for order in (np.random.default_rng(0).permutation(60), np.argsort(y_g), np.argsort(-y_g)):
        assert measures(hashing.radius_counts(queries, items[order], y_q, y_g[order], bits)) == expected
    names = np.array([40, 3, -7, 12])
    assert measures(hashing.radius_counts(queries, items, names[y_q], names[y_g], bits)) == expected
    at_k = hashing.map_at_k(queries, items, y_q, y_g, 9)
    assert hashing.map_at_k(queries, items, names[y_q], names[y_g], 9) == at_k
    assert measures(hashing.radius_counts(queries, items, y_q, (y_g + 1) % 4, bits)) != expected


# Pooled curves.


def slow_area(counts: RadiusCounts) -> float:
    """The steps one by one."""
    items, relevant = counts.items.sum(0).tolist(), counts.relevant.sum(0).tolist()
    largest = max(h for h, n in enumerate(items) if n)
    points: list[tuple[float, float]] = []
    for h in range(largest):
        pairs, good = sum(items[: h + 1]), sum(relevant[: h + 1])
        if pairs:
            points.append((good / sum(relevant), good / pairs))
    if relevant[0]:
        points.insert(0, (0.0, points[0][1]))
    kept: list[tuple[float, float]] = []
    for point in points:
        if not kept or point[0] != kept[-1][0]:
            kept.append(point)
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(kept))


@pytest.mark.parametrize("bits", [3, 5, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_pooled_area_is_that_of_its_steps(bits: int, seed: int) -> None:
    counts = hashing.radius_counts(*drawn(seed, 8, 20, bits))
    assert hashing.pooled_pr_area(counts) == pytest.approx(slow_area(counts), abs=1e-14)


def test_paths_of_the_pooled_area() -> None:
    found_at_once = counted([0, 0, 2, 5], [1, 0, 1, 1])
    assert hashing.pooled_pr_area(found_at_once) == pytest.approx((1 / 2 + (1 / 2 + 2 / 3) / 2) / 3)
    nothing_at_once = counted([0, 1, 2, 5], [0, 1, 1, 1])  # (0, 0), (1/3, 1/2), (2/3, 2/3)
    assert hashing.pooled_pr_area(nothing_at_once) == pytest.approx((1 / 4 + (1 / 2 + 2 / 3) / 2) / 3)
    nobody_at_once = counted([1, 2, 5], [1, 1, 1])  # (1/3, 1), (2/3, 1): no point at recall 0
    assert hashing.pooled_pr_area(nobody_at_once) == pytest.approx(1 / 3)
    repeated = counted([0, 1, 1, 2, 3], [1, 0, 0, 1, 1])  # of (1/3, 1) and (1/3, 1/3) the first
    assert hashing.pooled_pr_area(repeated) == pytest.approx((1 + (1 + 1 / 2) / 2) / 3)


@pytest.mark.parametrize("case", [([0, 0, 0], [1, 0, 1]), ([3, 3], [1, 0]), ([0, 1, 2], [0, 0, 0])])
def test_no_curve_gives_nan_and_a_warning(case: tuple[list[int], list[int]]) -> None:
    with pytest.warns(RuntimeWarning, match="no precision-recall curve"):
        assert math.isnan(hashing.pooled_pr_area(counted(*case)))


def test_precision_and_recall_by_radius() -> None:
    counts = hashing.radius_counts(*drawn(6))
    expected = []
    for h in range(13):
        pairs, good = counts.items[:, : h + 1].sum(), counts.relevant[:, : h + 1].sum()
        if pairs and counts.items[:, h:].sum():
            expected.append((good / counts.relevant.sum(), good / pairs))
    assert hashing.pr_by_radius(counts) == tuple(expected)
    assert expected[-1][0] == 1, "the largest radius is there"
    assert hashing.pr_by_radius(counted([2, 2, 5], [0, 0, 0])) == ()


@pytest.mark.parametrize("distance, relevant", CASES)
@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_precision_and_recall_at_n_are_means_over_all_orders(
    distance: list[int], relevant: list[int], n: int
) -> None:
    found = mean([float(sum(ranked[:n])) for ranked in orders(distance, relevant)])
    counts = counted(distance, relevant)
    assert hashing.precision_at(counts, (n,)) == (pytest.approx(found / n),)
    assert hashing.recall_at(counts, (n,)) == (pytest.approx(found / sum(relevant)),)


def test_values_are_plain_numbers() -> None:
    counts = counted([0, 1, 1, 3], [1, 1, 0, 1])
    found = [
        hashing.map_all(counts)[0],
        hashing.pooled_pr_area(counts),
        *hashing.precision_at(counts, (1, 2)),
    ]
    found += [*hashing.recall_at(counts, (1, 2)), *sum(hashing.pr_by_radius(counts), ())]
    assert {type(value) for value in found} == {float}


# Errors.


def test_input_that_does_not_fit_is_refused() -> None:
    queries, items, y_q, y_g, _ = drawn(5)
    dirty: NDArray[np.uint8] = items.copy()
    dirty[3, 1] |= 1 << 5
    count = hashing.radius_counts
    for given, told in (
        ((queries, items, y_q, y_g, 17), "17 bits need codes of 3 bytes, got 2"),
        ((queries, dirty, y_q, y_g, 12), "zeros beyond 12 bits expected"),
        ((dirty, items, y_g, y_g, 12), "zeros beyond 12 bits expected"),
        ((queries, items[:, :1], y_q, y_g, 12), "one width expected, got 2 and 1 bytes"),
        ((queries, items, y_q[:3], y_g, 12), "one query label for each of 12"),
        ((queries, items, y_q, y_g[:, None], 12), "one gallery label for each of 60"),
        ((queries.astype(np.int8), items, y_q, y_g, 12), "query codes: packed uint8"),
        ((queries, items[0], y_q, y_g, 12), "gallery codes: packed uint8"),
    ):
        with pytest.raises(ConfigError, match=told):
            count(*given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count(queries, dirty, y_q, y_g, 16).items.sum() == 720, "all 16 bits count there"
    with pytest.raises(ConfigError, match="k of at least 1"):
        hashing.map_at_k(queries, items, y_q, y_g, 0)
    with pytest.raises(ConfigError, match="0 queries"):
        hashing.map_at_k(queries[:0], items, y_q[:0], y_g, 3)
    with pytest.raises(ConfigError, match="N of at least 1 expected, got 0"):
        hashing.precision_at(counted([1], [1]), (0,))
