"""Twin fusion against a slow loop."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from core.errors import GalleryError
from core.types import Codes, Hits, Keys
from index.codes import NO_DISTANCE, NO_KEY
from index.exact import ExactIndex
from index.fuse import Mode, fuse, fuse_distances


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b))


def slow_fuse(
    adapted: Hits, frozen: Hits, p: Codes, q: Codes, codes: Codes, k: int, mode: Mode, weight: float = 1.0
) -> tuple[list[list[int]], list[list[int]]]:
    """Gallery keys are 10 * position here."""
    keys, nearer = [], []
    for row in range(len(p)):
        union = {int(key) for hits in (adapted, frozen) for key in hits.keys[row]} - {NO_KEY}
        scored = []
        for key in union:
            d, e = distance(p[row], codes[key // 10]), distance(q[row], codes[key // 10])
            by = {"sum": d + e, "max": min(d, e), "mixture": weight * d + e}
            scored.append((by[mode], key, min(d, e)))
        best = sorted(scored)[:k]
        best += [(0, NO_KEY, NO_DISTANCE)] * (k - len(best))
        keys.append([key for _, key, _ in best])
        nearer.append([near for _, _, near in best])
    return keys, nearer


def setting(bits: int, count: int, rows: int) -> tuple[ExactIndex, Codes, Codes, Codes]:
    rng = np.random.default_rng(bits + count)
    codes = rng.integers(0, 4, (count, bits // 8), dtype=np.uint8)
    index = ExactIndex(bits)
    index.add(10 * np.arange(count), codes)
    p = rng.integers(0, 4, (rows, bits // 8), dtype=np.uint8)
    q = p.copy()
    q[:, 0] ^= 1
    return index, codes, p, q


def lookup(codes: Codes) -> Callable[[Keys], Codes]:
    return lambda keys: codes[np.maximum(keys, 0) // 10]


WEIGHTED: tuple[tuple[Mode, float], ...] = (
    ("sum", 1.0), ("max", 1.0), ("mixture", 0.25), ("mixture", 1.0), ("mixture", 4.0)
)  # fmt: skip


@pytest.mark.parametrize(("mode", "weight"), WEIGHTED)
@pytest.mark.parametrize(("bits", "count"), [(8, 30), (24, 300), (64, 300), (64, 4), (64, 0)])
@pytest.mark.parametrize(("first", "second", "k"), [(20, 20, 10), (5, 9, 14), (3, 1, 50)])
def test_equals_slow_loop(
    mode: Mode, weight: float, bits: int, count: int, first: int, second: int, k: int
) -> None:
    index, codes, p, q = setting(bits, count, 5)
    adapted, frozen = index.search(p, first), index.search(q, second)
    code_of = lookup(codes if count else np.zeros((1, bits // 8), np.uint8))
    hits = fuse(adapted, frozen, p, q, code_of, k, mode, weight)
    assert hits.keys.dtype == np.int64 and hits.distances.dtype == np.int32
    keys, nearer = slow_fuse(adapted, frozen, p, q, codes, k, mode, weight)
    assert hits.keys.tolist() == keys
    assert hits.distances.tolist() == nearer


@pytest.mark.parametrize(("mode", "weight"), WEIGHTED)
def test_whole_gallery_as_shortlist_equals_fused_distances(mode: Mode, weight: float) -> None:
    index, codes, p, q = setting(24, 60, 4)
    ours, theirs = index.distances(p), index.distances(q)
    order = np.argsort(fuse_distances(ours, theirs, mode, weight), axis=1, kind="stable")
    hits = fuse(index.search(p, 60), index.search(q, 60), p, q, lookup(codes), 60, mode, weight)
    assert np.array_equal(hits.keys, 10 * order)
    assert np.array_equal(hits.distances, np.take_along_axis(np.minimum(ours, theirs), order, 1))


def test_every_row_has_a_weight_of_its_own() -> None:
    index, codes, p, q = setting(24, 300, 3)
    adapted, frozen, weights = index.search(p, 20), index.search(q, 20), np.array([0.25, 4.0, 1.0])
    together = fuse(adapted, frozen, p, q, lookup(codes), 10, "mixture", weights)
    for row, weight in enumerate(weights.tolist()):
        one = slice(row, row + 1)
        hits = [Hits(side.keys[one], side.distances[one]) for side in (adapted, frozen)]
        alone = fuse(*hits, p[one], q[one], lookup(codes), 10, "mixture", weight)
        assert np.array_equal(together.keys[one], alone.keys)


def test_equal_twins_keep_the_order() -> None:
    index, codes, p, _ = setting(64, 300, 6)
    alone = index.search(p, 20)
    for mode, weight in WEIGHTED:
        both = fuse(alone, alone, p, p, lookup(codes), 20, mode, weight)
        assert np.array_equal(both.keys, alone.keys) and np.array_equal(both.distances, alone.distances)


def test_none_is_the_adapted_shortlist() -> None:
    index, codes, p, q = setting(64, 30, 3)
    adapted = index.search(p, 12)
    hits = fuse(adapted, index.search(q, 12), p, q, lookup(codes), 5, "none")
    assert np.array_equal(hits.keys, adapted.keys[:, :5])
    assert np.array_equal(hits.distances, adapted.distances[:, :5])
    longer = fuse(adapted, adapted, p, q, lookup(codes), 14, "none")
    assert longer.keys[:, 12:].tolist() == [[NO_KEY] * 2] * 3
    assert longer.distances[:, 12:].tolist() == [[NO_DISTANCE] * 2] * 3


def test_empty_batch_and_inputs_stay_as_they_are() -> None:
    index, codes, p, q = setting(64, 30, 3)
    a, f = index.search(p, 5), index.search(q, 5)
    before = a.keys.copy(), a.distances.copy(), f.keys.copy()
    fuse(a, f, p, q, lookup(codes), 5, "sum")
    assert [x.tolist() for x in before] == [a.keys.tolist(), a.distances.tolist(), f.keys.tolist()]
    empty = index.search(p[:0], 5)
    assert fuse(empty, empty, p[:0], q[:0], lookup(codes), 5, "sum").keys.shape == (0, 5)


def test_wrong_calls_are_refused() -> None:
    index, codes, p, q = setting(64, 30, 3)
    hits = index.search(p, 5)
    with pytest.raises(GalleryError, match="one batch"):
        fuse(hits, index.search(q[:2], 5), p, q, lookup(codes), 5, "sum")
    with pytest.raises(GalleryError, match="64 bits"):
        fuse(hits, hits, p, q[:, :4], lookup(codes), 5, "sum")
    with pytest.raises(GalleryError, match="rebuild"):
        fuse(hits, hits, p, q, lookup(codes[:, :4]), 5, "sum")
    with pytest.raises(GalleryError, match="k >= 1"):
        fuse(hits, hits, p, q, lookup(codes), 0, "sum")
    with pytest.raises(GalleryError, match="mode"):
        fuse(hits, hits, p, q, lookup(codes), 5, "mean")  # type: ignore[arg-type]
    with pytest.raises(GalleryError, match="one shape"):
        fuse_distances(hits.distances, hits.distances[:, :2], "sum")
    for weight in (0.0, -1.0, np.inf, np.nan, 0.3, np.array([1.0, 0.0, 1.0])):
        with pytest.raises(GalleryError, match="above 0"):
            fuse(hits, hits, p, q, lookup(codes), 5, "mixture", weight)


def test_fused_distances_by_hand() -> None:
    a, f = np.array([[3, 0, 7]], np.int32), np.array([[1, 2, 7]], np.int32)
    assert fuse_distances(a, f, "sum").tolist() == [[4, 2, 14]]
    assert fuse_distances(a, f, "max").tolist() == [[1, 0, 7]]
    assert fuse_distances(a, f, "none").tolist() == [[3, 0, 7]]
    assert fuse_distances(a, f, "mixture", 0.25).tolist() == [[7, 8, 35]], "4 frozen + adapted"
    assert fuse_distances(a, f, "mixture", 2.0).tolist() == [[28, 8, 84]]
    both = fuse_distances(np.vstack((a, a)), np.vstack((f, f)), "mixture", np.array([0.25, 2.0]))
    assert both.tolist() == [[7, 8, 35], [28, 8, 84]]


def test_is_fast_enough_for_the_stream() -> None:
    """B = 64, K = 100: 2.5 ms measured on one core; the bound leaves room for a busy machine."""
    index, codes, p, q = setting(128, 5000, 64)
    a, f = index.search(p, 100), index.search(q, 100)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        fuse(a, f, p, q, lookup(codes), 10, "sum")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.025
