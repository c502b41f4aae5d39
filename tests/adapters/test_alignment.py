"""Statistics alignment against a slow loop, and what it must never do."""

import math

import numpy as np
import pytest
import torch

from adapters.online.alignment import EPS, ContentAlignment
from adapters.online.matching import CleanDomain
from core.config import AlignConfig
from core.protocols import AlignedPass
from core.types import Calibration

WIDTHS = (3, 2)
BATCH = 8


def calibration(seed: int = 0, n: int = 40) -> Calibration:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    mean = rng.normal(size=(n, 5)).astype(np.float32)
    sd = rng.uniform(0.5, 2.0, size=(n, 5)).astype(np.float32)
    return Calibration(features, mean, sd, WIDTHS)


def queries(seed: int = 1, rows: int = BATCH) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 6)).astype(np.float32)
    return torch.from_numpy(features / np.linalg.norm(features, axis=1, keepdims=True))


def inputs(layer: int, seed: int = 2, rows: int = BATCH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + layer)
    return 3 + 2 * torch.randn(rows, WIDTHS[layer], 4, 5, generator=generator)


ALL = torch.ones(BATCH, dtype=torch.bool)


def apply(done: AlignedPass, layer: int, x: torch.Tensor) -> torch.Tensor:
    """What a layer would be given."""
    move = done.tap(layer, x)
    assert move is not None
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return x * move[0].view(shape) + move[1].view(shape)


def slow(
    x: torch.Tensor, rows: list[int], clean: np.ndarray, prior: np.ndarray, k: float, f: float
) -> np.ndarray:
    """The page's formula for a first batch, element by element, in float64."""
    values = x.double().numpy()
    out = np.empty_like(values)
    for channel in range(values.shape[1]):
        seen = [float(v) for row in rows for v in values[row, channel].ravel()]
        m, q = sum(seen) / len(seen), sum(v * v for v in seen) / len(seen)
        share = len(rows) / BATCH
        decay = f**share
        total = decay * 1.0 + share
        stream_m = (decay * prior[0, channel] + share * m) / total
        stream_q = (decay * prior[1, channel] + share * q) / total
        target_m = (decay * prior[0, channel] + share * clean[0, channel]) / total
        target_q = (decay * prior[1, channel] + share * clean[1, channel]) / total
        s_s = math.sqrt(max(stream_q - stream_m**2, 0) + EPS)
        s_c = math.sqrt(max(target_q - target_m**2, 0) + EPS)
        moved = (values[:, channel] - stream_m) / s_s * ((1 - k) * s_s + k * s_c)
        out[:, channel] = moved + (1 - k) * stream_m + k * target_m
    return out


@pytest.mark.parametrize("rows", [BATCH, 5])
@pytest.mark.parametrize("k", [0.25, 0.5, 1.0])
def test_first_batch_equals_the_slow_loop(rows: int, k: float) -> None:
    source = calibration()
    config = AlignConfig(strength=k, matched=False)
    aligned = ContentAlignment(source, config, BATCH)
    mask = torch.arange(BATCH) < rows
    done = aligned.begin(queries(), mask)
    moments = np.stack((source.mean, source.mean**2 + source.sd**2)).astype(np.float64).mean(1)
    for layer, part in enumerate((slice(0, 3), slice(3, 5))):
        x = inputs(layer)
        expected = slow(x, list(range(rows)), moments[:, part], moments[:, part], k, 0.8)
        np.testing.assert_allclose(apply(done, layer, x).double().numpy(), expected, rtol=2e-4, atol=2e-4)


def test_strength_zero_is_the_identity() -> None:
    aligned = ContentAlignment(calibration(), AlignConfig(strength=0.0), BATCH)
    x = inputs(0)
    torch.testing.assert_close(apply(aligned.begin(queries(), ALL), 0, x), x, rtol=1e-5, atol=1e-5)


def test_padding_does_not_count() -> None:
    aligned = ContentAlignment(calibration(), AlignConfig(), BATCH)
    mask = torch.arange(BATCH) < 6
    x, other = inputs(0), inputs(0)
    other[6:] = 1e6
    q, padded = queries(), queries()
    padded[6:] = padded[0]
    first, second = apply(aligned.begin(q, mask), 0, x), apply(aligned.begin(padded, mask), 0, other)
    torch.testing.assert_close(first[:6], second[:6])


def test_answering_changes_nothing_and_later_encodes_use_the_same_statistics() -> None:
    aligned = ContentAlignment(calibration(), AlignConfig(), BATCH)
    before = aligned.snapshot()
    done = aligned.begin(queries(), ALL)
    x = inputs(0)
    once = apply(done, 0, x)
    again = apply(done, 0, 2 * x)
    scale = (once - apply(done, 0, torch.zeros_like(x))) / x
    torch.testing.assert_close(again - once, scale * x, rtol=1e-3, atol=1e-4)
    for name, array in aligned.snapshot()[0].items():
        np.testing.assert_array_equal(array, before[0][name])


def test_statistics_carry_no_gradient() -> None:
    aligned = ContentAlignment(calibration(), AlignConfig(), BATCH)
    x = inputs(0).requires_grad_()
    out = apply(aligned.begin(queries(), ALL), 0, x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    # With detached statistics the map is affine: one slope per channel.
    assert float((gradient - gradient[:1, :, :1, :1]).abs().max()) < 1e-6


def run(aligned: ContentAlignment, seeds: list[int]) -> list[torch.Tensor]:
    outs = []
    for seed in seeds:
        done = aligned.begin(queries(seed), ALL)
        outs += [apply(done, layer, inputs(layer, seed)) for layer in (0, 1)]
        assert aligned.commit(done)
    return outs


def test_restoring_continues_to_the_last_bit() -> None:
    one = ContentAlignment(calibration(), AlignConfig(), BATCH)
    run(one, [1, 2, 3])
    tensors, meta = one.snapshot()
    other = ContentAlignment(calibration(), AlignConfig(), BATCH)
    other.restore(tensors, meta)
    for a, b in zip(run(one, [4, 5]), run(other, [4, 5])):
        assert torch.equal(a, b)


def test_non_finite_statistics_are_not_remembered() -> None:
    aligned = ContentAlignment(calibration(), AlignConfig(), BATCH)
    before = aligned.snapshot()
    done = aligned.begin(queries(), ALL)
    bad = inputs(0)
    bad[0, 0, 0, 0] = float("nan")
    apply(done, 0, bad)
    apply(done, 1, inputs(1))
    assert not aligned.commit(done)
    np.testing.assert_array_equal(aligned.snapshot()[0]["0/stream"], before[0]["0/stream"])


def test_matching_follows_a_skewed_batch_and_ignores_a_balanced_one() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(16, 20)
    features = np.repeat(centres, 24, axis=0) + 0.05 * rng.normal(size=(384, 20))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    source = Calibration(features, np.zeros((384, 5), np.float32), np.ones((384, 5), np.float32), WIDTHS)
    domain = CleanDomain(source, AlignConfig())
    balanced = domain.weights(torch.from_numpy(features[::6]))
    assert float((balanced - 1 / 384).abs().max()) < 1e-6
    skewed = domain.weights(torch.from_numpy(features[:24].repeat(3, axis=0)[:64]))
    assert float(skewed.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(skewed[:24].sum()) > 0.95


def test_a_stream_of_clean_statistics_stays_where_it_is() -> None:
    """Inputs that have the clean moments are moved by next to nothing."""
    source = calibration()
    moments = np.stack((source.mean, source.mean**2 + source.sd**2)).astype(np.float64).mean(1)
    sd = np.sqrt(moments[1] - moments[0] ** 2)
    aligned = ContentAlignment(source, AlignConfig(matched=False), BATCH)
    x = torch.randn(BATCH, 3, 15, 15, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, unbiased=False)
    x = x * torch.tensor(sd[:3]).float()[:, None, None] + torch.tensor(moments[0, :3]).float()[:, None, None]
    torch.testing.assert_close(apply(aligned.begin(queries(), ALL), 0, x), x, rtol=1e-3, atol=2e-3)


def test_a_calibration_that_does_not_fit_is_refused() -> None:
    source = calibration()
    with pytest.raises(ValueError, match="channels"):
        ContentAlignment(Calibration(source.features, source.mean, source.sd, (3, 3)), AlignConfig(), BATCH)
