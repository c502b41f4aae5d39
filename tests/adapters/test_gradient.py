"""AdamW against torch's own and against float64, and the undoing of a batch."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters.online.decouple import Gradient
from adapters.online.gradient import Settings, Trainable
from core.config import AdaptConfig
from core.references import SourceConstants

CONSTANTS = SourceConstants(0.1, 1.0, 0.1, 3e-3)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def source() -> dict[str, Tensor]:
    return {"weight": 1 + 0.1 * drawn(1, 40), "bias": 0.1 * drawn(2, 40), "never": drawn(3, 5)}


def trainable(decay: float = 0.0, anchor: float = 1.0) -> Trainable:
    config = AdaptConfig(weight_decay=decay, anchor=anchor)
    return Trainable(source(), Settings.resolve(config, CONSTANTS))


def gradient(seed: int, scale: float = 1.0) -> Gradient:
    """Some steps have no gradient for the bias; "never" has none at all."""
    g = {"weight": scale * drawn(seed + 10, 40), "bias": scale * drawn(seed + 70, 40)}
    return {"weight": g["weight"]} if seed % 5 == 3 else g


@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_adamw_is_torchs_over_fifty_steps(decay: float, scale: float) -> None:
    ours = trainable(decay)
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in source().items()}
    adam = torch.optim.AdamW(theirs.values(), lr=3e-3, weight_decay=decay, foreach=False)
    for seed in range(50):
        g = gradient(seed, scale)
        for name, tensor in theirs.items():
            tensor.grad = g.get(name)
        adam.step()
        ours.step(g)
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours.tensors[name], tensor, atol=1e-7, rtol=0)
    assert float((ours.tensors["weight"] - source()["weight"]).abs().max().detach()) > 1e-3
    assert torch.equal(ours.tensors["never"], source()["never"]) and ours.steps == 50
    assert ours.snapshot()["adam_steps"].tolist() == [50, 40, 0]


def test_adamw_is_its_formula_in_float64() -> None:
    ours, theta = trainable(0.1), source()["weight"].double().tolist()
    first, second = [0.0] * 40, [0.0] * 40
    for count in range(1, 11):
        g = gradient(count)["weight"]
        ours.step({"weight": g})
        for i, value in enumerate(g.double().tolist()):
            first[i] = 0.9 * first[i] + 0.1 * value
            second[i] = 0.999 * second[i] + 0.001 * value**2
            m, v = first[i] / (1 - 0.9**count), second[i] / (1 - 0.999**count)
            theta[i] = theta[i] * (1 - 3e-3 * 0.1) - 3e-3 * m / (math.sqrt(v) + 1e-8)
        assert ours.tensors["weight"].tolist() == pytest.approx(theta, abs=2e-6)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.parametrize("learned", [0, 3])
def test_undo_returns_to_the_mark_to_the_last_bit(learned: int) -> None:
    weights = trainable(0.1, anchor=0.99)
    for seed in range(learned):
        weights.step(gradient(seed))
    before, leaves = weights.snapshot(), dict(weights.tensors)
    weights.mark()
    weights.undo()  # nothing since
    assert same(weights.snapshot(), before)
    for seed in range(2):
        weights.step(gradient(seed + 30))
    assert not same(weights.snapshot(), before)
    weights.undo()
    assert same(weights.snapshot(), before) and weights.steps == learned
    assert all(weights.tensors[name] is leaf for name, leaf in leaves.items())
    weights.undo()  # once is enough
    assert same(weights.snapshot(), before)


def test_a_rule_on_the_step_is_followed_before_the_anchor() -> None:
    def half(step: Gradient) -> tuple[Gradient, float]:
        return {"weight": step["weight"] / 2, "bias": step["bias"]}, 0.25

    plain, halved = trainable(), trainable(anchor=0.9)
    raw = plain.step(gradient(1))
    moved = halved.step(gradient(1), half)
    assert moved.removed_energy == 0.25 and raw.removed_energy == 0
    torch.testing.assert_close(moved.by["weight"], 0.9 * raw.by["weight"] / 2, atol=2e-7, rtol=0)
    torch.testing.assert_close(moved.by["bias"], 0.9 * raw.by["bias"], atol=2e-7, rtol=0)
    untouched = trainable()
    untouched.step(gradient(1), lambda step: (step, 0.0))
    assert all(torch.equal(untouched.tensors[name], plain.tensors[name]) for name in plain.tensors)


def test_a_rule_is_not_asked_about_a_step_that_overflowed() -> None:
    config = AdaptConfig(weight_decay=1e39, learning_rate=1.0)
    weights = Trainable(source(), Settings.resolve(config, CONSTANTS))
    before = weights.snapshot()
    weights.mark()

    def never(step: Gradient) -> tuple[Gradient, float]:
        raise AssertionError(step)

    weights.step(gradient(1), never)
    assert not weights.finite()
    weights.undo()
    assert same(weights.snapshot(), before)


def test_backward_passes_are_counted_from_the_mark() -> None:
    weights = trainable()
    for _ in range(2):
        weights.mark()
        loss = weights.tensors["weight"].square().sum()
        weights.gradient(loss, keep_graph=True)
        weights.gradient(loss)
        assert weights.backwards == 2


@pytest.mark.slow
def test_a_step_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from adapters.online.gradient import Settings, Trainable\n"
        "from core.config import AdaptConfig\n"
        "from core.references import SourceConstants\n"
        "settings = Settings.resolve(AdaptConfig(), SourceConstants(.1, 1., .1, 1e-3))\n"
        "Trainable({'w': torch.ones(3)}, settings).step({'w': torch.ones(3)})\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
