"""The bit convention and Hamming distances against plain Python."""

import numpy as np
import pytest

from core.errors import GalleryError
from index.codes import checked, hamming, pack, paired, unpack


def slow_hamming(a: np.ndarray, b: np.ndarray) -> list[list[int]]:
    return [[sum((int(x) ^ int(y)).bit_count() for x, y in zip(p, q)) for q in b] for p in a]


def slow_pack(row: list[float]) -> list[int]:
    packed = [0] * (len(row) // 8)
    for i, h in enumerate(row):
        if h >= 0:
            packed[i // 8] += 1 << (i % 8)
    return packed


def test_first_bit_is_lowest_and_zero_is_one() -> None:
    assert pack([[0.0, -1, -1, -1, -1, -1, -1, -1]]).tolist() == [[1]]
    assert pack([[-1, -1, -1, -1, -1, -1, -1, 1e-30]]).tolist() == [[128]]
    assert pack([[-0.0] * 8 + [-1.0] * 8]).tolist() == [[255, 0]]


@pytest.mark.parametrize("bits", [8, 24, 64, 136])
def test_pack_equals_plain_python_and_unpack_undoes_it(bits: int) -> None:
    relaxed = np.random.default_rng(bits).normal(size=(7, bits)).astype(np.float32)
    relaxed[0, ::3] = 0
    codes = pack(relaxed)
    assert codes.dtype == np.uint8
    assert codes.tolist() == [slow_pack(row) for row in relaxed.tolist()]
    assert np.array_equal(unpack(codes), np.where(relaxed >= 0, 1, -1))


def test_pack_refuses_nan_and_odd_lengths() -> None:
    with pytest.raises(GalleryError, match="NaN"):
        pack([[np.nan] + [1.0] * 7])
    for shape in ((2, 7), (2, 0), ()):
        with pytest.raises(GalleryError, match="multiple of 8"):
            pack(np.zeros(shape))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8, 12, 16, 24])
def test_hamming_equals_plain_python(width: int) -> None:
    rng = np.random.default_rng(width)
    a, b = (rng.integers(0, 256, (n, width), dtype=np.uint8) for n in (5, 33))
    found = hamming(a, b)
    assert found.dtype == np.int32
    assert found.tolist() == slow_hamming(a, b)
    assert np.array_equal(found, (8 * width - unpack(a).astype(int) @ unpack(b).astype(int).T) // 2)
    assert paired(a, np.stack([b[i : i + 4] for i in range(5)])).tolist() == [
        slow_hamming(a[i : i + 1], b[i : i + 4])[0] for i in range(5)
    ]


def test_hamming_in_pieces() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, 2), dtype=np.uint8) for n in (67, 9000))
    ones = np.array([i.bit_count() for i in range(256)])
    assert np.array_equal(hamming(a, b), ones[a[:, None] ^ b[None]].sum(-1))


def test_hamming_of_nothing_and_of_strided_arrays() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(4, 16)
    assert hamming(codes[:0], codes).shape == (0, 4)
    assert hamming(codes, codes[:0]).shape == (4, 0)
    strided = codes[::-2, ::2]
    assert hamming(strided, strided).tolist() == slow_hamming(strided, strided)


def test_all_bits_differ() -> None:
    zeros, ones = np.zeros((1, 32), np.uint8), np.full((1, 32), 255, np.uint8)
    assert hamming(zeros, ones).tolist() == [[256]]


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(GalleryError, match=r"\[B, 8\] of 64 bits, got shape \(2, 4\)"):
        checked(np.zeros((2, 4), np.uint8), 64)
    with pytest.raises(GalleryError, match="uint8, got int64"):
        checked(np.zeros((2, 8), np.int64), 64)
    with pytest.raises(GalleryError, match="got shape"):
        checked(np.zeros(8, np.uint8), 64)
    with pytest.raises(GalleryError, match="multiple of 8"):
        checked(np.zeros((2, 8), np.uint8), 60)
