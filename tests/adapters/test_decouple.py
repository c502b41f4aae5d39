"""The projection rule: what it must remove, and what it must leave bit-identical."""

import math

import pytest
import torch

from adapters.online.decouple import Gradient, degrees, inner, norm, project


def draw(seed: int) -> Gradient:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(7, generator=generator),
        "b": torch.randn(3, 5, generator=generator),
        "c": torch.randn(2, generator=generator),
    }


def flat(g: Gradient) -> list[float]:
    return [x for tensor in g.values() for x in tensor.double().flatten().tolist()]


def pair(conflict: bool) -> tuple[Gradient, Gradient]:
    g, r = draw(1), draw(2)
    if (inner(g, r) < 0) != conflict:
        r = {name: -tensor for name, tensor in r.items()}
    return g, r


def test_no_conflict_is_bit_identical() -> None:
    g, r = pair(conflict=False)
    out, angles = project(g, r)
    assert all(torch.equal(out[name], g[name]) for name in g)
    assert angles.degrees < 90 and angles.removed_energy == 0


@pytest.mark.parametrize("lam", [1.0, 0.5, 0.1])
def test_conflict_matches_plain_python(lam: float) -> None:
    g, r = pair(conflict=True)
    a, b = flat(g), flat(r)
    product = sum(x * y for x, y in zip(a, b, strict=True))
    square = sum(y * y for y in b)
    expected = [x - lam * product / square * y for x, y in zip(a, b, strict=True)]
    out, angles = project(g, r, lam)
    assert flat(out) == pytest.approx(expected, abs=1e-6)
    energy = sum(x * x for x in a)
    cosine = product / math.sqrt(square * energy)
    assert angles.degrees == pytest.approx(math.degrees(math.acos(cosine)))
    assert angles.removed_energy == pytest.approx((2 * lam - lam**2) * cosine**2, abs=1e-6)
    assert inner(out, r) == pytest.approx((1 - lam) * product, abs=1e-5)
    assert norm(out) <= norm(g)
    if lam == 1:
        assert inner(out, r) >= -1e-6 * norm(out) * norm(r)


def test_per_tensor_decides_for_each_and_never_fights_in_total() -> None:
    g, r = pair(conflict=True)
    out, angles = project(g, r, granularity="tensor")
    conflicts = 0
    for name in g:
        alone, _ = project({name: g[name]}, {name: r[name]})
        assert torch.equal(out[name], alone[name])
        conflicts += float((g[name] * r[name]).sum()) < 0
    assert conflicts > 0
    assert inner(out, r) >= -1e-6 * norm(out) * norm(r)
    assert angles.degrees == degrees(g, r) and angles.removed_energy > 0


def test_scale_of_the_reference_does_not_matter() -> None:
    g, r = pair(conflict=True)
    once, angles = project(g, r)
    again, other = project(g, {name: 37.5 * tensor for name, tensor in r.items()})
    torch.testing.assert_close(once, again, rtol=1e-6, atol=1e-7)
    assert other.degrees == pytest.approx(angles.degrees)


@pytest.mark.parametrize("scale", [0.0, 1e-13, 0.9e-4])
def test_no_reference_is_no_change(scale: float) -> None:
    g, r = pair(conflict=True)
    small = {name: tensor * scale * norm(g) / norm(r) for name, tensor in r.items()}
    out, angles = project(g, small)
    assert all(torch.equal(out[name], g[name]) for name in g)
    assert math.isnan(angles.degrees) and angles.removed_energy == 0


def test_missing_and_empty() -> None:
    g, r = pair(conflict=True)
    out, _ = project(g, {"a": -g["a"]})
    assert torch.allclose(out["a"], torch.zeros(7), atol=1e-6) and torch.equal(out["b"], g["b"])
    assert project({}, r)[0] == {}
    zero = {name: torch.zeros_like(tensor) for name, tensor in g.items()}
    assert norm(project(zero, r)[0]) == 0


def test_reference_loss_rises_only_to_second_order() -> None:
    generator = torch.Generator().manual_seed(3)
    target, keep = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    curved = torch.diag(torch.rand(12, generator=generator, dtype=torch.float64) + 0.5)
    theta = torch.zeros(12, dtype=torch.float64, requires_grad=True)

    def general(at: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = 0.5 * (at - keep) @ curved @ (at - keep)
        return loss

    (g,) = torch.autograd.grad(0.5 * (theta - target).square().sum(), theta)
    (r,) = torch.autograd.grad(general(theta), theta)
    if float(g @ r) > 0:
        g = -g
    descent = project({"t": g}, {"t": r})[0]["t"]

    def rise(direction: torch.Tensor, rate: float) -> float:
        return float((general(theta - rate * direction) - general(theta)).detach())

    for rate in (1e-2, 1e-3, 1e-4):
        bound = rate**2 * float(descent @ curved @ descent)
        assert rise(descent, rate) <= bound
        assert rise(g, rate) > 10 * bound or rate == 1e-2  # without projection it is of first order
