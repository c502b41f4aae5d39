"""Indexes that look at a part of the items: what they promise besides speed."""

import numpy as np
import pytest

from core.config import IndexKind
from core.errors import ConfigError
from core.types import Codes
from index.approximate import FEWEST, KINDS, ApproximateIndex, recall
from index.binary import FaissIndex
from index.codes import paired

BITS, ITEMS, K = 64, FEWEST + 2000, 20


def world(count: int, seed: int) -> Codes:
    """Codes of clustered features, as galleries have them."""
    fixed = np.random.default_rng(0)
    centres, planes = fixed.normal(size=(120, 32)), fixed.normal(size=(32, BITS))
    draw = np.random.default_rng(seed)
    rows = centres[draw.integers(len(centres), size=count)] + 0.6 * draw.normal(size=(count, 32))
    return np.packbits(rows @ planes >= 0, axis=1, bitorder="little")


def share(index: ApproximateIndex) -> float:
    """Recall@10 of the queries."""
    exact = index.search(QUERIES, 10, index.keys).distances
    return recall(index.search(QUERIES, 10).distances, exact)


KEYS = np.random.default_rng(5).permutation(3 * ITEMS)[:ITEMS].astype(np.int64)
CODES, QUERIES = world(ITEMS, 1), world(40, 2)


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest) -> ApproximateIndex:
    made = ApproximateIndex(BITS, request.param)
    made.add(KEYS, CODES)
    return made


@pytest.fixture(scope="module")
def flat() -> FaissIndex:
    made = FaissIndex(BITS)
    made.add(KEYS, CODES)
    return made


def test_found_items_have_their_true_distances_in_the_order_of_the_exact_search(
    index: ApproximateIndex,
) -> None:
    hits = index.search(QUERIES, K)
    assert hits.keys.shape == (40, K) and (hits.keys >= 0).all()
    code = {int(key): row for key, row in zip(KEYS, CODES, strict=True)}
    true = paired(QUERIES, np.array([[code[int(key)] for key in row] for row in hits.keys]))
    assert np.array_equal(true, hits.distances)
    pairs = [
        list(zip(*row, strict=True)) for row in zip(hits.distances.tolist(), hits.keys.tolist(), strict=True)
    ]
    assert all(row == sorted(set(row)) for row in pairs)


def test_nearly_all_of_the_nearest_are_found(index: ApproximateIndex) -> None:
    assert share(index) >= 0.95


def test_an_effort_that_looks_at_all_finds_all(flat: FaissIndex) -> None:
    made = ApproximateIndex(BITS, "ivf", effort=10_000)
    made.add(KEYS, CODES)
    assert share(made) == 1.0
    found, exact = made.search(QUERIES, K), flat.search(QUERIES, K)
    assert np.array_equal(found.distances, exact.distances)
    below = exact.distances < exact.distances[:, -1:]  # at the cut a tie may be another item
    assert np.array_equal(found.keys[below], exact.keys[below])


def test_little_effort_finds_less_and_never_leaves_a_place_empty() -> None:
    made = ApproximateIndex(BITS, "multi-hash")
    made.add(KEYS, CODES)
    made.at(0)
    hits = made.search(QUERIES, K)
    assert (hits.keys >= 0).all() and share(made) < 0.95
    far = ~QUERIES[:3]
    assert (made.search(far, 500).keys >= 0).all()


def test_filters_and_distances_are_exact(index: ApproximateIndex, flat: FaissIndex) -> None:
    allowed = KEYS[::7]
    ours, theirs = index.search(QUERIES, K, allowed), flat.search(QUERIES, K, allowed)
    assert np.array_equal(ours.keys, theirs.keys) and np.array_equal(ours.distances, theirs.distances)
    assert np.array_equal(index.distances(QUERIES[:2]), flat.distances(QUERIES[:2]))


@pytest.mark.parametrize("kind", KINDS)
def test_few_items_are_searched_exactly_and_removal_is_heeded(kind: IndexKind) -> None:
    few, many = ApproximateIndex(BITS, kind), ApproximateIndex(BITS, kind)
    few.add(KEYS[:500], CODES[:500])
    flat = FaissIndex(BITS)
    flat.add(KEYS[:500], CODES[:500])
    assert np.array_equal(few.search(QUERIES, K).keys, flat.search(QUERIES, K).keys)
    many.add(KEYS, CODES)
    gone = np.unique(many.search(QUERIES, 3).keys)
    assert many.remove(gone) == len(gone) == ITEMS - len(many)
    assert not np.isin(many.search(QUERIES, K).keys, gone).any()
    assert many.remove(gone) == 0


def test_two_builds_are_one(index: ApproximateIndex) -> None:
    again = ApproximateIndex(BITS, index.kind)
    order = np.random.default_rng(9).permutation(ITEMS)
    again.add(KEYS[order], CODES[order])
    one, other = index.search(QUERIES, K), again.search(QUERIES, K)
    assert np.array_equal(one.keys, other.keys) and np.array_equal(one.distances, other.distances)


def test_what_it_is_not_is_said() -> None:
    with pytest.raises(ConfigError, match="expected flat, ivf, hnsw, multi-hash"):
        ApproximateIndex(BITS, "lsh")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="effort of at least 1"):
        ApproximateIndex(BITS, "ivf", effort=0)
