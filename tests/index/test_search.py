"""Exact search against plain Python, and FAISS against exact search: distances, order, ties."""

from typing import Any

import numpy as np
import pytest

from core.errors import ConfigError, GalleryError
from core.types import Hits
from index.binary import FaissIndex, gpu_count, settle
from index.codes import NO_DISTANCE, NO_KEY
from index.exact import ExactIndex

Index = ExactIndex | FaissIndex
BACKENDS = [ExactIndex, FaissIndex]


def clustered(rng: np.random.Generator, count: int, bits: int, centres: int = 12) -> np.ndarray:
    """Codes as a trained head makes them: around few centres, most of them repeated."""
    centre = rng.integers(0, 2, (centres, bits), dtype=np.uint8)
    flips = rng.random((count, bits)) < 0.03
    return np.packbits(centre[rng.integers(0, centres, count)] ^ flips, axis=1, bitorder="little")


def slow_search(
    keys: np.ndarray, codes: np.ndarray, query: np.ndarray, k: int, allowed: set[int] | None = None
) -> tuple[list[int], list[int]]:
    """One query, as the definition has it."""
    found = sorted(
        (sum((int(x) ^ int(y)).bit_count() for x, y in zip(query, code)), int(key))
        for key, code in zip(keys, codes)
        if allowed is None or int(key) in allowed
    )[:k]
    found += [(NO_DISTANCE, NO_KEY)] * (k - len(found))
    return [key for _, key in found], [distance for distance, _ in found]


def assert_hits(hits: Hits, expected: list[tuple[list[int], list[int]]]) -> None:
    assert hits.keys.dtype == np.int64 and hits.distances.dtype == np.int32
    assert hits.distances.tolist() == [distances for _, distances in expected]
    assert hits.keys.tolist() == [keys for keys, _ in expected]


def assert_same(a: Hits, b: Hits) -> None:
    assert np.array_equal(a.distances, b.distances)
    assert np.array_equal(a.keys, b.keys)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [8, 24, 64])
@pytest.mark.parametrize("k", [1, 3, 40, 60])
def test_equals_plain_python_with_ties_and_keys_out_of_order(backend: type[Index], bits: int, k: int) -> None:
    rng = np.random.default_rng(bits + k)
    keys = rng.permutation(1000)[:40] * 7
    codes = clustered(rng, 40, bits, centres=3)
    queries = clustered(rng, 6, bits, centres=3)
    index = backend(bits)
    for part in (slice(0, 11), slice(11, 12), slice(12, 12), slice(12, 40)):
        index.add(keys[part], codes[part])
    assert_hits(index.search(queries, k), [slow_search(keys, codes, q, k) for q in queries])
    allowed = {*keys[::3].tolist(), 5}
    expected = [slow_search(keys, codes, q, k, allowed) for q in queries]
    assert_hits(index.search(queries, k, np.array(sorted(allowed, reverse=True))), expected)


@pytest.mark.parametrize("bits", [16, 64, 72, 128, 256])
@pytest.mark.parametrize("kind", ["ties", "clustered", "random"])
def test_faiss_equals_exact(bits: int, kind: str) -> None:
    rng = np.random.default_rng(bits)
    count = 3000
    if kind == "clustered":
        codes = clustered(rng, count, bits)
    else:
        codes = rng.integers(0, 3 if kind == "ties" else 256, (count, bits // 8), dtype=np.uint8)
    keys = rng.permutation(10 * count)[:count]
    exact, faiss = ExactIndex(bits), FaissIndex(bits, threads=1)
    for index in (exact, faiss):
        for start in range(0, count, 700):
            index.add(keys[start : start + 700], codes[start : start + 700])
    queries = np.concatenate((codes[::97], rng.integers(0, 256, (40, bits // 8), dtype=np.uint8)))
    for k in (1, 10, 100, count, count + 5):
        assert_same(faiss.search(queries, k), exact.search(queries, k))
    assert np.array_equal(faiss.distances(queries), exact.distances(queries))
    for share in (3, 300, 2000):
        allowed = rng.choice(keys, share, replace=False)
        assert_same(faiss.search(queries, 50, allowed), exact.search(queries, 50, allowed))
    gone = rng.choice(keys, 1000, replace=False)
    assert faiss.remove(gone) == exact.remove(gone) == 1000
    assert_same(faiss.search(queries, 100), exact.search(queries, 100))
    again = gone[::-1][:500]  # keys between those that stayed
    for index in (exact, faiss):
        index.add(again, codes[:500])
    assert_same(faiss.search(queries, 100), exact.search(queries, 100))


def test_ties_cut_beyond_one_block_of_faiss() -> None:
    """FAISS walks long galleries in blocks: the order of ties must survive them."""
    rng = np.random.default_rng(0)
    codes = clustered(rng, 70_000, 16)
    keys = rng.permutation(70_000)
    exact, faiss = ExactIndex(16), FaissIndex(16)
    for index in (exact, faiss):
        index.add(keys, codes)
    queries = codes[::9000]
    for k in (7, 500):
        assert_same(faiss.search(queries, k), exact.search(queries, k))


@pytest.mark.parametrize("backend", BACKENDS)
def test_searching_many_queries_equals_one_by_one(backend: type[Index]) -> None:
    rng = np.random.default_rng(4)
    index = backend(64)
    index.add(np.arange(900), clustered(rng, 900, 64))
    queries = clustered(rng, 70, 64)
    together = index.search(queries, 900)
    for row in (0, 33, 69):
        alone = index.search(queries[row : row + 1], 900)
        assert np.array_equal(alone.keys[0], together.keys[row])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_find(backend: type[Index]) -> None:
    index = backend(64)
    query = np.zeros((2, 8), np.uint8)
    empty = [([NO_KEY] * 3, [NO_DISTANCE] * 3)] * 2
    assert_hits(index.search(query, 3), empty)
    index.add(np.array([4]), query[:1])
    assert_hits(index.search(query, 3, np.array([], np.int64)), empty)
    assert_hits(index.search(query, 3, np.array([9])), empty)
    assert index.search(query[:0], 3).keys.shape == (0, 3)
    assert index.search(query[:0], 3).distances.shape == (0, 3)
    assert index.remove(np.array([4, 5])) == 1 and len(index) == 0
    assert_hits(index.search(query, 3), empty)
    assert index.distances(query).shape == (2, 0)
    index.add(np.array([], np.int64), query[:0])
    index.add(np.array([2]), query[:1])
    assert index.search(query, 1).keys.tolist() == [[2], [2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_arrays_are_read_right(backend: type[Index]) -> None:
    rng = np.random.default_rng(8)
    wide = rng.integers(0, 256, (50, 32), dtype=np.uint8)
    codes, keys = wide[::2, ::4], np.arange(100)[::-4]
    index = backend(64)
    index.add(keys, codes)
    queries = np.asfortranarray(wide[1:6, ::4])
    expected = [slow_search(keys, codes, q, 9) for q in queries]
    assert_hits(index.search(queries, 9), expected)
    wide[:] = 0
    assert_hits(index.search(queries, 9), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_calls_are_refused_and_change_nothing(backend: type[Index]) -> None:
    index = backend(64)
    code = np.zeros((1, 8), np.uint8)
    index.add(np.array([3]), code)
    for keys in ([3], [-1], [0.5], [[4]]):
        with pytest.raises(GalleryError):
            index.add(np.array(keys), code)
    with pytest.raises(GalleryError, match="again"):
        index.add(np.array([5, 5]), code.repeat(2, 0))
    with pytest.raises(GalleryError, match="one key per code"):
        index.add(np.array([5, 6]), code)
    wrongs: list[Any] = [code[:, :4], code.astype(np.int64), code[0]]
    for wrong in wrongs:
        with pytest.raises(GalleryError):
            index.add(np.array([5]), wrong)
        with pytest.raises(GalleryError):
            index.search(wrong, 1)
    for k in (0, -1):
        with pytest.raises(GalleryError, match="k >= 1"):
            index.search(code, k)
    assert len(index) == 1 and index.search(code, 2).keys.tolist() == [[3, -1]]
    with pytest.raises(GalleryError, match="multiple of 8"):
        backend(60)


def test_settle_repairs_any_order_of_ties() -> None:
    """What a GPU may return: right distances, ties in any order, a cut anywhere."""
    rng = np.random.default_rng(2)
    all_distances = rng.integers(0, 12, (30, 400)).astype(np.int32)
    all_distances[5] = 3
    exact = np.argsort(all_distances, axis=1, kind="stable")
    for fetched, found in ((20, 10), (64, 10), (399, 200), (400, 400), (10, 10)):
        jumbled = np.lexsort((rng.random((30, 400)), all_distances))[:, :fetched]
        distances, near, settled = settle(
            np.take_along_axis(all_distances, jumbled, 1), jumbled, found, items=400
        )
        assert np.array_equal(distances, np.take_along_axis(all_distances, exact, 1)[:, :found])
        assert np.array_equal(near[settled], exact[settled, :found])
        cut = np.sort(all_distances, axis=1)
        sure = cut[:, fetched - 1] > cut[:, found - 1]
        assert np.array_equal(settled, np.ones(30, bool) if fetched == 400 else sure)
    assert settle(np.zeros((1, 2), np.int32), np.array([[1, 0]]), 2, 3)[2].tolist() == [False]


@pytest.mark.skipif(gpu_count() > 0, reason="faiss sees a GPU here")
def test_without_a_gpu() -> None:
    assert FaissIndex(64, "auto").device == "cpu"
    with pytest.raises(ConfigError, match="sees no GPU"):
        FaissIndex(64, "cuda")


@pytest.mark.skipif(gpu_count() == 0, reason="faiss sees no GPU here")
@pytest.mark.parametrize("bits", [64, 72, 128])
def test_gpu_equals_exact(bits: int) -> None:
    rng = np.random.default_rng(bits)
    keys = rng.permutation(90_000)[:9000]
    codes = clustered(rng, 9000, bits)
    exact, gpu = ExactIndex(bits), FaissIndex(bits, "cuda")
    assert gpu.device == "cuda"
    queries = np.concatenate((codes[::300], rng.integers(0, 256, (9, bits // 8), dtype=np.uint8)))
    assert_same(gpu.search(queries, 5), exact.search(queries, 5))
    for index in (exact, gpu):
        index.add(keys[:5000], codes[:5000])
        index.add(keys[5000:], codes[5000:])
        index.remove(keys[::4])
    for k in (1, 100, 2048, 2500, 9000):
        assert_same(gpu.search(queries, k), exact.search(queries, k))
    assert_same(gpu.search(queries, 30, keys[1:50]), exact.search(queries, 30, keys[1:50]))
