"""The projection rule: what it must remove, and what it must leave bit-identical."""

import math

import pytest
import torch

from adapters.online.decouple import (
    Against,
    Gradient,
    Subspace,
    degrees,
    inner,
    leading_directions,
    norm,
    project,
)
from core.errors import ConfigError


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


@pytest.mark.parametrize("granularity", ["global", "tensor"])
def test_what_binds_is_decided_on_the_gradient_and_then_holds_for_the_step(granularity: str) -> None:
    g, r = pair(conflict=True)
    step = {name: 1e-3 * tensor.sign() for name, tensor in g.items()}
    if inner(step, r) > 0:
        step = {name: -tensor for name, tensor in step.items()}
    rule = Against.of(g, r, granularity=granularity)  # type: ignore[arg-type]
    kept, removed = rule.remove(step)
    assert inner(kept, r) >= -1e-6 * norm(kept) * norm(r) and 0 < removed < 1
    assert rule.degrees(step) == degrees(step, r) > 90

    noise = {name: 1e-6 * tensor for name, tensor in r.items()}  # far above the step, noise beside g
    kept, removed = Against.of(g, noise, granularity=granularity).remove(step)  # type: ignore[arg-type]
    assert removed == 0 and all(kept[name] is step[name] for name in step)
    other_units = Against.of(g, noise, granularity=granularity, eps_rel=0.0)  # type: ignore[arg-type]
    assert other_units.remove(step)[1] > 0 and other_units.degrees(step) > 90


def test_per_tensor_noise_binds_nothing_of_its_own() -> None:
    g, r = pair(conflict=True)
    r = {name: -tensor for name, tensor in g.items()} | {"c": -1e-6 * g["c"]}
    out, _ = project(g, r, granularity="tensor")
    assert torch.equal(out["c"], g["c"]) and norm({"a": out["a"], "b": out["b"]}) < 1e-6 * norm(g)
    assert norm({"c": project(g, r)[0]["c"] - g["c"]}) > 0  # one decision for all: it goes along


def basis(rank: int, seed: int = 7) -> torch.Tensor:
    rows = torch.randn(rank, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return leading_directions(rows, rank)


def test_subspace_removal_matches_plain_python() -> None:
    g, v = draw(1), basis(3)
    for strength in (1.0, 0.4):
        rule = Subspace.of(v, g, strength)
        expected, energy = flat(g), 0.0
        for row in v.tolist():
            share = sum(x * y for x, y in zip(flat(g), row, strict=True))
            energy += share**2
            expected = [x - strength * share * y for x, y in zip(expected, row, strict=True)]
        out, removed = rule.remove(g)
        assert list(out) == list(g) and flat(out) == pytest.approx(expected, abs=1e-6)
        cosine = energy / sum(x * x for x in flat(g))
        assert removed == pytest.approx((2 * strength - strength**2) * cosine, abs=1e-6)
        assert rule.degrees(g) == pytest.approx(math.degrees(math.acos(math.sqrt(cosine))))
    assert Subspace.of(v, g).degrees(Subspace.of(v, g).remove(g)[0]) == pytest.approx(90, abs=1e-3)


def test_subspace_of_a_gradient_with_missing_tensors() -> None:
    g = draw(1)
    rule = Subspace.of(basis(3), g)
    part = {"b": g["b"]}
    out, _ = rule.remove(part)
    full = rule.inside({"a": 0 * g["a"], "b": g["b"], "c": 0 * g["c"]})
    torch.testing.assert_close(out["b"], g["b"] - full["b"])
    assert list(out) == ["b"] and rule.remove({}) == ({}, 0.0)
    assert math.isnan(rule.degrees({"a": torch.zeros(7)}))


def test_subspace_per_tensor_spans_each_slice() -> None:
    g, v = draw(1), basis(3)
    out, removed = Subspace.of(v, g, granularity="tensor").remove(g)
    slices = dict(zip(g, v.split([7, 15, 2], dim=1), strict=True))  # type: ignore[no-untyped-call]
    for name, rows in slices.items():
        assert float((rows @ out[name].flatten().double()).abs().max()) < 1e-6
    assert norm({"c": out["c"]}) < 1e-6  # three directions leave nothing of two elements
    assert norm({"a": out["a"]}) > 0.1 and removed > Subspace.of(v, g).remove(g)[1]
    absent = torch.zeros(1, 24, dtype=torch.float64)
    absent[0, 0] = 1.0  # a tensor that no direction reaches is left as it is
    out, _ = Subspace.of(absent, g, granularity="tensor").remove(g)
    assert torch.equal(out["b"], g["b"]) and out["a"][0] == 0


def test_leading_directions_span_what_the_gradients_mostly_move() -> None:
    generator = torch.Generator().manual_seed(5)
    truth = torch.linalg.qr(torch.randn(24, 3, generator=generator, dtype=torch.float64))[0].T
    scales = torch.tensor([5.0, 3.0, 0.01], dtype=torch.float64)
    rows = (torch.randn(40, 3, generator=generator, dtype=torch.float64) * scales) @ truth
    found = leading_directions(rows.float(), 2)
    assert found.shape == (2, 24)
    torch.testing.assert_close(found @ found.T, torch.eye(2, dtype=torch.float64))
    inside = found @ truth[:2].T
    assert float(torch.linalg.svdvals(inside).min()) > 0.999
    residual = (rows - rows @ found.T @ found).square().sum()
    assert float(residual) < 1e-4 * float(rows.square().sum())


def test_leading_directions_are_no_more_than_there_are() -> None:
    row = torch.arange(6.0)[None]
    assert leading_directions(row.repeat(5, 1), 4).shape == (1, 6)
    assert leading_directions(1e-9 * row, 1).shape == (1, 6)
    for broken in (torch.zeros(3, 6), torch.full((3, 6), math.nan), torch.ones(6)):
        with pytest.raises(ConfigError, match="source gradients"):
            leading_directions(broken, 2)
