"""Losses of COUPLE against loops over plain numbers, and what they do with nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters.offline.couple_losses import (
    FixedCodes,
    label_codes,
    label_logits,
    label_margin,
    label_net,
    mix_loss,
    mix_shares,
    mixed,
    quantisation,
    settled,
    source_loss,
    target_ce,
    target_supcon,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cos(a: Tensor, b: Tensor) -> float:
    pair = list(zip(a.tolist(), b.tolist()))
    long = math.sqrt(sum(x * x for x, _ in pair)) * math.sqrt(sum(y * y for _, y in pair))
    return sum(x * y for x, y in pair) / long


def log_softmax(logits: list[float], place: int) -> float:
    return logits[place] - math.log(sum(math.exp(v) for v in logits))


def named(h: Tensor, codes: Tensor, place: int, scale: float) -> float:
    return log_softmax([scale * cos(h, e) for e in codes], place)


H, CODES, Y = drawn(5, 6), drawn(4, 6, seed=1), torch.tensor([0, 3, 1, 1, 2])


def test_logits_and_margin_equal_loops() -> None:
    logits = label_logits(H, CODES, 7.0)
    for i in range(5):
        for c in range(4):
            assert float(logits[i, c]) == pytest.approx(7 * cos(H[i], CODES[c]))
    margin = sum(max(0, cos(CODES[c], CODES[d])) ** 2 for c in range(4) for d in range(4) if c != d) / 4
    assert float(label_margin(CODES)) == pytest.approx(margin) and margin > 0
    assert float(label_margin(torch.cat((torch.eye(3), -torch.eye(3))))) == 0, "2L vectors can reach 0"


def test_quantisation_equals_a_loop_and_knows_no_length() -> None:
    total = 0.0
    for row in H.tolist():
        long = math.sqrt(sum(v * v for v in row))
        total += sum((abs(v) * math.sqrt(6) / long - 1) ** 2 for v in row)
    assert float(quantisation(H)) == pytest.approx(total / 30)
    assert float(quantisation(3 * H)) == pytest.approx(total / 30)
    assert float(quantisation(torch.tensor([[0.5, -0.5, 0.5, 0.5]]))) == pytest.approx(0, abs=1e-12)


def test_source_loss_equals_a_loop() -> None:
    ce = -sum(named(H[i], CODES, int(Y[i]), 10) for i in range(5)) / 5
    expected = ce + 2 * float(label_margin(CODES)) + 0.3 * float(quantisation(H))
    found = source_loss(H, Y, CODES, scale=10, margin=2, quantised=0.3)
    assert float(found) == pytest.approx(expected)


def test_target_losses_equal_loops() -> None:
    h_t, pseudo = drawn(4, 6, seed=2), torch.tensor([1, 7, 0, 1])  # no source of class 7
    each = []
    for j in (0, 2, 3):
        logits = [cos(h_t[j], H[i]) / 0.2 for i in range(5)]
        same = [i for i in range(5) if Y[i] == pseudo[j]]
        each.append(-sum(log_softmax(logits, i) for i in same) / len(same))
    assert float(target_supcon(h_t, pseudo, H, Y, 0.2)) == pytest.approx(sum(each) / 3)
    told = torch.tensor([1, 2, 0, 1])
    expected = -sum(named(h_t[j], CODES, int(told[j]), 8) for j in range(4)) / 4
    assert float(target_ce(h_t, told, CODES, 8)) == pytest.approx(expected)


def test_mixtures_equal_loops() -> None:
    lam = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)
    a, b = drawn(3, 2, 2, 2), drawn(3, 2, 2, 2, seed=3)
    both = mixed(a, b, lam)
    for p in range(3):
        assert torch.allclose(both[p], float(lam[p]) * a[p] + (1 - float(lam[p])) * b[p])
    first, second = torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
    expected = 0.0
    for p in range(3):
        expected -= float(lam[p]) * named(H[p], CODES, int(first[p]), 10)
        expected -= (1 - float(lam[p])) * named(H[p], CODES, int(second[p]), 10)
    assert float(mix_loss(H[:3], first, second, lam, CODES, 10)) == pytest.approx(expected / 3)
    plain = source_loss(H, Y, CODES, scale=10, margin=0, quantised=0)
    whole = mix_loss(H, Y, Y.flip(0), torch.ones(5, dtype=torch.float64), CODES, 10)
    assert float(whole) == pytest.approx(float(plain)), "lam = 1 is the source's cross-entropy"


def test_shares_of_the_source() -> None:
    weights = np.array([0.001, 0.7, 0.9, 0.7, 1.0])
    assert mix_shares(weights, "edge", 0.8).tolist() == [0.5, 0.7, 0.9, 0.7, 1.0]
    assert mix_shares(weights, "fixed", 0.8).tolist() == [0.8] * 5
    assert mix_shares(weights, "rank", 0.8) == pytest.approx([0.5, 2 / 3, 5 / 6, 2 / 3, 1])
    assert all(len(mix_shares(weights[:0], rule, 0.8)) == 0 for rule in ("edge", "fixed", "rank"))  # type: ignore[arg-type]


def test_nothing_costs_nothing_and_has_a_gradient_of_zero() -> None:
    none, label = (
        torch.zeros(0, 6, dtype=torch.float64, requires_grad=True),
        torch.zeros(0, dtype=torch.int64),
    )
    h = drawn(2, 6).requires_grad_()
    told = torch.tensor([0, 1])
    for loss, left in (
        (target_supcon(none, label, H, Y, 0.2), none),
        (target_supcon(h, told + 10, H, Y, 0.2), h),
        (target_supcon(h, told, none, label, 0.2), h),
        (target_ce(none, label, CODES, 10), none),
        (mix_loss(none, label, label, torch.zeros(0), CODES, 10), none),
        (quantisation(none), none),
    ):
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, left)
        assert not gradient.any()
    lone = source_loss(none, label, CODES, scale=10, margin=1, quantised=1)
    assert float(lone.detach()) == pytest.approx(float(label_margin(CODES)))
    zeros = target_supcon(torch.zeros(2, 6, dtype=torch.float64), told, H, Y, 0.2)
    assert torch.isfinite(zeros)


def test_gradients_are_those_of_differences() -> None:
    h, h_t, codes = (drawn(5, 6, seed=s).requires_grad_() for s in (5, 6, 7))
    lam = torch.full((5,), 0.7, dtype=torch.float64)

    def every(a: Tensor, b: Tensor, e: Tensor) -> Tensor:
        total = source_loss(a, Y, e, scale=10, margin=1, quantised=0.1) + target_ce(b, Y, e, 10)
        return total + target_supcon(b, Y, a, Y, 0.2) + mix_loss(mixed(a, b, lam), Y, Y.flip(0), lam, e, 10)

    places = (h, h_t, codes)
    slopes = torch.autograd.grad(every(*places), places)
    for seed in range(5):
        way = [drawn(*v.shape, seed=10 * seed + k) for k, v in enumerate(places)]
        with torch.no_grad():
            ahead, behind = (every(*(v + s * w for v, w in zip(places, way))) for s in (1e-6, -1e-6))
        expected = sum(float((g * w).sum()) for g, w in zip(slopes, way))
        assert float(ahead - behind) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_settled_label_codes_are_apart() -> None:
    torch.manual_seed(0)
    net = label_net(10, 64, 16)
    before = label_codes(net, torch.empty(0), 10)
    for c in range(10):
        assert torch.allclose(before[c], net(torch.eye(10)[c]), atol=1e-6)
    loose = float(label_margin(torch.where(before >= 0, 1.0, -1.0)))
    codes = settled(net, 10)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert float(label_margin(codes)) < 0.1 * loose and len(codes.unique(dim=0)) == 10
    fixed = FixedCodes(codes)
    assert torch.equal(label_codes(fixed, torch.empty(0), 10), codes) and not list(fixed.parameters())
