"""Tent, EATA, SAR, READ, DeYO and SHOT on a small real encoder against plain loops in float64.

The oracle has no tensors and no autograd: losses are loops over floats, gradients finite differences of them.
What all peers promise is tested of UCA, CLIPTTA and UATTA too; their formulas are in test_peers_2024.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from peer_stage import (
    COLUMNS,
    CONSTANTS,
    GALLERY,
    INPUTS,
    ROWS,
    TAU,
    TOY,
    WIDTH,
    Array,
    Row,
    Stage,
    batch,
    cosine,
    drawn,
    encoded,
    entropy,
    found,
    inputs,
    made,
    mean,
    norms,
    shuffled,
    slopes,
    softmax,
    state,
    theta,
)
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.cliptta import Cliptta
from adapters.online.deyo import Deyo
from adapters.online.eata import Eata
from adapters.online.guard import Unlearnable
from adapters.online.peer import Peer, lowest, predict
from adapters.online.read import Read
from adapters.online.sar import Sar
from adapters.online.shot import Shot
from adapters.online.tent import Tent
from adapters.online.uatta import Uatta
from adapters.online.uca import Uca
from core.config import AdaptConfig
from core.errors import ArtifactError, ConfigError

METHODS: list[type[Peer]] = [Tent, Eata, Sar, Read, Deyo, Shot, Uca, Cliptta, Uatta]


# --- the oracle ---------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """One method on one batch: what is chosen and weighted is fixed at the features it was built from."""

    name: str
    columns: list[list[list[float]]]
    shared: list[list[float]]
    start: Array
    shuffled: Array | None
    full: bool
    tau: float = TAU
    running: list[float] | None = None
    kept: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    threshold: float = math.nan

    def __post_init__(self) -> None:
        p = self.predicted(self.start)
        h = [entropy(row) for row in p]
        count = len(h)
        order = sorted(range(count), key=lambda i: h[i])
        self.labels = [max(range(len(row)), key=lambda c, row=row: row[c]) for row in p]  # type: ignore[misc]
        self.kept, self.weights = list(range(count)), [1.0] * count
        self.threshold = h[order[int(0.4 * count)]]
        if self.name in ("eata", "sar"):
            self.kept = order[: int(0.4 * count)]
        if self.name == "eata":
            self.weights = [math.exp(0.4 - value) for value in h]
            self.kept = [i for i in self.kept if self.unlike(p, i)]
            self.remember(p)
        if self.name == "deyo":
            self.kept, drop = order[: int(0.5 * count)], [0.0] * count
            if self.shuffled is not None:
                other = self.predicted(self.shuffled)
                drop = [p[i][self.labels[i]] - other[i][self.labels[i]] for i in range(count)]
                self.kept = [i for i in self.kept if drop[i] > 0]
            self.weights = [
                1 / (math.exp(h[i] - self.threshold) + 0.1) + math.exp(drop[i]) + 0.1 for i in range(count)
            ]

    def predicted(self, q: Array) -> list[list[float]]:
        return [
            softmax(row, columns, self.tau) for row, columns in zip(q.tolist(), self.columns, strict=True)
        ]

    def expected(self, p: Sequence[Row], i: int) -> list[float]:
        if self.full:
            return list(p[i])
        return [sum(p[i][k] * self.columns[i][k][d] for k in range(len(p[i]))) for d in range(WIDTH)]

    def unlike(self, p: Sequence[Row], i: int) -> bool:
        if self.running is None:
            return True
        if self.full:
            return abs(cosine(p[i], self.running)) < 0.05
        items = [item for columns in self.columns for item in columns if any(item)]
        centre = [mean([item[d] for item in items]) for d in range(WIDTH)]
        away = [a - c for a, c in zip(self.expected(p, i), centre, strict=True)]
        return cosine(away, [a - c for a, c in zip(self.running, centre, strict=True)]) < 0.05

    def remember(self, p: Sequence[Row]) -> None:
        rows = [self.expected(p, i) for i in self.kept]
        new = [mean([row[d] for row in rows]) for d in range(len(rows[0]))] if rows else []
        old = self.running
        self.running = new if old is None else [0.9 * a + 0.1 * b for a, b in zip(old, new, strict=True)]

    def losses(self, q: Array) -> dict[str, float]:
        p = self.predicted(q)
        h = [entropy(row) for row in p]
        shared = [softmax(row, self.shared, self.tau) for row in q.tolist()]
        if self.name == "read":
            summed = [math.fsum(row[c] for row in shared) for c in range(len(shared[0]))]
            total = math.fsum(math.exp(value) for value in summed)
            balanced = [math.exp(value) / total for value in summed]
            confidence = mean([-max(row) * math.log(max(row)) for row in p])
            return {"confidence": confidence, "balance": -entropy(balanced)}
        if self.name == "shot":
            average = [mean([row[c] for row in shared]) for c in range(len(shared[0]))]
            first = self.predicted(self.start)
            certain = [i for i in range(len(p)) if max(first[i]) > 0.9]
            out = {"entropy": mean(h), "diversity": -entropy(average)}
            if certain:
                out["pseudo"] = 0.1 * mean([-math.log(p[i][self.labels[i]]) for i in certain])
            return out
        return {"entropy": mean([self.weights[i] * h[i] for i in self.kept])}

    def gradient(self, x: Tensor, weight: Array, bias: Array, step: float = 1e-5) -> tuple[Array, Array]:
        """Central differences by LayerNorm weight and bias."""
        return slopes(lambda q: math.fsum(self.losses(q).values()), x, weight, bias, step)


def oracle(method: Peer, x: Tensor, full: bool, with_shuffle: bool = True, **values: Any) -> Oracle:
    """What the method should see of a batch at its present parameters."""
    held = theta(method)
    weight, bias = held["norm.weight"].double().numpy(), held["norm.bias"].double().numpy()
    with torch.no_grad():
        q = functional_call(TOY, held, (x,))
    nearest = GALLERY[(q @ GALLERY.T).argmax(1)].double().tolist()
    union = [list(item) for item in {tuple(item) for item in nearest}]
    every = GALLERY.double().tolist()
    return Oracle(
        method.name,
        [every] * len(x) if full else found(q).double().tolist(),
        every if full else union,
        encoded(x, weight, bias),
        encoded(shuffled(x), weight, bias) if with_shuffle else None,
        full,
        **values,
    )


# --- parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_predictions_equal_a_loop_and_skip_empty_places(own: bool) -> None:
    q = normalize(drawn(11, 5, WIDTH), dim=1).requires_grad_()
    columns = normalize(drawn(12, 5, 6, WIDTH), dim=2)
    columns[:, 2] = columns[3, 4] = 0
    columns = columns if own else columns[3]
    seen = predict(q, columns, TAU)
    for i, row in enumerate(q.detach().double().tolist()):
        expected = softmax(row, (columns[i] if own else columns).double().tolist(), TAU)
        np.testing.assert_allclose(seen.p[i].detach().numpy(), expected, atol=1e-6)
        assert float(seen.entropy[i].detach()) == pytest.approx(entropy(expected), abs=1e-5)
        assert expected[2] == 0 and float(seen.p[i, 2].detach()) == float(seen.log_p[i, 2].detach()) == 0
    (gradient,) = torch.autograd.grad(seen.entropy.sum(), q)
    assert torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0
    empty = torch.zeros_like(columns)
    with pytest.raises(Unlearnable, match="nothing-sure"):
        predict(q, empty, TAU)


def test_very_sharp_predictions_stay_finite() -> None:
    q = normalize(drawn(11, 5, WIDTH), dim=1).requires_grad_()
    seen = predict(q, normalize(drawn(12, 6, WIDTH), dim=1), 1e-4)
    (gradient,) = torch.autograd.grad(seen.entropy.sum() + seen.log_p.logsumexp(0).sum(), q)
    assert torch.isfinite(gradient).all() and torch.isfinite(seen.entropy).all()


@pytest.mark.parametrize(("share", "rows"), [(0.4, 20), (0.4, 17), (0.5, 15), (0.4, 2), (0.5, 1)])
def test_exactly_the_lowest_are_kept(share: float, rows: int) -> None:
    values = drawn(rows, rows).abs()
    kept, threshold = lowest(values, share)
    ranked = sorted(values.tolist())
    count = math.floor(share * rows)
    assert int(kept.sum()) == count and sorted(values[kept].tolist()) == ranked[:count]
    assert float(threshold) == ranked[count]


def test_ties_are_kept_in_row_order() -> None:
    kept, threshold = lowest(torch.tensor([2.0, 1.0, 2.0, 0.0, 2.0, 2.0, 3.0, 2.0, 2.0, 9.0]), 0.4)
    assert kept.tolist() == [True, True, True, True, False, False, False, False, False, False]
    assert float(threshold) == 2.0
    kept, _ = lowest(torch.ones(10, requires_grad=True), 0.5)
    assert kept.tolist() == [True] * 5 + [False] * 5


# --- the methods against the oracle -------------------------------------------------------------------------


@pytest.mark.parametrize("maker", [Tent, Eata, Read, Deyo, Shot])
@pytest.mark.parametrize("columns", COLUMNS)
def test_losses_equal_slow_loops_along_a_stream(maker: type[Peer], columns: str) -> None:
    full, running = columns == "full", None
    # Over a whole small gallery broad predictions all look alike, and EATA would drop every row.
    tau = 0.02 if maker is Eata and full else TAU
    method, filtered = made(maker, columns=columns, temperature=tau), 0
    for seed in range(3):
        x = inputs(ROWS, seed)
        expected = oracle(method, x, full, tau=tau, running=running)
        step, _ = method.update(batch(x))
        assert step.updated and step.backwards == 1
        assert step.losses == pytest.approx(expected.losses(expected.start), abs=2e-5)
        assert step.diagnostics["kept_share"] == pytest.approx(len(expected.kept) / ROWS)
        h = [entropy(row) for row in expected.predicted(expected.start)]
        assert step.diagnostics["entropy"] == pytest.approx(mean(h), abs=1e-5)
        running = expected.running
        filtered += len(expected.kept) not in (ROWS, int(0.4 * ROWS), int(0.5 * ROWS))
    # EATA's and DeYO's second filters would be untested if they never took a row away.
    assert filtered > 0 or maker not in (Eata, Deyo)


@pytest.mark.parametrize("maker", [Tent, Eata, Read, Deyo, Shot])
@pytest.mark.parametrize("columns", COLUMNS)
def test_gradients_equal_finite_differences(maker: type[Peer], columns: str) -> None:
    method, x = made(maker, columns=columns), inputs(ROWS, 4)
    expected = oracle(method, x, columns == "full")
    to_weight, to_bias = expected.gradient(x, *norms(method))
    step, _ = method.update(batch(x))
    moments = method.snapshot()[0]
    np.testing.assert_allclose(10 * moments["moment1/norm.weight"], to_weight, atol=1e-4)
    np.testing.assert_allclose(10 * moments["moment1/norm.bias"], to_bias, atol=1e-4)
    assert np.abs(to_weight).max() > 1e-2
    assert maker is not Shot or "pseudo" in step.losses


@pytest.mark.parametrize("columns", COLUMNS)
def test_sar_descends_with_the_gradient_at_the_worst_point(columns: str) -> None:
    method, x = made(Sar, columns=columns), inputs(ROWS, 4)
    expected = oracle(method, x, columns == "full")
    weight, bias = norms(method)
    ascent = expected.gradient(x, weight, bias)
    length = math.sqrt(sum(float((part**2).sum()) for part in ascent))
    worst = weight + 0.05 * ascent[0] / length, bias + 0.05 * ascent[1] / length
    h = [entropy(row) for row in expected.predicted(encoded(x, *worst))]
    survivors = [i for i in expected.kept if h[i] < expected.threshold]
    assert 0 < len(survivors) < len(expected.kept)  # else the second filter is not tested
    plain = expected.gradient(x, weight, bias)
    expected.kept = survivors
    descent = expected.gradient(x, *worst)
    assert np.abs(descent[0] - plain[0]).max() > 1e-2  # and neither is the perturbation

    before = theta(method)
    stage = Stage()
    step, _ = method.update(stage.batch(x))
    moments = method.snapshot()[0]
    np.testing.assert_allclose(10 * moments["moment1/norm.weight"], descent[0], atol=1e-4)
    np.testing.assert_allclose(10 * moments["moment1/norm.bias"], descent[1], atol=1e-4)
    assert step.losses["entropy"] == pytest.approx(mean([h[i] for i in survivors]), abs=1e-5)
    assert step.diagnostics["kept_share"] == pytest.approx(len(survivors) / ROWS) and step.backwards == 2
    # Adam's first step is rate * sign(g): it started from theta, not from the perturbed point.
    moved = (before["norm.weight"] - theta(method)["norm.weight"]).numpy()
    np.testing.assert_allclose(moved, 3e-3 * np.sign(descent[0]), atol=1e-5)
    assert stage.encodes[0] is method.parameters() and stage.encodes[1] is not method.parameters()
    assert torch.equal(stage.encodes[1]["unused.weight"], before["unused.weight"])


def test_sar_recovers_to_the_source_when_its_loss_stays_low() -> None:
    method = made(Sar)
    running: float | None = None
    for seed in range(3):
        step, _ = method.update(batch(inputs(ROWS, seed)))
        loss = step.losses["entropy"]
        running = loss if running is None else 0.9 * running + 0.1 * loss
        assert method.snapshot()[1]["loss"] == pytest.approx(running)
        assert running > 0.2 and step.resets == 0 and step.diagnostics["source_distance"] > 0
    sure = made(Sar, temperature=0.01)
    step, _ = sure.update(batch(inputs(ROWS, 0)))
    tensors, meta = sure.snapshot()
    assert step.losses["entropy"] < 0.2 and (
        step.updated,
        step.resets,
        step.diagnostics["source_distance"],
    ) == (True, 1, 0)
    assert all(torch.equal(value, TOY.adaptable()[name]) for name, value in theta(sure).items())
    assert not tensors["adam_steps"].any() and not any("moment" in name for name in tensors)
    assert (meta["loss"], meta["version"], meta["resets"]) == (None, 1, 1)


def test_deyo_without_pictures_filters_nothing_and_with_unmoved_ones_everything() -> None:
    x = inputs(ROWS, 1)
    method = made(Deyo)
    expected = oracle(method, x, False, with_shuffle=False)
    step, _ = method.update(batch(x, shuffle=None))
    assert step.diagnostics["kept_share"] == 0.5 and step.losses == pytest.approx(
        expected.losses(expected.start), abs=2e-5
    )
    before = state(method)
    step, _ = method.update(batch(x, shuffle=lambda x: x))  # PLPD is 0 everywhere
    assert (step.updated, step.reason) == (False, "nothing-sure") and state(method) == before


@pytest.mark.parametrize("columns", COLUMNS)
def test_eata_learns_once_from_one_repeated_query(columns: str) -> None:
    x = inputs(1, 1).expand(ROWS, INPUTS).clone()
    method = made(Eata, columns=columns)
    step, _ = method.update(batch(x))
    assert step.updated and step.diagnostics["kept_share"] == 0.4
    before = state(method)
    step, _ = method.update(batch(x))
    assert (step.updated, step.reason) == (False, "nothing-sure") and state(method) == before


def test_eata_starts_anew_when_the_gallery_changes_its_size() -> None:
    method = made(Eata, columns="full")
    method.update(batch(inputs(ROWS, 0)))
    view = batch(inputs(ROWS, 0))
    smaller = ToyPass(view.mask, view.source, view.encode, view.neighbours, gallery=lambda: GALLERY[:30])
    step, _ = method.update(smaller)
    assert (
        step.updated and step.diagnostics["kept_share"] == 0.4 and method.snapshot()[0]["mean"].shape == (30,)
    )


# --- what every peer promises -------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", METHODS)
@pytest.mark.parametrize("steps", [1, 3])
def test_forwards_and_backwards_are_what_the_report_says(maker: type[Peer], steps: int) -> None:
    method, stage = made(maker, steps=steps), Stage()
    leaves = method.parameters()
    with torch.no_grad():
        step, _ = method.update(stage.batch(inputs(32, 1)))
    passes = 2 if maker is Sar else 1
    assert step.updated and step.backwards == len(stage.encodes) == passes * steps
    assert [params is leaves for params in stage.encodes] == (
        [True, False] if maker is Sar else [True]
    ) * steps
    assert stage.shuffles == (steps if maker is Deyo else 0)
    assert (
        method.version == 1
        and step.diagnostics["source_distance"] > 0
        and method.name == maker.__name__.lower()
    )


@pytest.mark.parametrize("maker", METHODS)
def test_only_norm_tensors_move(maker: type[Peer]) -> None:
    method = made(maker, weight_decay=0.1)
    frozen = {name: value.clone() for name, value in TOY.state_dict().items()}
    items = GALLERY.clone()
    for seed in range(3):
        view = batch(inputs(32, seed))
        method.update(view)
        assert view.source.grad is None and not view.source.requires_grad
    assert all(torch.equal(value, TOY.state_dict()[name]) for name, value in frozen.items())
    assert torch.equal(items, GALLERY) and GALLERY.grad is None and not GALLERY.requires_grad
    for name, value in theta(method).items():
        assert torch.equal(value, TOY.adaptable()[name]) == name.startswith("unused")


@pytest.mark.parametrize("maker", METHODS)
@pytest.mark.parametrize("rows", [0, 1, 3, 15])
def test_below_the_floor_nothing_is_learned(maker: type[Peer], rows: int) -> None:
    method, stage = made(maker), Stage()
    method.update(batch(inputs(32, 0)))
    before = state(method)
    step, features = method.update(stage.batch(inputs(16, 1), torch.arange(16) < rows))
    assert (step.updated, step.reason, features) == (False, "too-small", None)
    assert state(method) == before and stage.encodes == []


@pytest.mark.parametrize("maker", METHODS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_padding_and_order_do_not_matter(maker: type[Peer], columns: str) -> None:
    plain, padded, permuted = (made(maker, columns=columns, temperature=0.03) for _ in range(3))
    mask, order = torch.arange(32) < 24, torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for seed in range(2):
        x = inputs(24, seed)
        a, _ = plain.update(batch(x))
        b, _ = padded.update(batch(torch.cat((x, 100 * drawn(9, 8, INPUTS))), mask))
        c, _ = permuted.update(batch(x[order]))
        for step in (b, c):
            assert step.updated and step.losses == pytest.approx(a.losses, abs=1e-5)
            assert step.diagnostics["kept_share"] == a.diagnostics["kept_share"]
    for other in (padded, permuted):
        for name, value in theta(plain).items():
            torch.testing.assert_close(theta(other)[name], value, atol=1e-4, rtol=0)


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
    (lambda q: q * 3e38, "non-finite-loss"),
    (lambda q: _BrokenBackward.apply(q), "non-finite-gradient"),
]


@pytest.mark.parametrize("maker", METHODS)
@pytest.mark.parametrize(("change", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_broken_batches_leave_the_state_alone(
    maker: type[Peer], change: Callable[[Tensor], Tensor], reason: str
) -> None:
    method = made(maker)
    for learned in range(2):  # with and without moments
        before = state(method)
        step, features = method.update(batch(inputs(32, learned), change=change))
        assert (step.updated, step.reason, step.rolled_back, features) == (False, reason, False, None)
        assert state(method) == before and method.version == learned
        assert method.update(batch(inputs(32, learned)))[0].updated


@pytest.mark.parametrize("maker", METHODS)
@pytest.mark.parametrize("error", [None, MemoryError])
def test_a_failure_at_a_later_forward_undoes_the_batch(
    maker: type[Peer], error: type[Exception] | None
) -> None:
    method, calls = made(maker, steps=3), 0
    method.update(batch(inputs(32, 0)))
    before = state(method)

    def change(q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3 and error is not None:
            raise error
        return one_nan(q) if calls == 3 else q

    view = batch(inputs(32, 1), change=change)
    if error is not None:
        with pytest.raises(error):
            method.update(view)
    else:
        step, _ = method.update(view)
        assert (step.updated, step.reason, step.rolled_back) == (False, "non-finite-features", True)
    assert state(method) == before


def test_nan_only_where_sar_or_deyo_look_a_second_time() -> None:
    sar, deyo, calls = made(Sar), made(Deyo), 0

    def change(q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return one_nan(q) if calls == 2 else q

    views = [batch(inputs(32, 1), change=change), batch(inputs(32, 1), shuffle=lambda x: x * math.nan)]
    for method, view in zip((sar, deyo), views, strict=True):
        before = state(method)
        step, _ = method.update(view)
        assert (step.updated, step.reason) == (False, "non-finite-features") and state(method) == before


@pytest.mark.parametrize("maker", METHODS)
def test_parameters_that_overflow_are_rolled_back(maker: type[Peer]) -> None:
    method = made(maker, learning_rate=1.0, weight_decay=1e39)
    before = state(method)
    step, _ = method.update(batch(inputs(32, 0)))
    assert (step.updated, step.reason, step.rolled_back) == (False, "rolled-back", True)
    assert state(method) == before


@pytest.mark.parametrize("maker", [Eata, Sar, Deyo])
def test_a_filter_that_keeps_no_row_changes_nothing(maker: type[Peer]) -> None:
    method = made(maker, floor=1)
    before = state(method)
    step, _ = method.update(batch(inputs(1, 0)))  # int(share * 1) = 0
    assert (step.updated, step.reason) == (False, "nothing-sure") and state(method) == before


@pytest.mark.parametrize("maker", METHODS)
def test_emission_modes(maker: type[Peer]) -> None:
    x = inputs(32, 1)
    view = batch(x)
    assert not made(maker).learns_first and made(maker, answer_from="paper").learns_first
    assert (
        made(maker, answer_from="after").learns_first
        and made(maker, answer_from="after").update(view)[1] is None
    )
    _, once = made(maker, answer_from="paper").update(batch(x))
    assert once is not None and not once.requires_grad and torch.equal(once, view.source)
    _, thrice = made(maker, answer_from="paper", steps=3).update(batch(x))
    two = made(maker, steps=2)
    two.update(batch(x))
    assert thrice is not None and torch.equal(thrice, view.encode(two.parameters()))
    assert not torch.equal(thrice, view.source)
    assert two.transform(thrice, view) is thrice


@pytest.mark.parametrize("maker", METHODS)
@pytest.mark.parametrize("values", [{"anchor": 0.99}, {"columns": "full", "preset": "tcr-paper"}])
@pytest.mark.parametrize("learned", [0, 3])
def test_a_restored_lane_continues_byte_identically(
    maker: type[Peer], values: dict[str, Any], learned: int
) -> None:
    method = made(maker, **values)
    for seed in range(learned):
        method.update(batch(inputs(32, seed)))
    tensors, meta = method.snapshot()
    saved = json.loads(json.dumps(meta))
    fresh, used = made(maker, **values), made(maker, **values)
    used.update(batch(inputs(32, 60)))
    for other in (fresh, used):
        other.restore(tensors, saved)
        assert state(other) == state(method)
    kept = {name: array.copy() for name, array in tensors.items()}
    for seed in range(20, 23):
        for each in (method, fresh, used):
            each.update(batch(inputs(32, seed)))
        assert state(method) == state(fresh) == state(used)
    assert all(np.array_equal(kept[name], array) for name, array in tensors.items())  # copies, not views


@pytest.mark.parametrize("maker", METHODS)
def test_what_cannot_work_is_refused(maker: type[Peer]) -> None:
    with pytest.raises(ConfigError, match="adaptable"):
        maker({}, CONSTANTS, AdaptConfig())
    other = Tent if maker is not Tent else Read
    with pytest.raises(ArtifactError, match=f"'{maker.name}'"):
        made(maker).restore(*made(other).snapshot())


def test_identical_queries_stay_finite() -> None:
    x = inputs(1, 1).expand(32, INPUTS).clone()
    for maker in METHODS:
        for columns in COLUMNS:
            method = made(maker, columns=columns, steps=3)
            method.update(batch(x))
            assert all(torch.isfinite(value).all() for value in theta(method).values())
