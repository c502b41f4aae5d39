"""The fused encoder by plain loops, for every way to ask the prompts, with every part having a say."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import normalize

from encoders.phase import Ask, PhaseFusion

WIDTH, HEADS, PROMPTS, PICTURES = 8, 2, 3, 4
Vector = NDArray[np.float64]


def network(ask: Ask) -> PhaseFusion:
    torch.manual_seed(0)
    text = normalize(torch.randn(PROMPTS, WIDTH), dim=1)
    net = PhaseFusion(nn.Identity(), text, WIDTH, ask=ask, temperature=0.5, heads=HEADS).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return net


def values(tensor: Any) -> NDArray[np.float64]:
    found: NDArray[np.float64] = tensor.detach().numpy()
    return found


def unit(v: Vector) -> Vector:
    scaled: Vector = v / math.sqrt(float(v @ v))
    return scaled


def soft(scores: list[float]) -> list[float]:
    top = [math.exp(score - max(scores)) for score in scores]
    return [score / sum(top) for score in top]


def attend(layer: nn.MultiheadAttention, query: Vector, tokens: list[Vector]) -> Vector:
    """One query's answer: by head, the values weighted by the fit of their keys."""
    weight, bias = values(layer.in_proj_weight), values(layer.in_proj_bias)
    part = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
    q = weight[part[0]] @ query + bias[part[0]]
    keys = [weight[part[1]] @ token + bias[part[1]] for token in tokens]
    inner = [weight[part[2]] @ token + bias[part[2]] for token in tokens]
    answer, size = np.zeros(WIDTH), WIDTH // HEADS
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        shares = soft([float(q[own] @ key[own]) / math.sqrt(size) for key in keys])
        answer[own] = sum(share * value[own] for share, value in zip(shares, inner))
    found: Vector = values(layer.out_proj.weight) @ answer + values(layer.out_proj.bias)
    return found


def normed(layer: nn.LayerNorm, v: Vector) -> Vector:
    centred = v - v.mean()
    found: Vector = centred / math.sqrt(float((centred**2).mean()) + layer.eps)
    found = found * values(layer.weight) + values(layer.bias)
    return found


def slow(net: PhaseFusion, raw: Vector, phase: Vector) -> Vector:
    """I' of one picture, from its tower feature and the output of the phase encoder."""
    length = math.sqrt(WIDTH)
    tokens = [unit(raw) * length, float(net.gate.detach()) * unit(phase) * length]
    z = [normed(net.norm, token + attend(net.among, token, tokens)) for token in tokens]
    mean: Vector = (z[0] + z[1]) / 2
    if net.asking is None or net.last is None:
        return unit(mean)
    text = values(net.text)
    prompts = [row * length for row in text]
    fit = [float(unit(raw) @ row) / net.temperature for row in text]
    if net.ask == "image_query":
        return unit(normed(net.last, mean + attend(net.asking, mean, prompts)))
    if net.ask == "best_class":
        best = prompts[max(range(PROMPTS), key=lambda c: fit[c])]
        return unit(normed(net.last, best + mean + attend(net.asking, best, z)))
    for share, prompt in zip(soft(fit), prompts):
        mean = mean + share * attend(net.asking, prompt, z)
    return unit(normed(net.last, mean))


@pytest.mark.parametrize("ask", ["none", "class_queries", "image_query", "best_class"])
def test_fusion_equals_loops(ask: Ask) -> None:
    net = network(ask)
    draw = torch.Generator().manual_seed(1)
    raw = torch.randn(PICTURES, WIDTH, generator=draw, dtype=torch.float64)
    phases = torch.randn(PICTURES, 1, 12, 10, generator=draw, dtype=torch.float64)
    assert net.phase is not None
    with torch.no_grad():
        found, encoded = values(net.fuse(raw, phases)), values(net.phase(phases))
    expected = [slow(net, v, p) for v, p in zip(values(raw), encoded)]
    assert found == pytest.approx(np.stack(expected), abs=1e-10)


def test_phases_of_other_pictures_change_the_answer() -> None:
    net = network("class_queries")
    raw, phases = torch.randn(2, WIDTH, dtype=torch.float64), torch.randn(2, 1, 12, 10, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(net.fuse(raw, phases), net.fuse(raw, phases.flip(0)), atol=1e-3)


@pytest.mark.parametrize("gate", [0.0, 1e-3, 1e-2])
def test_a_small_gate_in_front_of_the_layer_norm_is_an_open_one(gate: float) -> None:
    """The token's deviation behind it is gate / sqrt(gate^2 + eps): .30 at a gate of .001, .95 at .01."""
    layer = nn.LayerNorm(256).double()
    draw = torch.Generator().manual_seed(2)
    token = torch.randn(256, generator=draw, dtype=torch.float64)
    token = (token - token.mean()) / token.std(correction=0)
    with torch.no_grad():
        behind = float(layer(gate * token).std(correction=0))
    assert behind == pytest.approx(gate / math.sqrt(gate**2 + 1e-5), abs=1e-9)
