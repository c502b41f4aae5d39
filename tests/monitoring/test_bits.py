"""Bit health against plain NumPy on unpacked bits."""

import math

import numpy as np
import pytest

from core.errors import GalleryError
from monitoring.bits import BitWindow, bit_health


def packed(bits):
    return np.packbits(np.asarray(bits, np.uint8), axis=1)


def random_bits(rows=400, bits=16, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (rows, bits))


def test_every_value_equals_a_slow_loop():
    bits, frozen = random_bits(60), random_bits(60, seed=1)
    bits[:, 3] = bits[:, 5]
    bits[:, 7] = 1
    health = bit_health(packed(bits), packed(frozen))
    shares = [sum(bits[:, b]) / 60 for b in range(16)]
    entropy = sum(-sum(q * math.log2(q) for q in (p, 1 - p) if q) for p in shares)
    correlations = [
        abs(np.corrcoef(bits[:, a], bits[:, b])[0, 1]) for a in range(16) for b in range(a) if 7 not in (a, b)
    ]
    eigenvalues = np.linalg.eigvalsh(np.cov(bits.T, bias=True))
    flips = sum(int(a != b) for x, y in zip(bits, frozen) for a, b in zip(x, y)) / (60 * 16)
    assert health.balance == pytest.approx(np.mean([abs(2 * p - 1) for p in shares]))
    assert health.worst_balance == 1.0 and health.dead_bits == 1
    assert health.entropy_bits == pytest.approx(entropy)
    assert health.effective_bits == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    assert health.max_correlation == pytest.approx(max(correlations)) == pytest.approx(1.0)
    assert health.collision_rate == pytest.approx(1 - len({tuple(row) for row in bits}) / 60)
    assert health.flip_rate == pytest.approx(flips)


def test_equal_bits_lower_and_random_bits_keep_the_effective_number():
    free = random_bits(4000)
    tied = free.copy()
    tied[:, 8:] = tied[:, :8]
    assert bit_health(packed(free)).effective_bits == pytest.approx(16, rel=0.02)
    assert bit_health(packed(tied)).effective_bits == pytest.approx(8, rel=0.02)


def test_edges():
    assert math.isnan(bit_health(np.zeros((0, 2), np.uint8)).balance)
    one = bit_health(packed(random_bits(1)), packed(random_bits(1)))
    assert one.dead_bits == 16 and math.isnan(one.effective_bits) and one.flip_rate == 0.0
    with pytest.raises(GalleryError, match="packed codes"):
        bit_health(np.zeros((3, 2), np.uint8), np.zeros((3, 4), np.uint8))


def test_the_window_slides():
    window, bits = BitWindow(100), random_bits(250)
    assert BitWindow().add(np.zeros((0, 2), np.uint8), np.zeros((0, 2), np.uint8)) is None
    for start in range(0, 250, 50):
        health = window.add(packed(bits[start : start + 50]), packed(bits[start : start + 50]))
    assert health == bit_health(packed(bits[150:]), packed(bits[150:]))
    assert window.add(np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)).bits == 32
