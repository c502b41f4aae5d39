"""What decoupling may refer to, where it acts, and weights of the rows, on a linear toy encoder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.decouple import Gradient, degrees, inner, norm
from adapters.online.objectives import refined
from adapters.online.rest import Rest, source_directions, source_gradients
from adapters.online.tcr import Tcr
from core.artifacts import tensors_hash
from core.config import AdaptConfig
from core.errors import ArtifactError, ConfigError
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

INPUTS, WIDTH, ITEMS, ROWS = 10, 6, 40, 24
CONSTANTS = SourceConstants(0.15, 1.6, temperature=0.1, learning_rate=3e-3, batch=ROWS)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SOURCE = {"weight": 1 + 0.1 * drawn(1, INPUTS), "bias": 0.1 * drawn(2, INPUTS), "unused": torch.ones(3)}
PROJECTION = drawn(3, INPUTS, WIDTH)
SCENES = drawn(4, ITEMS, INPUTS)
SHIFT = 1.2 * drawn(5, INPUTS)


def encode(params: Params, x: Tensor) -> Tensor:
    return normalize((x * params["weight"] + params["bias"]) @ PROJECTION, dim=1)


GALLERY = encode(SOURCE, SCENES)


def batch(seed: int, change: Callable[[Tensor], Tensor] = lambda q: q) -> ToyPass:
    picked = torch.randint(ITEMS, (ROWS,), generator=torch.Generator().manual_seed(seed))
    x = SCENES[picked] + 0.3 * drawn(seed + 50, ROWS, INPUTS) + SHIFT * (1 + 0.3 * (seed % 3))
    return ToyPass(
        torch.ones(ROWS, dtype=torch.bool),
        encode(SOURCE, x),
        lambda params: change(encode(params, x)),
        lambda q: GALLERY[(q @ GALLERY.T).topk(4, dim=1).indices],
        ids=tuple(f"queries/0/{seed * ROWS + row}" for row in range(ROWS)),
    )


class Pairs:
    """Clean pairs drawn by the number of the step."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, params: Params, number: int) -> tuple[Tensor, Tensor]:
        self.calls.append(number)
        picked = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(number))[:12]
        return encode(params, SCENES[picked] + 0.3 * drawn(900 + number, 12, INPUTS)), GALLERY[picked]


DIRECTIONS = source_directions(SOURCE, Pairs(), 12, 0.1, rank=4)
REFERENCES = ["source_kl", "memory", "weights", "subspace"]


def rest(reference: str = "none", values: Mapping[str, Any] | None = None, **decouple: Any) -> Rest:
    document = {"anchor": 1.0, "decouple": {"reference": reference} | decouple} | dict(values or {})
    config = AdaptConfig.model_validate(document)
    return Rest(SOURCE, CONSTANTS, config, memory=Pairs(), subspace=DIRECTIONS)


def theta(method: Tcr) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method.parameters().items()}


def state(method: Tcr) -> str:
    return tensors_hash(*method.snapshot())


def slow_reference(method: Rest, reference: str, view: ToyPass, number: int) -> tuple[Gradient, float]:
    """r and its loss from the formulas, in float64 and without any code of the method."""
    leaves = {name: tensor.double().requires_grad_() for name, tensor in theta(method).items()}
    if reference == "weights":
        r = {name: leaves[name].detach() - SOURCE[name].double() for name in leaves}
        return r, sum(float(part.square().sum()) for part in r.values()) / 2
    if reference == "memory":
        picked = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(number))[:12]
        x = (SCENES[picked] + 0.3 * drawn(900 + number, 12, INPUTS)).double()
        h = (x * leaves["weight"] + leaves["bias"]) @ PROJECTION.double()
        similarity = (h / h.norm(dim=1, keepdim=True)) @ GALLERY[picked].double().T / 0.1
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(12):
            loss = loss - (similarity[i, i] - similarity[i].logsumexp(0)) / 24
            loss = loss - (similarity[i, i] - similarity[:, i].logsumexp(0)) / 24
    else:
        raise AssertionError(reference)
    parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    r = {name: part for name, part in zip(leaves, parts, strict=True) if part is not None}
    return r, float(loss.detach())


@pytest.mark.parametrize("granularity", ["global", "tensor"])
@pytest.mark.parametrize("reference", ["memory", "weights"])
def test_a_reference_is_what_its_formula_says(reference: str, granularity: str) -> None:
    method, plain, conflicts = rest(reference, granularity=granularity), rest(), 0
    for seed in range(8):
        view, before = batch(seed), theta(method)
        plain.restore(*method.snapshot())
        plain.update(view)  # the same step without decoupling shows g's own step
        r, loss = slow_reference(method, reference, view, seed)
        step, _ = method.update(view)
        assert step.losses["general"] == pytest.approx(loss, rel=1e-4, abs=1e-7)
        moved = {name: before[name] - value for name, value in theta(method).items()}
        if reference == "weights" and seed == 0:
            assert math.isnan(step.diagnostics["conflict_degrees"]) and math.isnan(
                step.diagnostics["realised_degrees"]
            )
            continue
        assert step.diagnostics["realised_degrees"] == pytest.approx(degrees(moved, r), abs=0.1)
        if step.diagnostics["conflict_degrees"] > 90:
            conflicts += 1
            assert step.diagnostics["removed_energy"] > 0 and not equal(theta(plain), theta(method))
            if granularity == "global":
                cosine = math.cos(math.radians(step.diagnostics["conflict_degrees"]))
                assert step.diagnostics["removed_energy"] == pytest.approx(cosine**2, abs=1e-4)
        elif granularity == "global":
            assert step.diagnostics["removed_energy"] == 0 and equal(theta(plain), theta(method))
    assert conflicts > 0


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def along(moved: Gradient) -> float:
    """Norm of the component of a step inside the subspace, in plain matrix algebra."""
    return float((DIRECTIONS @ torch.cat([part.flatten() for part in moved.values()]).double()).norm())


def test_the_subspace_is_left_alone_by_the_step_or_the_gradient() -> None:
    """On the step nothing is left inside; on the gradient AdamW's scaling brings some of it back."""
    taken = {}
    for place in ("gradient", "step"):
        method = rest("subspace", place=place)
        for seed in range(4):
            before = theta(method)
            step, _ = method.update(batch(seed))
            moved = {name: before[name] - value for name, value in theta(method).items()}
            assert step.updated and step.backwards == 1 and 0 < step.diagnostics["conflict_degrees"] < 90
            assert step.diagnostics["realised_degrees"] == pytest.approx(
                math.degrees(math.acos(min(1.0, along(moved) / norm(moved)))), abs=0.1
            )
            assert 0 < step.diagnostics["removed_energy"] < 1
        taken[place] = along(moved) / norm(moved)
    assert taken["step"] < 1e-4 < taken["gradient"]


def test_half_the_strength_removes_half_the_component() -> None:
    whole, half, none = (rest("subspace", place="step", strength=s) for s in (1.0, 0.5, 1e-9))
    moves = []
    for method in (whole, half, none):
        method.update(batch(0))
        moves.append({name: SOURCE[name] - value for name, value in theta(method).items()})
    assert along(moves[1]) == pytest.approx(along(moves[2]) / 2, rel=1e-3)
    assert along(moves[0]) < 1e-3 * along(moves[2])


@pytest.mark.parametrize("reference", REFERENCES)
def test_on_the_step_the_one_sided_rule_holds_after_adamw(reference: str) -> None:
    method, plain, acted = rest(reference, place="step"), rest(), 0
    for seed in range(10):
        plain.restore(*method.snapshot())
        before = theta(method)
        step, _ = method.update(batch(seed))
        plain.update(batch(seed))
        if step.diagnostics["removed_energy"] == 0:
            assert equal(theta(plain), theta(method))  # to the last bit
            continue
        acted += 1
        raw = {name: before[name] - value for name, value in theta(plain).items()}
        moved = {name: before[name] - value for name, value in theta(method).items()}
        assert step.diagnostics["realised_degrees"] == pytest.approx(90, abs=0.1)
        expected = 1 - inner(moved, moved) / inner(raw, raw)
        assert step.diagnostics["removed_energy"] == pytest.approx(expected, abs=1e-3)
    assert acted > 0


def test_the_first_step_of_a_relative_reference_is_tcrs_wherever_it_acts() -> None:
    plain = rest()
    plain.update(batch(0))
    for place in ("gradient", "step"):
        for reference in ("source_kl", "weights"):
            method = rest(reference, place=place)
            step, _ = method.update(batch(0))
            assert equal(theta(method), theta(plain)) and math.isnan(step.diagnostics["conflict_degrees"])


def test_a_small_displacement_is_still_a_reference() -> None:
    """In units of the parameters: beside the gradient it may be tiny, and yet it is no rounding noise."""
    method = rest("weights", {"learning_rate": 1e-6})
    method.update(batch(0))
    step, _ = method.update(batch(1))
    assert step.diagnostics["source_distance"] < 1e-5 and math.isfinite(step.diagnostics["conflict_degrees"])


@pytest.mark.parametrize("granularity", ["global", "tensor"])
@pytest.mark.parametrize("place", ["gradient", "step"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_every_combination_learns_and_continues_byte_identically(
    reference: str, place: str, granularity: str
) -> None:
    values = {"steps": 2, "anchor": 0.99}
    method = rest(reference, values, place=place, granularity=granularity)
    for seed in range(2):
        assert method.update(batch(seed))[0].updated
    tensors, meta = method.snapshot()
    fresh = rest(reference, values, place=place, granularity=granularity)
    fresh.restore(tensors, json.loads(json.dumps(meta)))
    for each in (method, fresh):
        step, _ = each.update(batch(2))
        assert step.updated and math.isfinite(step.diagnostics["realised_degrees"])
    assert state(method) == state(fresh)
    assert torch.equal(theta(method)["unused"], SOURCE["unused"])


@pytest.mark.parametrize(
    ("reference", "per_step"), [("none", 1), ("source_kl", 2), ("memory", 2), ("weights", 1), ("subspace", 1)]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_backward_passes_are_counted(reference: str, per_step: int, steps: int) -> None:
    method = rest(reference, {"steps": steps})
    for seed in range(2):
        assert method.update(batch(seed))[0].backwards == per_step * steps
    paper = rest(reference, {"preset": "tcr-paper"})
    assert paper.update(batch(0))[0].backwards == 3 * per_step


def test_draws_of_the_memory_are_keyed_by_the_step() -> None:
    pairs = Pairs()
    config = AdaptConfig.model_validate({"steps": 2, "decouple": {"reference": "memory"}})
    method = Rest(SOURCE, CONSTANTS, config, memory=pairs)
    method.update(batch(0))
    held = method.snapshot()
    method.update(batch(1, lambda q: q * math.nan))  # refused: nothing is drawn
    method.update(batch(1))
    method.restore(*held)
    method.update(batch(1))
    assert pairs.calls == [0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("place", ["gradient", "step"])
def test_refused_batches_leave_the_state_alone(reference: str, place: str) -> None:
    method, calls = rest(reference, {"steps": 2, "constants": "queue"}, place=place), 0
    method.update(batch(0))
    before = state(method)

    def later(q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return q * math.nan if calls == 2 else q

    step, _ = method.update(batch(1, later))
    assert (step.updated, step.reason, step.rolled_back) == (False, "non-finite-features", True)
    assert state(method) == before and step.backwards >= 1
    wild = rest(reference, {"learning_rate": 1.0, "weight_decay": 1e39}, place=place)
    before = state(wild)
    assert wild.update(batch(0))[0].reason == "rolled-back" and state(wild) == before


def test_a_broken_memory_is_refused() -> None:
    def broken(params: Params, number: int) -> tuple[Tensor, Tensor]:
        q, targets = Pairs()(params, number)
        return q * math.nan, targets

    config = AdaptConfig.model_validate({"decouple": {"reference": "memory"}})
    method = Rest(SOURCE, CONSTANTS, config, memory=broken)
    before = state(method)
    step, _ = method.update(batch(0))
    assert (step.updated, step.reason) == (False, "non-finite-loss") and state(method) == before


def test_source_gradients_are_rows_of_the_pair_loss() -> None:
    found = source_gradients(SOURCE, Pairs(), 3, 0.1)
    assert found.shape == (3, 2 * INPUTS + 3) and not found[:, -3:].any()
    for number in range(3):
        r, _ = slow_reference(rest(), "memory", batch(0), number)
        expected = torch.cat([r["weight"], r["bias"]])
        torch.testing.assert_close(found[number, :-3].double(), expected, atol=1e-5, rtol=1e-4)
    assert DIRECTIONS.shape == (4, 23)


def test_what_a_reference_lacks_is_said() -> None:
    for reference, missing in (("memory", "training pairs"), ("subspace", "source directions")):
        config = AdaptConfig.model_validate({"decouple": {"reference": reference}})
        with pytest.raises(ConfigError, match=missing):
            Rest(SOURCE, CONSTANTS, config)
    config = AdaptConfig.model_validate({"decouple": {"reference": "subspace"}})
    with pytest.raises(ConfigError, match=r"\[R, 23\]"):
        Rest(SOURCE, CONSTANTS, config, subspace=torch.eye(5))
    with pytest.raises(ConfigError, match="orthonormal"):
        Rest(SOURCE, CONSTANTS, config, subspace=2 * DIRECTIONS)
    with pytest.raises(ConfigError, match="orthonormal"):
        Rest(SOURCE, CONSTANTS, config, subspace=math.nan * DIRECTIONS)
    frozen = DIRECTIONS.numpy().copy()
    frozen.setflags(write=False)
    assert Rest(SOURCE, CONSTANTS, config, subspace=frozen).update(batch(0))[0].updated


class Seen:
    """Reliability that halves a row's weight with every batch; pending until committed."""

    def __init__(self, value: float | None = None) -> None:
        self.count, self.pending, self.asked = 0, 0, 0
        self.value = value

    def weights(self, source: Tensor, ids: tuple[str, ...], mask: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and len(ids) == int(mask.sum())
        self.asked += 1
        self.pending = 1
        if self.value is not None:
            return torch.full((len(mask),), self.value)
        return torch.tensor([(int(i.split("/")[2]) % 4) / 4 / (1 + self.count) for i in ids])

    def commit(self) -> None:
        self.count, self.pending = self.count + self.pending, 0

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {"count": np.array([self.count, self.pending])}, {"kind": "seen"}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        assert meta["kind"] == "seen"
        self.count, self.pending = (int(value) for value in tensors["count"])


def trusting(reliability: Seen | None, **values: Any) -> Rest:
    config = AdaptConfig.model_validate({"anchor": 1.0, "decouple": {"reference": "none"}} | values)
    return Rest(SOURCE, CONSTANTS, config, reliability=reliability)


def test_reliability_weights_the_entropies() -> None:
    seen = Seen()
    view = batch(3)
    near = view.neighbours(view.source)[:, 0]
    entropy = refined(view.source.double(), near.double(), 0.1, view.mask)[1].tolist()
    weights = [(int(i.split("/")[2]) % 4) / 4 for i in view.ids]
    expected = sum(w * e for w, e in zip(weights, entropy, strict=True)) / sum(weights)
    step, _ = trusting(seen).update(view)
    assert step.losses["entropy"] == pytest.approx(expected, rel=1e-5)
    assert step.losses["entropy"] != pytest.approx(sum(entropy) / ROWS, rel=1e-2)


def test_reliability_is_asked_once_a_batch_and_kept_when_it_was_learned() -> None:
    seen = Seen()
    method = trusting(seen, steps=3)
    for seed in range(2):
        method.update(batch(seed))
    assert (seen.asked, seen.count) == (2, 2)
    before = state(method)
    assert not method.update(batch(2, lambda q: q * math.nan))[0].updated
    calls = 0

    def later(q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return q * math.nan if calls == 3 else q

    assert method.update(batch(2, later))[0].rolled_back
    assert (seen.asked, seen.count, seen.pending) == (3, 2, 0) and state(method) == before
    tensors, meta = method.snapshot()
    assert tensors["reliability/count"].tolist() == [2, 0]
    other = Seen()
    fresh = trusting(other, steps=3)
    fresh.restore(tensors, json.loads(json.dumps(meta)))
    for each in (method, fresh):
        each.update(batch(5))
    assert other.count == 3 and state(method) == state(fresh)


def test_a_batch_that_nobody_trusts_has_no_entropy_term() -> None:
    step, _ = trusting(Seen(0.0)).update(batch(0))
    assert step.updated and "entropy" not in step.losses
    method = trusting(Seen(math.nan))
    assert method.update(batch(0))[0].reason == "non-finite-loss"


def test_states_with_and_without_reliability_do_not_mix() -> None:
    plain, weighted = trusting(None), trusting(Seen())
    for one, other in ((plain, weighted), (weighted, plain)):
        with pytest.raises(ArtifactError, match="reliability"):
            one.restore(*other.snapshot())


def test_bidirectional_consistency_replaces_the_entropy() -> None:
    view = batch(1)
    near = view.neighbours(view.source)[:, 0].double()
    logits = (view.source.double() @ near.T / 0.1).tolist()
    expected = 0.0
    for i in range(ROWS):
        row = [math.exp(value) for value in logits[i]]
        column = [math.exp(logits[j][i]) for j in range(ROWS)]
        for j in range(ROWS):
            p, c = row[j] / sum(row), column[j] / sum(column)
            expected += p * math.log(p / c) / ROWS
    for preset in ("service", "tcr-paper"):
        step, _ = trusting(None, consistency="bidir", preset=preset, steps=1).update(view)
        assert step.updated and "entropy" not in step.losses
        if preset == "service":
            assert step.losses["consistency"] == pytest.approx(expected, rel=1e-4)
    step, _ = trusting(Seen(0.25), consistency="bidir").update(view)
    assert step.losses["consistency"] == pytest.approx(expected, rel=1e-4)  # equal weights: the plain mean
