"""Filters against slow loops in float64, kernels larger than the picture included."""

import math

import numpy as np
import pytest

from qshift.shifts.corruptions import filters


def at(values: np.ndarray, *place: int) -> float:  # type: ignore[type-arg]
    """A mirrored array, read by walking from border to border."""
    inside = []
    for index, size in zip(place, values.shape):
        while not 0 <= index < size:
            index = -1 - index if index < 0 else 2 * size - 1 - index
        inside.append(index)
    return float(values[tuple(inside)])


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 6)])
@pytest.mark.parametrize("reach", [1, 4, 9])
def test_convolution_equals_a_loop(shape: tuple[int, int], reach: int) -> None:
    rng = np.random.default_rng(0)
    values, kernel = rng.random(shape), rng.random((2 * reach + 1, 2 * reach + 1))
    expected = np.zeros(shape)
    for y in range(shape[0]):
        for x in range(shape[1]):
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    expected[y, x] += kernel[i + reach, j + reach] * at(values, y - i, x - j)
    out = filters.convolve(values.astype(np.float32), kernel.astype(np.float32))
    assert out == pytest.approx(expected, rel=1e-4)
    both = filters.convolve(np.stack([values, 2 * values], -1).astype(np.float32), kernel.astype(np.float32))
    assert both[..., 1] == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize(("deviation", "truncate"), [(0.05, 4.0), (0.7, 4.0), (3.0, 3.0), (20.0, 3.0)])
def test_smoothing_equals_a_loop_and_keeps_the_sum(deviation: float, truncate: float) -> None:
    values = np.random.default_rng(1).random((5, 4))
    reach = int(truncate * deviation + 0.5)
    weights = [math.exp(-0.5 * (k / deviation) ** 2) for k in range(-reach, reach + 1)]
    expected = np.zeros((5, 4))
    for y in range(5):
        for x in range(4):
            for i, down in enumerate(weights, -reach):
                for j, across in enumerate(weights, -reach):
                    expected[y, x] += down * across * at(values, y + i, x + j)
    expected /= sum(weights) ** 2
    out = filters.smooth(values.astype(np.float32), deviation, truncate)
    assert out == pytest.approx(expected, rel=1e-4)
    assert out.sum() == pytest.approx(values.sum(), rel=1e-5)


def test_disk_holds_the_whole_pixels_of_a_disk() -> None:
    kernel = filters.disk(3, 0.1)
    inside = [(y, x) for y in range(-9, 10) for x in range(-9, 10) if x * x + y * y <= 9]
    assert len(inside) == 29
    for y in range(-9, 10):
        for x in range(-9, 10):
            assert kernel[y + 9, x + 9] == pytest.approx(((y, x) in inside) / 29, abs=1e-6)
    soft = filters.disk(10, 0.5)
    assert soft.sum() == pytest.approx(1) and (soft == soft.T).all() and (soft == soft[::-1]).all()
    assert 0 < soft[12, 1] < soft[12, 12]  # the rim is soft, just outside the radius


def test_line_is_half_a_gaussian() -> None:
    kernel = filters.line(5, 3, 0.0)
    weights = np.exp(-0.5 * (np.arange(11) / 3) ** 2)
    reach = kernel.shape[0] // 2
    assert kernel[reach, reach : reach + 11] == pytest.approx(weights / weights.sum(), rel=1e-5)
    assert kernel.sum() == pytest.approx(1) and np.count_nonzero(kernel) == 11


@pytest.mark.parametrize("scale", [0.14, 0.5, 1.0, 1.7])
def test_rescaling_keeps_the_sum_and_scales_lengths(scale: float) -> None:
    kernel = filters.line(10, 8, 30.0)
    new = filters.rescaled(kernel, scale)
    assert new.sum() == pytest.approx(1, rel=1e-5)

    def centre(of: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        reach = of.shape[0] // 2
        places = np.arange(-reach, reach + 1)
        return np.array([(of.sum(0) * places).sum(), (of.sum(1) * places).sum()])

    assert centre(new) == pytest.approx(scale * centre(kernel), rel=0.02)
    if scale == 1.0:
        assert new == pytest.approx(kernel, abs=1e-7)
