"""Each term against a slow loop in plain Python, and its gradient against the closed form."""

import math

import pytest
import torch
from torch import Tensor

from adapters.online.objectives import (
    bidirectional,
    gap,
    gauges,
    loss_emg,
    loss_gen,
    loss_pairs,
    loss_rem,
    loss_uni,
    refined,
    spread,
    weighted,
)

TAU, T = 0.05, 0.1
Vector = list[float]


def unit(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Nine rows of which two are padding, one neighbour twice; padding is NaN so that any leak shows."""
    q, gp = unit(9, 6, 1), unit(9, 6, 2)
    gp[4] = gp[1]
    mask = torch.ones(9, dtype=torch.bool)
    mask[[3, 8]] = False
    q[~mask], gp[~mask] = math.nan, math.nan
    return q, gp, mask


def mean(rows: list[Vector]) -> Vector:
    return [sum(row[d] for row in rows) / len(rows) for d in range(len(rows[0]))]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def distance(a: Vector, b: Vector) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def softmax(logits: Vector) -> Vector:
    top = max(logits)
    parts = [math.exp(value - top) for value in logits]
    return [value / sum(parts) for value in parts]


def slow_p(q: list[Vector], columns: list[Vector]) -> list[Vector]:
    return [softmax([dot(row, column) / TAU for column in columns]) for row in q]


def slow_entropy(p: list[Vector]) -> Vector:
    return [-sum(x * math.log(x) for x in row if x > 0) for row in p]


def slow_rem(entropy: Vector, ceiling: float) -> float:
    kept = [e for e in entropy if e <= ceiling]
    return sum(max(0.0, 1 - e / (ceiling + 1e-3)) * e for e in kept) / len(kept)


def test_values_match_slow_loops(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    q, gp, mask = batch
    rows, items = q[mask].tolist(), gp[mask].tolist()
    centre = mean(rows)
    far = [distance(row, centre) for row in rows]
    delta = distance(centre, mean(items))
    p = slow_p(rows, items)
    entropy = slow_entropy(p)
    ceiling = sorted(entropy)[4]

    got_p, got_entropy = refined(q, gp, TAU, mask)
    real = mask.nonzero().flatten().tolist()
    for i, row in enumerate(real):
        assert got_entropy[row].item() == pytest.approx(entropy[i], abs=1e-12)
        for j, column in enumerate(real):
            assert got_p[row, column].item() == pytest.approx(p[i][j], abs=1e-12)
    for row in (3, 8):
        assert got_entropy[row] == 0 and not got_p[row].any() and not got_p[:, row].any()

    assert spread(q, mask).tolist() == pytest.approx(far, abs=1e-10)
    assert gap(q, gp, mask).item() == pytest.approx(delta, abs=1e-10)
    expected = sum(math.exp(-T * d) for d in far) / len(far)
    assert loss_uni(q, mask, T).item() == pytest.approx(expected, abs=1e-10)
    assert loss_emg(q, gp, mask, 0.3).item() == pytest.approx((delta - 0.3) ** 2, abs=1e-10)
    rem = loss_rem(got_entropy, ceiling, mask)
    assert rem is not None and rem.item() == pytest.approx(slow_rem(entropy, ceiling), abs=1e-10)

    seen = gauges(q, gp, got_entropy, ceiling, mask)
    assert seen.uniformity == pytest.approx(sum(far) / len(far))
    assert seen.gap == pytest.approx(delta)
    assert seen.entropy == pytest.approx(sum(entropy) / len(entropy))
    assert seen.kept_share == pytest.approx(sum(e <= ceiling for e in entropy) / len(entropy))


def test_divergence_matches_a_slow_loop(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    q, gp, mask = batch
    source = unit(9, 6, 3)
    p_s, p = slow_p(source[mask].tolist(), gp[mask].tolist()), slow_p(q[mask].tolist(), gp[mask].tolist())
    expected = 0.0
    for a, b in zip(p_s, p, strict=True):
        expected += sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True)) / len(p)
    assert loss_gen(q, source, gp, TAU, mask).item() == pytest.approx(expected, rel=1e-9)
    assert loss_gen(q, q, gp, TAU, mask).item() == pytest.approx(0.0, abs=1e-12)


def test_gradients_match_the_closed_forms() -> None:
    count, width = 7, 5
    q, gp, source = unit(count, width, 4).requires_grad_(), unit(count, width, 5), unit(count, width, 6)
    mask = torch.ones(count, dtype=torch.bool)
    rows = q.detach()
    centre = rows.mean(0)

    d = (rows - centre).norm(dim=1)
    v, a = (rows - centre) / d[:, None], (-T * d).exp()
    pulled = (a[:, None] * v).mean(0)
    expected = -(T / count) * (a[:, None] * v - pulled)
    (got,) = torch.autograd.grad(loss_uni(q, mask, T), q)
    torch.testing.assert_close(got, expected, atol=2e-10, rtol=0)

    difference = centre - gp.mean(0)
    delta = difference.norm()
    expected = (2 / count * (delta - 0.3) * difference / delta).expand(count, width)
    (got,) = torch.autograd.grad(loss_emg(q, gp, mask, 0.3), q)
    torch.testing.assert_close(got, expected, atol=2e-10, rtol=0)

    p, entropy = refined(q, gp, TAU, mask)
    ceiling = float(entropy.detach().median())
    rem = loss_rem(entropy, ceiling, mask)
    assert rem is not None
    (got,) = torch.autograd.grad(rem, q)
    passed = [i for i in range(count) if entropy[i] <= ceiling]
    expected = torch.zeros_like(rows)
    for i in passed:
        e = float(entropy[i].detach())
        weight = max(0.0, 1 - e / (ceiling + 1e-3)) / len(passed)
        for j in range(count):
            share = float(p[i, j].detach())
            expected[i] -= weight / TAU * share * (math.log(share) + e) * gp[j]
    torch.testing.assert_close(got, expected, atol=2e-10, rtol=0)

    p = refined(q, gp, TAU, mask)[0].detach()
    p_s = refined(source, gp, TAU, mask)[0]
    (got,) = torch.autograd.grad(loss_gen(q, source, gp, TAU, mask), q)
    torch.testing.assert_close(got, (p - p_s) @ gp / (count * TAU), atol=2e-9, rtol=0)


def test_equal_neighbours_give_the_largest_entropy() -> None:
    q, gp = unit(11, 6, 7), unit(1, 6, 8).expand(11, 6)
    entropy = refined(q, gp, 0.02, torch.ones(11, dtype=torch.bool))[1]
    assert entropy.tolist() == pytest.approx([math.log(11)] * 11)


def test_uniformity_and_the_centre_are_one_figure() -> None:
    q = unit(40, 6, 9)
    far = spread(q, torch.ones(40, dtype=torch.bool))
    assert far.square().mean().item() == pytest.approx(1 - q.mean(0).square().sum().item())


def test_nothing_sure_is_none_and_not_nan() -> None:
    entropy = torch.tensor([1.0, 2.0, 0.1])
    mask = torch.tensor([True, True, False])
    assert loss_rem(entropy, 0.5, mask) is None  # the padding row alone would pass
    assert loss_rem(entropy, 1.0, mask) == pytest.approx(1 - 1 / 1.001, abs=1e-6)


def test_degenerate_rows_have_finite_gradients() -> None:
    q = unit(1, 6, 10).repeat(5, 1).requires_grad_()
    mask = torch.ones(5, dtype=torch.bool)
    entropy = refined(q, q.detach(), TAU, mask)[1]
    rem = loss_rem(entropy, 2.0, mask)
    assert rem is not None
    total = loss_uni(q, mask, T) + loss_emg(q, q.detach(), mask, 0.0) + rem
    (gradient,) = torch.autograd.grad(total, q)
    assert torch.isfinite(gradient).all()


def test_tiny_temperature_stays_finite() -> None:
    q, gp = unit(6, 6, 11).float().requires_grad_(), unit(6, 6, 12).float()
    entropy = refined(q, gp, 1e-4, torch.ones(6, dtype=torch.bool))[1]
    (gradient,) = torch.autograd.grad(entropy.sum(), q)
    assert torch.isfinite(entropy).all() and torch.isfinite(gradient).all()


def test_weighted_mean_matches_a_slow_loop(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    q, gp, mask = batch
    entropy = refined(q, gp, TAU, mask)[1]
    weights = torch.linspace(0, 1, 9, dtype=torch.float64)
    real = mask.nonzero().flatten().tolist()
    expected = sum(float(weights[i] * entropy[i]) for i in real) / sum(float(weights[i]) for i in real)
    got = weighted(entropy, weights.requires_grad_(), mask)
    assert got is not None and got.item() == pytest.approx(expected, abs=1e-12)
    assert not got.requires_grad
    assert weighted(entropy, (~mask).double(), mask) is None


def test_bidirectional_matches_a_slow_loop(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    q, gp, mask = batch
    rows, items = q[mask].tolist(), gp[mask].tolist()
    p, c = slow_p(rows, items), slow_p(items, rows)
    got = bidirectional(q, gp, TAU, mask)
    assert not got[~mask].any()
    for i, value in enumerate(got[mask].tolist()):
        expected = sum(x * (math.log(x) - math.log(y)) for x, y in zip(p[i], c[i], strict=True))
        assert value == pytest.approx(expected, abs=1e-9) and value >= 0
    symmetric = torch.nn.functional.normalize(unit(5, 6, 3), dim=1)
    same = bidirectional(symmetric, symmetric, TAU, torch.ones(5, dtype=torch.bool))
    assert same.tolist() == pytest.approx([0.0] * 5, abs=1e-12)


def test_pair_loss_matches_a_slow_loop() -> None:
    q, targets = unit(6, 5, 1), unit(6, 5, 2)
    targets[3] = targets[0]
    p, c = slow_p(q.tolist(), targets.tolist()), slow_p(targets.tolist(), q.tolist())
    expected = -sum(math.log(p[i][i]) + math.log(c[i][i]) for i in range(6)) / 12
    assert loss_pairs(q, targets, TAU).item() == pytest.approx(expected, abs=1e-10)
    assert loss_pairs(q[:1], targets[:1], TAU).item() == 0
