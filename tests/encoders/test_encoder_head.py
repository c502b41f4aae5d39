from itertools import pairwise

import numpy as np
import pytest
import torch

from core.errors import ArtifactError
from encoders.head import HashHead, itq, itq_rotations, random_rotation


def units(count: int, width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def head(bits: int = 16, width: int = 5, seed: int = 0) -> HashHead:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return HashHead(draw(bits, width), draw(bits), {"image": draw(width), "text": draw(width)})


def test_relaxed_and_codes_equal_a_loop() -> None:
    made, rows = head(), units(7, 5)
    for modality in ("image", "text"):
        codes = made.codes(torch.from_numpy(rows), modality)
        relaxed = made.relaxed(torch.from_numpy(rows), modality)
        for b in range(7):
            for k in range(16):
                h = float(made.bias[k])
                for d in range(5):
                    h += float(made.weight[k, d]) * (float(rows[b, d]) - float(made.means[modality][d]))
                assert abs(float(relaxed[b, k]) - h) < 1e-5
                assert bool(codes[b, k // 8] >> (k % 8) & 1) == (h >= 0)


def test_zero_is_bit_one_and_little_endian() -> None:
    made = HashHead(np.eye(8, dtype=np.float32), np.zeros(8, np.float32), {"image": np.zeros(8, np.float32)})
    row = torch.tensor([[0.0, -1, -1, 2, -0.0, -1, -1, -3]])
    assert made.codes(row, "image").tolist() == [[0b00011001]]
    assert made.codes(torch.zeros(0, 8), "image").shape == (0, 1)


def test_recentring_replaces_the_mean() -> None:
    made, rows = head(), torch.from_numpy(units(7, 5))
    mean = rows.mean(0)
    torch.testing.assert_close(made.relaxed(rows, "image", mean), (rows - mean) @ made.weight.T + made.bias)


def test_a_head_that_cannot_work_is_refused() -> None:
    good = head()
    with pytest.raises(ArtifactError, match="multiple of 8"):
        HashHead(good.weight[:12], good.bias[:12], good.means)
    with pytest.raises(ArtifactError, match="do not fit"):
        HashHead(good.weight, good.bias[:8], good.means)
    with pytest.raises(ArtifactError, match="NaN"):
        HashHead(good.weight * float("nan"), good.bias, good.means)
    with pytest.raises(ArtifactError, match="no mean for 'vector'"):
        good.relaxed(torch.zeros(1, 5), "vector")
    with pytest.raises(ArtifactError, match="width 6"):
        good.relaxed(torch.zeros(1, 6), "image")


def test_itq_keeps_its_invariants() -> None:
    rows = units(200, 24)
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean)[2][:16].T
    projected = ((rows - mean) @ axes).astype(np.float64)
    costs = []
    for rotation in itq_rotations(projected, 30, seed=3):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-10)
        turned = projected @ rotation
        costs.append(float(((np.where(turned >= 0, 1.0, -1.0) - turned) ** 2).sum()))
    assert all(after <= before + 1e-9 for before, after in pairwise(costs))
    assert costs[-1] < 0.98 * costs[0]
    weight = itq(rows, mean, 16, 30, seed=3)
    np.testing.assert_allclose(weight @ weight.T, np.eye(16), atol=1e-5)
    # Its axes span the leading principal space.
    np.testing.assert_allclose(weight.T @ weight, axes @ axes.T, atol=1e-5)


def test_itq_beats_its_random_start_on_neighbours() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 32))
    rows = (centres[rng.integers(12, size=300)] + 0.4 * rng.standard_normal((300, 32))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows.mean(0)
    cosine = (rows - mean) @ (rows - mean).T

    def agreement(weight: np.ndarray) -> float:
        codes = np.where((rows - mean) @ weight.T >= 0, 1.0, -1.0)
        return float(np.corrcoef((codes @ codes.T).ravel(), cosine.ravel())[0, 1])

    assert agreement(itq(rows, mean, 16)) > agreement(itq(rows, mean, 16, iterations=0)) > 0.3


def test_more_bits_than_width_is_a_rotation() -> None:
    rows = units(40, 12)
    weight = itq(rows, rows.mean(0), 32, seed=5)
    assert weight.shape == (32, 12)
    np.testing.assert_allclose(weight.T @ weight, np.eye(12), atol=1e-5)
    np.testing.assert_array_equal(weight, random_rotation(32, 5)[:, :12].astype(np.float32))


def test_itq_refuses_what_it_cannot_fit() -> None:
    rows = units(10, 24)
    with pytest.raises(ArtifactError, match="at least as many"):
        itq(rows, rows.mean(0), 16)
    with pytest.raises(ArtifactError, match="divisible by 8"):
        itq(rows, rows.mean(0), 12)
    with pytest.raises(ArtifactError, match="NaN"):
        itq(np.vstack((rows, rows * np.nan)), rows.mean(0), 16)
