"""Splits of two domains: sizes, what may overlap and what must not, and seeds."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import pytest

from core.errors import ConfigError
from qshift.benchmarks.hashing.splits import Scheme, gallery, make_splits

PARTS = ("source_train", "target_train", "query", "source_db", "target_db")
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


def parts(source: int, target: int, seed: int, scheme: Scheme) -> dict[str, list[int]]:
    found = make_splits(source, target, seed, scheme)
    return {name: getattr(found, name).tolist() for name in PARTS}


@pytest.mark.parametrize(
    "scheme, sizes",
    [
        ("target10", (37, 585, 64, 37, 585)),
        ("fixed500", (37, 149, 500, 37, 149)),
        ("out_of_sample", (26, 391, 64, 11, 194)),
    ],
)
def test_sizes_are_the_floor_of_the_shares(scheme: Scheme, sizes: tuple[int, ...]) -> None:
    found = parts(37, 649, 0, scheme)
    assert tuple(len(found[name]) for name in PARTS) == sizes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_cover_both_domains_and_queries_stand_alone(scheme: Scheme) -> None:
    found = {name: set(rows) for name, rows in parts(50, 600, 3, scheme).items()}
    assert all(len(rows) == len(found[name]) for name, rows in parts(50, 600, 3, scheme).items())
    assert found["source_train"] | found["source_db"] == set(range(50))
    assert found["target_train"] | found["target_db"] | found["query"] == set(range(600))
    assert not found["query"] & (found["target_train"] | found["target_db"])
    shared = [bool(found[f"{side}_train"] & found[f"{side}_db"]) for side in ("source", "target")]
    assert shared == [scheme != "out_of_sample"] * 2


@pytest.mark.parametrize("scheme", ["target10", "fixed500"])
def test_learned_codes_of_training_rows_are_in_the_order_of_the_gallery(scheme: Scheme) -> None:
    found = parts(50, 600, 3, scheme)
    assert found["source_db"] == found["source_train"] and found["target_db"] == found["target_train"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_seeds_decide_the_split_and_nothing_else_does(scheme: Scheme) -> None:
    np.random.seed(1)
    first = parts(50, 600, 3, scheme)
    np.random.seed(2)
    assert parts(50, 600, 3, scheme) == first
    assert parts(50, 600, 4, scheme)["query"] != first["query"]


def test_queries_are_drawn_evenly_and_do_not_depend_on_the_source() -> None:
    drawn = np.zeros(100)
    for seed in range(400):
        drawn[make_splits(5, 100, seed, "target10").query] += 1
    assert drawn.sum() == 4000 and drawn.min() > 15 and drawn.max() < 70
    query = make_splits(5, 100, 0, "target10").query
    assert np.ptp(query) > 20, "not neighbours in the file"
    expected = parts(5, 100, 9, "out_of_sample")
    other = parts(80, 100, 9, "out_of_sample")
    assert [other[n] for n in ("query", "target_train", "target_db")] == [
        expected[n] for n in ("query", "target_train", "target_db")
    ]


def test_the_gallery_is_the_source_across_and_the_target_within() -> None:
    found = make_splits(50, 600, 3, "out_of_sample")
    directions: tuple[Literal["cross", "single"], ...] = ("cross", "single")
    cross, single = (gallery(found, direction).tolist() for direction in directions)
    assert cross == found.source_db.tolist() and single == found.target_db.tolist()


@pytest.mark.parametrize(
    "given, told",
    [
        ((1, 9, 0, "target10"), "target10: at least 1 source and 10 target rows expected, got 1 and 9"),
        ((0, 20, 0, "target10"), "got 0 and 20"),
        ((5, 500, 0, "fixed500"), "501 target rows expected, got 5 and 500: take a larger task"),
        ((3, 20, 0, "out_of_sample"), "at least 4 source"),
        ((5, 50, 0, "halves"), "one of target10, fixed500, out_of_sample expected, got 'halves'"),
    ],
)
def test_too_few_rows_are_refused(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_splits(*given)


@pytest.mark.parametrize(
    "source, target, scheme", [(1, 10, "target10"), (1, 501, "fixed500"), (4, 10, "out_of_sample")]
)
def test_the_fewest_rows_leave_no_part_empty(source: int, target: int, scheme: Scheme) -> None:
    assert all(parts(source, target, 0, scheme).values())
