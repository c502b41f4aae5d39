"""TCR and the REST-style method on a small real encoder: LayerNorm and a frozen projection.

The oracle restates TCR in NumPy float64: closed-form gradients, AdamW and queue written out, no autograd.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peer_stage import INPUTS, TOY, drawn
from torch import Tensor
from torch.func import functional_call
from toy_pass import ToyPass

from adapters.online.decouple import degrees
from adapters.online.gradient import Settings, Trainable
from adapters.online.objectives import loss_gen
from adapters.online.rest import Rest
from adapters.online.source_pairs import SourceQueue
from adapters.online.tcr import Tcr
from core.artifacts import part, tensors_hash
from core.config import AdaptConfig, DecoupleConfig
from core.errors import ArtifactError, ConfigError
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params


ITEMS = 50
Array = NDArray[np.float64]

SCENES = drawn(4, ITEMS, INPUTS)
GALLERY = TOY(SCENES)
SHIFT = 0.8 * drawn(5, INPUTS)
CONSTANTS = SourceConstants(0.15, 1.6, temperature=0.1, learning_rate=3e-3, batch=32)


def inputs(rows: int, seed: int, strength: float = 1.0) -> Tensor:
    """Noisy scenes under a shift that changes with the seed, so that streams are not stationary."""
    picked = torch.randint(ITEMS, (rows,), generator=torch.Generator().manual_seed(seed))
    return SCENES[picked] + 0.3 * drawn(seed + 50, rows, INPUTS) + strength * SHIFT * (1 + 0.3 * (seed % 3))


@dataclass
class Stage:
    """Makes batches as the pipeline does, and counts what was asked of it."""

    encodes: list[Params] = field(default_factory=list)
    searches: int = 0

    def batch(
        self, x: Tensor, mask: Tensor | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> ToyPass:
        def encode(params: Params) -> Tensor:
            self.encodes.append(params)
            q: Tensor = functional_call(TOY, dict(params), (x,))
            return q if change is None else change(q)

        def near(q: Tensor) -> Tensor:
            assert not q.requires_grad
            self.searches += 1
            found: Tensor = GALLERY[(q @ GALLERY.T).topk(4, dim=1).indices]
            return found

        real = torch.ones(len(x), dtype=torch.bool) if mask is None else mask
        return ToyPass(real, TOY(x), encode, near)


def batch(x: Tensor, mask: Tensor | None = None, change: Callable[[Tensor], Tensor] | None = None) -> ToyPass:
    return Stage().batch(x, mask, change)


def config(**values: Any) -> AdaptConfig:
    return AdaptConfig.model_validate({"anchor": 1.0} | values)


def tcr(known: SourceConstants = CONSTANTS, floor: int = 16, **values: Any) -> Tcr:
    return Tcr(TOY.adaptable(), known, config(method="tcr", **values), floor)


def rest(known: SourceConstants = CONSTANTS, floor: int = 16, **values: Any) -> Rest:
    return Rest(TOY.adaptable(), known, config(**values), floor)


def state(method: Tcr) -> str:
    return tensors_hash(*method.snapshot())


def theta(method: Tcr) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method.parameters().items()}


MAKERS: list[Callable[..., Tcr]] = [tcr, rest]


class Oracle:
    """The algorithm box of TCR, float64, with the paper's constants."""

    def __init__(self) -> None:
        self.w, self.b = TOY.norm.weight.double().numpy().copy(), TOY.norm.bias.double().numpy().copy()
        self.proj, self.items = TOY.proj.weight.double().numpy(), GALLERY.double().numpy()
        self.m = [np.zeros(INPUTS), np.zeros(INPUTS)]
        self.v = [np.zeros(INPUTS), np.zeros(INPUTS)]
        self.count = self.batches = 0
        self.queue: list[tuple[float, Array, Array, float]] = []
        self.delta_s = self.ceiling = math.nan
        self.gauges: dict[str, float] = {}

    def learn(self, x: Array) -> Array:
        """Three inner steps; afterwards `losses` are of the last, `gauges` of the first."""
        for s in range(3):
            hat, h, q = self.forward(x)
            near = np.array([self.items[int(np.argmax(self.items @ row))] for row in q])
            self.step(hat, h, q, self.to_q(q, near, s == 0))
        self.batches += 1
        return q

    def forward(self, x: Array) -> tuple[Array, Array, Array]:
        hat = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        h = (hat * self.w + self.b) @ self.proj.T
        return hat, h, h / np.linalg.norm(h, axis=1, keepdims=True)

    def to_q(self, q: Array, near: Array, first: bool) -> Array:
        rows = len(q)
        centre, item_centre = q.mean(0), near.mean(0)
        entropy = np.zeros(rows)
        p = np.zeros((rows, rows))
        for i in range(rows):
            logits = [q[i] @ near[j] / 0.02 for j in range(rows)]
            p[i] = [math.exp(value - max(logits)) for value in logits]
            p[i] /= p[i].sum()
            entropy[i] = -sum(value * math.log(value) for value in p[i] if value > 0)
        if first and self.batches < 10:
            scored = []
            for i in range(rows):
                si = 2 * math.dist(q[i], near[i]) - math.dist(q[i], centre) - math.dist(near[i], item_centre)
                scored.append((si, q[i].copy(), near[i].copy(), float(entropy[i])))
            self.queue += sorted(scored, key=lambda pair: pair[0])[: int(0.3 * rows)]
            self.queue = sorted(self.queue, key=lambda pair: pair[0])[:64]
        delta_s = math.dist(
            np.mean([pair[1] for pair in self.queue], 0), np.mean([pair[2] for pair in self.queue], 0)
        )
        ceiling = max(pair[3] for pair in self.queue)

        passed = [i for i in range(rows) if entropy[i] <= ceiling]
        delta_t = math.dist(centre, item_centre)
        far = [math.dist(row, centre) for row in q]
        self.delta_s, self.ceiling = delta_s, ceiling
        weights = {k: max(0.0, 1 - entropy[k] / (ceiling + 1e-3)) for k in passed}
        self.losses = {
            "uniformity": sum(math.exp(-0.1 * d) for d in far) / rows,
            "gap": (delta_t - delta_s) ** 2,
            "entropy": sum(weights[k] * entropy[k] for k in passed) / len(passed),
        }
        if first:
            self.gauges = {
                "uniformity": sum(far) / rows,
                "gap": delta_t,
                "entropy": float(entropy.mean()),
                "kept_share": len(passed) / rows,
            }
        pull = [math.exp(-0.1 * d) * (row - centre) / d for d, row in zip(far, q, strict=True)]
        out = np.zeros_like(q)
        for k in range(rows):
            out[k] -= 0.1 / rows * (pull[k] - sum(pull) / rows)
            out[k] += 2 / rows * (delta_t - delta_s) * (centre - item_centre) / delta_t
            if k in passed:
                weight = weights[k] / len(passed)
                for j in range(rows):
                    if p[k, j] > 0:
                        out[k] -= weight / 0.02 * p[k, j] * (math.log(p[k, j]) + entropy[k]) * near[j]
        return out

    def step(self, hat: Array, h: Array, q: Array, to_q: Array) -> None:
        length = np.linalg.norm(h, axis=1, keepdims=True)
        to_h = (to_q - q * (to_q * q).sum(1, keepdims=True)) / length
        to_z = to_h @ self.proj
        self.count += 1
        for k, (value, gradient) in enumerate([(self.w, (to_z * hat).sum(0)), (self.b, to_z.sum(0))]):
            value *= 1 - 3e-4 * 1e-4
            self.m[k] = 0.9 * self.m[k] + 0.1 * gradient
            self.v[k] = 0.999 * self.v[k] + 0.001 * gradient**2
            m, v = self.m[k] / (1 - 0.9**self.count), self.v[k] / (1 - 0.999**self.count)
            value -= 3e-4 * m / (np.sqrt(v) + 1e-8)


def queue_constants(method: Tcr, rows: int) -> tuple[float, float] | None:
    """Delta_S and E_m as the queue in a snapshot gives them."""
    tensors, meta = method.snapshot()
    queue = SourceQueue()
    queue.restore(part(tensors, "queue/"), meta["queue"], torch.device("cpu"))
    return queue.constants(rows)


def test_tcr_paper_matches_a_float64_restatement() -> None:
    method, oracle = tcr(preset="tcr-paper", steps=1, anchor=0.5), Oracle()
    for seed in range(12):
        x = inputs(24, seed)
        step, features = method.update(batch(x))
        expected = oracle.learn(x.double().numpy())
        assert step.updated and features is not None
        np.testing.assert_allclose(features.numpy(), expected, atol=1e-5)
        found = method.parameters()
        np.testing.assert_allclose(found["norm.weight"].detach().numpy(), oracle.w, atol=1e-5)
        np.testing.assert_allclose(found["norm.bias"].detach().numpy(), oracle.b, atol=1e-5)
        assert dict(step.losses) == pytest.approx(oracle.losses, abs=1e-5)
        assert queue_constants(method, 24) == pytest.approx((oracle.delta_s, oracle.ceiling), abs=1e-5)
        for name, value in oracle.gauges.items():
            assert step.diagnostics[name] == pytest.approx(value, abs=1e-5)
        assert step.backwards == 3
    # All that agreement would be cheap if nothing had moved.
    assert np.abs(oracle.w - TOY.norm.weight.numpy()).max() > 1e-3 and len(oracle.queue) == 64


def test_the_preset_leaves_the_rate_to_choose() -> None:
    usual, same, other = (
        tcr(preset="tcr-paper", **rate) for rate in ({}, {"learning_rate": 3e-4}, {"learning_rate": 1e-3})
    )
    for method in (usual, same, other):
        method.update(batch(inputs(24, 0)))
    assert torch.equal(theta(usual)["norm.weight"], theta(same)["norm.weight"])
    assert not torch.equal(theta(usual)["norm.weight"], theta(other)["norm.weight"])


def test_decouple_none_is_tcr_and_d1_starts_like_it() -> None:
    plain, none, d1 = tcr(), rest(decouple={"reference": "none"}), rest()
    for seed in range(8):
        x = inputs(32, seed)
        a, _ = plain.update(batch(x))
        none.update(batch(x))
        b, _ = d1.update(batch(x))
        if seed == 0:
            assert all(torch.equal(theta(plain)[name], theta(d1)[name]) for name in theta(plain))
            assert math.isnan(b.diagnostics["conflict_degrees"]) and b.losses["general"] == pytest.approx(
                0, abs=1e-6
            )
        assert a.losses.keys() <= b.losses.keys()
        assert all(torch.equal(theta(plain)[name], theta(none)[name]) for name in theta(plain))
    assert not torch.equal(theta(plain)["norm.weight"], theta(d1)["norm.weight"])


@pytest.mark.parametrize("granularity", ["global", "tensor"])
def test_decoupling_acts_and_its_angles_are_true(granularity: str) -> None:
    method, conflicts = rest(decouple={"granularity": granularity}), 0
    for seed in range(12):
        x = inputs(32, seed)
        view, leaves = batch(x), method.parameters()
        q = view.encode(leaves)
        general = loss_gen(
            q, view.source, view.neighbours(view.source)[:, 0], CONSTANTS.temperature, view.mask
        )
        parts = torch.autograd.grad(general, list(leaves.values()), allow_unused=True)
        r = {name: part for name, part in zip(leaves, parts, strict=True) if part is not None}
        before = theta(method)
        step, _ = method.update(view)
        assert step.losses["general"] == pytest.approx(float(general.detach()), rel=1e-4, abs=1e-6)
        if seed == 0:
            continue
        moved = {name: before[name] - value for name, value in theta(method).items()}
        assert step.diagnostics["realised_degrees"] == pytest.approx(degrees(moved, r), abs=0.05)
        if step.diagnostics["conflict_degrees"] > 90:
            conflicts += 1
            assert step.diagnostics["removed_energy"] > 0
            if granularity == "global":
                cosine = math.cos(math.radians(step.diagnostics["conflict_degrees"]))
                assert step.diagnostics["removed_energy"] == pytest.approx(cosine**2, abs=1e-4)
        elif granularity == "global":
            assert step.diagnostics["removed_energy"] == 0
    assert conflicts > 0


def test_decoupling_keeps_predictions_nearer_to_the_source() -> None:
    def divergence(method: Tcr) -> float:
        for seed in range(25):
            method.update(batch(inputs(32, seed)))
        view = batch(inputs(32, 99, strength=0.0))
        with torch.no_grad():
            q = view.encode(method.parameters())
        return float(loss_gen(q, view.source, view.neighbours(view.source)[:, 0], 0.1, view.mask))

    assert divergence(rest()) < divergence(tcr())


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_one_forward_per_inner_step_and_the_cached_one_first(maker: Callable[..., Tcr], steps: int) -> None:
    method, stage = maker(steps=steps), Stage()
    leaves = method.parameters()
    ids = {name: id(tensor) for name, tensor in leaves.items()}
    step, _ = method.update(stage.batch(inputs(32, 1)))
    assert step.backwards == (2 * steps if maker is rest else steps)
    assert len(stage.encodes) == steps and all(params is leaves for params in stage.encodes)
    assert stage.searches == steps + (maker is rest)
    method.restore(*method.snapshot())
    assert method.parameters() is leaves and {n: id(t) for n, t in leaves.items()} == ids
    assert all(tensor.requires_grad and tensor.is_leaf for tensor in leaves.values())


@pytest.mark.parametrize("maker", MAKERS)
def test_learns_under_no_grad_from_outside(maker: Callable[..., Tcr]) -> None:
    method = maker()
    with torch.no_grad():
        step, _ = method.update(batch(inputs(32, 1)))
    assert step.updated and method.version == 1


@pytest.mark.parametrize("maker", MAKERS)
def test_only_norm_tensors_move(maker: Callable[..., Tcr]) -> None:
    method = maker(weight_decay=0.1)
    frozen = {name: value.clone() for name, value in TOY.state_dict().items()}
    items = GALLERY.clone()
    for seed in range(5):
        method.update(batch(inputs(32, seed)))
    assert all(torch.equal(value, TOY.state_dict()[name]) for name, value in frozen.items())
    assert torch.equal(items, GALLERY) and GALLERY.grad is None
    moved, start = theta(method), TOY.adaptable()
    assert set(moved) == {"norm.weight", "norm.bias", "unused.weight", "unused.bias"}
    for name in moved:
        assert torch.equal(moved[name], start[name]) == name.startswith("unused")  # no gradient: no decay


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("rows", [0, 1, 3, 15])
def test_below_the_floor_nothing_is_learned(maker: Callable[..., Tcr], rows: int) -> None:
    method = maker()
    method.update(batch(inputs(32, 0)))
    before, stage = state(method), Stage()
    step, features = method.update(stage.batch(inputs(16, 1), torch.arange(16) < rows))
    assert (step.updated, step.reason, step.backwards, features) == (False, "too-small", 0, None)
    assert state(method) == before and stage.encodes == []


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("values", [{}, {"preset": "tcr-paper"}, {"constants": "queue"}])
def test_a_padded_batch_equals_the_unpadded_one(maker: Callable[..., Tcr], values: dict[str, str]) -> None:
    plain, padded, permuted = maker(**values), maker(**values), maker(**values)
    mask = torch.arange(32) < 24
    for seed in range(3):
        x = inputs(24, seed)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        plain.update(batch(x))
        padded.update(batch(torch.cat((x, drawn(seed, 8, INPUTS))), mask))
        permuted.update(batch(x[order]))
    for other in (padded, permuted):
        for name, value in theta(plain).items():
            torch.testing.assert_close(theta(other)[name], value, atol=2e-5, rtol=0)


@pytest.mark.parametrize("maker", MAKERS)
def test_nothing_sure_skips_the_term(maker: Callable[..., Tcr]) -> None:
    method = maker(SourceConstants(0.15, -1.0, 0.1, 3e-3, 32))
    step, _ = method.update(batch(inputs(32, 1)))
    assert step.updated and step.diagnostics["kept_share"] == 0 and "entropy" not in step.losses
    assert all(torch.isfinite(value).all() for value in theta(method).values())


@pytest.mark.parametrize("maker", MAKERS)
def test_identical_rows_are_refused_or_finite(maker: Callable[..., Tcr]) -> None:
    x = inputs(1, 1).expand(32, INPUTS).clone()
    unsure, sure = (
        maker(SourceConstants(0.15, -1.0, 0.1, 3e-3, 32)),
        maker(SourceConstants(0.0, 9.0, 0.1, 3e-3, 32)),
    )
    before = state(unsure)
    step, _ = unsure.update(batch(x))
    assert (step.updated, step.reason) == (False, "nothing-sure") and state(unsure) == before
    step, _ = sure.update(batch(x))
    assert step.updated and step.diagnostics["entropy"] == pytest.approx(math.log(32), abs=1e-4)
    assert all(torch.isfinite(value).all() for value in theta(sure).values())


@pytest.mark.parametrize("maker", MAKERS)
def test_an_empty_queue_is_refused(maker: Callable[..., Tcr]) -> None:
    method = maker(constants="queue", floor=2)
    before = state(method)
    step, _ = method.update(batch(inputs(3, 1)))
    assert (step.updated, step.reason) == (False, "no-constants") and state(method) == before


class _BrokenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * math.nan


def one_nan(q: Tensor) -> Tensor:
    return torch.cat((q[:1] * math.nan, q[1:]))


BROKEN: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (one_nan, "non-finite-features"),
    (lambda q: q * 1e25, "non-finite-loss"),
    (lambda q: _BrokenBackward.apply(q), "non-finite-gradient"),
]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("constants", ["source", "queue"])
@pytest.mark.parametrize(("change", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_broken_batches_leave_the_state_alone(
    maker: Callable[..., Tcr], constants: str, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    method = maker(constants=constants)
    for learned in range(2):  # with and without moments
        before = state(method)
        step, features = method.update(batch(inputs(32, learned), change=change))
        assert (step.updated, step.reason, step.rolled_back, features) == (False, reason, False, None)
        assert state(method) == before and method.version == learned
        assert method.update(batch(inputs(32, learned)))[0].updated


@pytest.mark.parametrize("maker", MAKERS)
def test_a_failure_at_a_later_inner_step_undoes_the_batch(maker: Callable[..., Tcr]) -> None:
    method, calls = maker(steps=3, constants="queue"), 0
    method.update(batch(inputs(32, 0)))
    before = state(method)

    def change(q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return one_nan(q) if calls == 3 else q

    step, _ = method.update(batch(inputs(32, 1), change=change))
    assert (step.updated, step.reason, step.rolled_back) == (False, "non-finite-features", True)
    assert state(method) == before


@pytest.mark.parametrize("maker", MAKERS)
def test_parameters_that_overflow_are_rolled_back(maker: Callable[..., Tcr]) -> None:
    method = maker(learning_rate=1.0, weight_decay=1e39)
    before = state(method)
    step, _ = method.update(batch(inputs(32, 0)))
    assert (step.updated, step.reason, step.rolled_back) == (False, "rolled-back", True)
    assert state(method) == before


@pytest.mark.parametrize("maker", MAKERS)
def test_an_error_from_outside_passes_and_leaves_no_half_batch(maker: Callable[..., Tcr]) -> None:
    method, calls = maker(steps=2, constants="queue"), 0
    before = state(method)

    def change(q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        return q

    with pytest.raises(MemoryError):
        method.update(batch(inputs(32, 0), change=change))
    assert state(method) == before


def test_overflowing_moments_are_noticed() -> None:
    weights = Trainable(TOY.adaptable(), Settings.resolve(config(), CONSTANTS))
    weights.step({"norm.weight": torch.full((INPUTS,), 1e25)})
    assert all(torch.isfinite(tensor).all() for tensor in weights.tensors.values())
    assert not weights.finite()


def test_emission_modes() -> None:
    x = inputs(32, 1)
    for maker in MAKERS:
        before = maker(answer_from="before")
        view = batch(x)
        assert not before.learns_first
        assert torch.equal(
            view.encode(before.parameters()), view.source
        )  # batch 0 is answered as frozen does
        for answer_from in ("after", "paper"):
            assert maker(answer_from=answer_from).learns_first
        assert maker(answer_from="after").update(batch(x))[1] is None

        _, once = maker(answer_from="paper").update(batch(x))
        assert once is not None and not once.requires_grad and torch.equal(once, view.source)
        _, thrice = maker(answer_from="paper", steps=3).update(batch(x))
        two = maker(steps=2)
        two.update(batch(x))
        assert thrice is not None and torch.equal(thrice, view.encode(two.parameters()))
        assert not torch.equal(thrice, view.source)


@pytest.mark.parametrize("maker", MAKERS)
def test_answering_changes_nothing(maker: Callable[..., Tcr]) -> None:
    method, view = maker(), batch(inputs(32, 1))
    method.update(view)
    before = state(method)
    features = view.encode(method.parameters()).detach()
    assert method.transform(features, view) is features and state(method) == before


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    "values", [{"anchor": 0.99}, {"constants": "queue", "steps": 2}, {"preset": "tcr-paper"}]
)
@pytest.mark.parametrize("learned", [0, 4])
def test_a_restored_lane_continues_byte_identically(
    maker: Callable[..., Tcr], values: dict[str, Any], learned: int
) -> None:
    method = maker(**values)
    for seed in range(learned):
        method.update(batch(inputs(32, seed)))
    tensors, meta = method.snapshot()
    kept = {name: array.copy() for name, array in tensors.items()}
    saved = json.loads(json.dumps(meta))
    fresh, used = maker(**values), maker(**values)
    for seed in range(60, 63):
        used.update(batch(inputs(32, seed)))
    for other in (fresh, used):
        other.restore(tensors, saved)
        assert state(other) == state(method)
    for seed in range(20, 25):
        for each in (method, fresh, used):
            each.update(batch(inputs(32, seed)))
        assert state(method) == state(fresh) == state(used)
    assert all(np.array_equal(kept[name], array) for name, array in tensors.items())  # copies, not views
    method.restore(tensors, saved)
    assert state(method) == tensors_hash(kept, meta)


@pytest.mark.parametrize("maker", MAKERS)
def test_anchoring_is_the_mean_with_the_source(maker: Callable[..., Tcr]) -> None:
    free, held = maker(), maker(anchor=0.9)
    step, _ = free.update(batch(inputs(32, 1)))
    near, _ = held.update(batch(inputs(32, 1)))
    start = TOY.adaptable()
    for name, value in theta(held).items():
        torch.testing.assert_close(value, 0.9 * theta(free)[name] + 0.1 * start[name], atol=1e-6, rtol=0)
        if name.startswith("unused"):
            assert torch.equal(value, start[name])
    expected = math.sqrt(sum(float((theta(free)[n] - start[n]).square().sum()) for n in start))
    assert step.diagnostics["source_distance"] == pytest.approx(expected, rel=1e-5)
    assert near.diagnostics["source_distance"] == pytest.approx(0.9 * expected, rel=1e-4)


def test_clipping_bounds_the_gradient() -> None:
    tight, loose = tcr(clip=1e-3), tcr(clip=1e9)
    norms = []
    for method in (tight, loose):
        method.update(batch(inputs(32, 1)))
        held = method.snapshot()[0]
        parts = [held[f"moment1/norm.{name}"] for name in ("weight", "bias")]
        norms.append(10 * math.sqrt(sum(float((part**2).sum()) for part in parts)))
    assert norms[0] == pytest.approx(1e-3, rel=1e-4) and norms[1] > 1e-2


def test_the_source_ceiling_follows_the_number_of_rows() -> None:
    at_32, at_16 = tcr(), tcr()
    ceilings = [1.6, 1.6 * math.log(16) / math.log(32)]
    for method, rows, ceiling in zip((at_32, at_16), (32, 16), ceilings, strict=True):
        x = inputs(rows, 3)
        view = batch(x)
        near = view.neighbours(view.source)[:, 0].double()
        p = (view.source.double() @ near.T / 0.1).softmax(1)
        entropy = -(p * p.log()).sum(1)
        step, _ = method.update(view)
        assert step.diagnostics["kept_share"] == pytest.approx(float((entropy <= ceiling).float().mean()))
        assert step.diagnostics["entropy"] == pytest.approx(float(entropy.mean()), abs=1e-5)


def test_settings_of_the_preset_win() -> None:
    found = Settings.resolve(
        config(preset="tcr-paper", steps=7, answer_from="after", temperature=9.0, clip=0.1, weight_decay=5.0),
        CONSTANTS,
    )
    assert found == Settings(3e-4, 0.02, 0.1, 3, "paper", "queue", 1.0, None, 1e-4)
    service = Settings.resolve(config(), CONSTANTS)
    assert (service.learning_rate, service.temperature) == (3e-3, 0.1)
    chosen = Settings.resolve(config(learning_rate=1e-5, temperature=0.3), CONSTANTS)
    assert (chosen.learning_rate, chosen.temperature) == (1e-5, 0.3)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="adaptable"):
        Tcr({}, CONSTANTS, AdaptConfig())
    with pytest.raises(ConfigError, match="finite source constants"):
        tcr(SourceConstants(math.nan, 1.0, 0.1, 1e-3))
    with pytest.raises(ArtifactError, match="'rest'"):
        rest().restore(*tcr().snapshot())
    tensors, meta = rest().snapshot()
    del tensors["theta/norm.bias"]
    with pytest.raises(ArtifactError, match="another base model"):
        rest().restore(tensors, meta)


def test_defaults_decouple() -> None:
    assert AdaptConfig().decouple == DecoupleConfig(reference="source_kl")
