"""Guards around real methods on a small encoder, and a scripted one where the arithmetic is the point."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.gradient import State
from adapters.online.guarded import Guarded
from adapters.online.rest import Rest
from adapters.online.sar import Sar
from adapters.online.tcr import Tcr
from adapters.online.tent import Tent
from core.artifacts import tensors_hash
from core.config import AdaptConfig, GuardConfig
from core.errors import ArtifactError, ConfigError
from core.protocols import Adapter
from core.references import SourceConstants
from core.types import AdaptationStep

if TYPE_CHECKING:
    from core.protocols import Params

INPUTS, WIDTH, ITEMS = 12, 8, 40
CONSTANTS = SourceConstants(0.15, 1.6, temperature=0.1, learning_rate=3e-3, batch=32)
OFF = GuardConfig()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Toy(nn.Module):
    """x [B, 12] -> LayerNorm -> projection -> unit [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(INPUTS), nn.Linear(INPUTS, WIDTH, bias=False)
        with torch.no_grad():
            self.norm.weight.copy_(1 + 0.1 * drawn(1, INPUTS))
            self.proj.weight.copy_(drawn(3, WIDTH, INPUTS) / math.sqrt(INPUTS))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = normalize(self.proj(self.norm(x)), dim=1)
        return q

    def adaptable(self) -> dict[str, Tensor]:
        return {f"norm.{name}": p.detach().clone() for name, p in self.norm.named_parameters()}


TOY = Toy()
GALLERY = TOY(drawn(4, ITEMS, INPUTS))


def batch(seed: int, rows: int = 32) -> ToyPass:
    x = drawn(4, ITEMS, INPUTS)[:rows] + 0.3 * drawn(seed + 50, rows, INPUTS) + 0.8 * drawn(5, INPUTS)

    def encode(params: Params) -> Tensor:
        q: Tensor = functional_call(TOY, dict(params), (x,))
        return q

    def near(q: Tensor) -> Tensor:
        items: Tensor = GALLERY[(q @ GALLERY.T).topk(4, dim=1).indices]
        return items

    return ToyPass(torch.ones(rows, dtype=torch.bool), TOY(x), encode, near, near, lambda: GALLERY)


class Scripted:
    """Adds 1 to every one of 4000 scalars per update and reports the losses it was given."""

    name, learns_first, version = "scripted", False, 0

    def __init__(self, losses: Sequence[Mapping[str, float]] = ()) -> None:
        self._losses = list(losses)
        self._theta = {"b": torch.zeros(40, 50), "a": torch.zeros(2000)}

    def parameters(self) -> Params:
        return self._theta

    def transform(self, features: Tensor, batch: ToyPass) -> Tensor:
        return features

    def update(self, batch: ToyPass) -> tuple[AdaptationStep, Tensor | None]:
        for tensor in self._theta.values():
            tensor.add_(1.0)
        self.version += 1
        return AdaptationStep(True, losses=self._losses.pop(0) if self._losses else {"x": 1.0}), None

    def snapshot(self) -> State:
        return {name: tensor.numpy().copy() for name, tensor in self._theta.items()}, {"v": self.version}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        for name, tensor in self._theta.items():
            tensor.copy_(torch.from_numpy(np.array(tensors[name])))
        self.version = int(meta["v"])


MAKERS: list[type[Tcr] | type[Sar] | type[Tent]] = [Tcr, Rest, Sar, Tent]


def made(maker: type[Tcr] | type[Sar] | type[Tent], **values: Any) -> Adapter:
    return maker(TOY.adaptable(), CONSTANTS, AdaptConfig.model_validate(values))


def guarded(inner: Adapter, seed: int = 0, **values: Any) -> Guarded:
    source = {name: tensor.detach().clone() for name, tensor in inner.parameters().items()}
    return Guarded(inner, source, GuardConfig.model_validate(values), seed)


def state(method: Adapter) -> str:
    return tensors_hash(*method.snapshot())


def theta(method: Adapter) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method.parameters().items()}


def at_source(method: Adapter) -> bool:
    return all(torch.equal(value, TOY.adaptable()[name]) for name, value in theta(method).items())


def alike(a: AdaptationStep, b: AdaptationStep) -> bool:
    return repr(a) == repr(b)  # NaN fields are equal here


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("values", [{}, {"answer_from": "paper", "steps": 2}, {"constants": "queue"}])
def test_with_all_guards_off_it_is_the_method_itself(
    maker: type[Tcr] | type[Sar] | type[Tent], values: dict[str, Any]
) -> None:
    plain, inner = made(maker, **values), made(maker, **values)
    wrapped = Guarded(inner, TOY.adaptable(), OFF, seed=3)
    assert (wrapped.name, wrapped.learns_first) == (plain.name, plain.learns_first)
    assert wrapped.parameters() is inner.parameters()
    for seed in range(3):
        rows = 8 if seed == 1 else 32  # one refused batch
        (a, q), (b, r) = plain.update(batch(seed, rows)), wrapped.update(batch(seed, rows))
        assert alike(a, b) and (q is None) == (r is None) and (q is None or r is None or torch.equal(q, r))
        assert state(inner) == state(plain) and wrapped.version == plain.version
        kept = wrapped.snapshot()[0]
        assert tensors_hash(kept, {}) == tensors_hash(plain.snapshot()[0], {})
    features = drawn(1, 4, WIDTH)
    assert wrapped.transform(features, batch(0)) is features


@pytest.mark.parametrize("maker", MAKERS)
def test_a_periodic_reset_returns_to_the_source_bitwise(maker: type[Tcr] | type[Sar] | type[Tent]) -> None:
    inner = made(maker, constants="queue")
    method, fresh, versions = guarded(inner, reset_every=3), state(made(maker, constants="queue")), [0]
    for update in range(1, 8):
        step, _ = method.update(batch(update))
        versions.append(method.version)
        assert step.updated and step.resets == update // 3
        assert at_source(method) == (update % 3 == 0) == (step.diagnostics["source_distance"] == 0)
        assert (state(inner) == fresh) == (update % 3 == 0)  # moments, queue and running means too
    assert versions == list(range(8))
    step, _ = method.update(batch(8, rows=8))
    assert (step.updated, step.resets, method.version) == (False, 2, 7)


def test_after_a_reset_the_lane_learns_like_a_new_one() -> None:
    method, fresh = guarded(made(Tcr), reset_every=2), made(Tcr)
    for seed in range(2):
        method.update(batch(seed))
    method.update(batch(7))
    fresh.update(batch(7))
    assert all(torch.equal(value, theta(fresh)[name]) for name, value in theta(method).items())


def test_a_low_running_loss_resets() -> None:
    losses = [{"x": 1.0}, {"x": 0.5, "y": -0.5}, {"x": 0.0}, {"x": -4.0}, {"x": 0.3}, {"x": 0.6}]
    method = guarded(Scripted(losses), reset_below=0.5)
    running: float | None = None
    resets = 0
    for total in (1.0, 0.0, 0.0, -4.0, 0.3, 0.6):
        step, _ = method.update(batch(0))
        running = total if running is None else 0.9 * running + 0.1 * total
        if running < 0.5:
            resets, running = resets + 1, None
        assert step.resets == resets and method.snapshot()[1]["loss"] == pytest.approx(running)
        assert bool((method.parameters()["a"] == 0).all()) == (running is None)
    assert resets == 2 and method.version == 6


def test_a_bound_of_zero_is_off_and_no_loss_is_no_evidence() -> None:
    for method in (guarded(Scripted([{"x": -9.0}])), guarded(Scripted([{}]), reset_below=5.0)):
        step, _ = method.update(batch(0))
        assert step.resets == 0 and bool((method.parameters()["a"] == 1).all())


def test_stochastic_restore_touches_about_its_share_and_is_keyed() -> None:
    def masks(seed: int, updates: int, **values: Any) -> list[Tensor]:
        method = guarded(Scripted(), seed, restore=0.25, **values)
        out = []
        for _ in range(updates):
            before = theta(method)
            method.update(batch(0))
            after = theta(method)
            assert all(bool(((after[n] == 0) | (after[n] == before[n] + 1)).all()) for n in after)
            out.append(torch.cat([(after[name] == 0).flatten() for name in sorted(after)]))
        return out

    first, again, other = masks(1, 3), masks(1, 3), masks(2, 3)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert float(a.float().mean()) == pytest.approx(0.25, abs=0.035)  # 5 sd of 4000 draws
    assert not torch.equal(first[0], first[1])
    # A draw belongs to its update: guards that acted before do not change it.
    after_reset = masks(1, 3, reset_every=2)
    assert torch.equal(after_reset[0], first[0]) and torch.equal(after_reset[2], first[2])
    assert not torch.equal(first[0][:2000], first[0][2000:])  # nor do two tensors share theirs


def test_stochastic_restore_of_a_real_method() -> None:
    plain, method = made(Tcr), guarded(made(Tcr), restore=0.5)
    plain.update(batch(1))
    step, _ = method.update(batch(1))
    free, held, start = theta(plain), theta(method), TOY.adaptable()
    back = 0
    for name in start:
        returned = held[name] == start[name]
        assert torch.equal(held[name][~returned], free[name][~returned])
        back += int((returned & (free[name] != start[name])).sum())
    assert 0 < back < 24
    expected = math.sqrt(sum(float((held[name] - start[name]).square().sum()) for name in start))
    assert step.diagnostics["source_distance"] == pytest.approx(expected, rel=1e-5) and step.resets == 0
    moments = method.snapshot()[0], plain.snapshot()[0]
    shared = [name for name in moments[1] if name.startswith("moment")]
    assert shared and all(np.array_equal(moments[0][name], moments[1][name]) for name in shared)
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in method.parameters().values())


def test_refused_batches_are_not_counted() -> None:
    method = guarded(made(Tcr), reset_every=2, restore=0.3, reset_below=0.1)
    method.update(batch(0))
    before = state(method)
    for _ in range(3):
        step, _ = method.update(batch(1, rows=8))
        assert (step.updated, step.reason, step.resets) == (False, "too-small", 0)
    assert state(method) == before and method.version == 1


def test_sar_s_own_recoveries_are_counted_through_resets() -> None:
    sure = replace(CONSTANTS, temperature=0.01)

    def sar() -> Sar:
        return Sar(TOY.adaptable(), sure, AdaptConfig(), 16)

    method, plain = guarded(sar(), reset_every=2), sar()
    seen = []
    for seed in range(4):
        step, _ = method.update(batch(seed))
        alone, _ = plain.update(batch(seed))
        assert step.updated and alone.resets == seed + 1  # it recovers after every update
        seen.append(step.resets)
    assert seen == [1, 3, 4, 6]  # its own four, and two of the guard


@pytest.mark.parametrize("maker", MAKERS)
def test_a_restored_lane_continues_byte_identically(maker: type[Tcr] | type[Sar] | type[Tent]) -> None:
    def fresh() -> Guarded:
        return guarded(made(maker), reset_every=4, restore=0.2, reset_below=0.05)

    method, other, used = fresh(), fresh(), fresh()
    for seed in range(3):
        method.update(batch(seed))
    tensors, meta = method.snapshot()
    saved = json.loads(json.dumps(meta))
    used.update(batch(9))
    for each in (other, used):
        each.restore(tensors, saved)
        assert state(each) == state(method)
    for seed in range(10, 13):
        for each in (method, other, used):
            each.update(batch(seed))
        assert state(method) == state(other) == state(used)
    assert method.version == 6 and other.snapshot()[1]["resets"] >= 1


def test_what_cannot_be_guarded_is_refused() -> None:
    learned = made(Tcr)
    learned.update(batch(0))
    for inner, source in (
        (learned, TOY.adaptable()),
        (made(Tcr), {}),
        (made(Tcr), {"norm.weight": drawn(1, 12)}),
    ):
        with pytest.raises(ConfigError, match="fresh"):
            Guarded(inner, source, OFF, 0)
    method = guarded(made(Tcr), restore=0.1)
    with pytest.raises(ArtifactError, match="guards"):
        method.restore(*made(Tcr).snapshot())
    with pytest.raises(ArtifactError, match="'tcr'"):
        method.restore(*guarded(made(Tent)).snapshot())
