"""A small real encoder with a gallery, batches of it, and loops over floats: for tests of peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.peer import Peer
from core.artifacts import tensors_hash
from core.config import AdaptConfig
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

INPUTS, WIDTH, ITEMS, PLACES = 12, 8, 40, 10
ROWS, TAU = 20, 0.1
Array = NDArray[np.float64]
Row = Sequence[float]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Toy(nn.Module):
    """x [B, 12] -> LayerNorm -> projection -> unit [B, 8]; a second norm is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(INPUTS), nn.Linear(INPUTS, WIDTH, bias=False)
        self.unused = nn.LayerNorm(3)
        with torch.no_grad():
            self.norm.weight.copy_(1 + 0.1 * drawn(1, INPUTS))
            self.norm.bias.copy_(0.1 * drawn(2, INPUTS))
            self.proj.weight.copy_(drawn(3, WIDTH, INPUTS) / math.sqrt(INPUTS))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = normalize(self.proj(self.norm(x)), dim=1)
        return q

    def adaptable(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.named_parameters() if "proj" not in name}


TOY = Toy()
SCENES = drawn(4, ITEMS, INPUTS)
GALLERY = TOY(SCENES)
SHIFT = 0.8 * drawn(5, INPUTS)
CONSTANTS = SourceConstants(0.15, 1.6, temperature=TAU, learning_rate=3e-3, batch=32)
COLUMNS = ["shortlist", "full"]


def inputs(rows: int, seed: int) -> Tensor:
    """Noisy scenes under a shift that changes with the seed."""
    picked = torch.randint(ITEMS, (rows,), generator=torch.Generator().manual_seed(seed))
    return SCENES[picked] + 0.3 * drawn(seed + 50, rows, INPUTS) + SHIFT * (1 + 0.3 * (seed % 3))


def shuffled(x: Tensor) -> Tensor:
    """Mild: some rows are predicted better than before, so that DeYO's filter has something to take away."""
    return torch.cat((x[:, :3].flip(1), x[:, 3:]), dim=1)


def found(q: Tensor) -> Tensor:
    """The shortlist [B, K, D]: a row whose best cosine is low has three empty places."""
    cosine = q.detach() @ GALLERY.T
    best = cosine.topk(PLACES, dim=1)
    items: Tensor = GALLERY[best.indices.sort(dim=1).values].clone()
    items[best.values[:, 0] < 0.95, -3:] = 0
    return items


@dataclass
class Stage:
    """Makes batches as the pipeline does, and counts what was asked of it."""

    encodes: list[Params] = field(default_factory=list)
    shuffles: int = 0

    def batch(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        change: Callable[[Tensor], Tensor] = lambda q: q,
        shuffle: Callable[[Tensor], Tensor] | None = shuffled,
        near: Callable[[Tensor], Tensor] | None = None,
    ) -> ToyPass:
        def encode(params: Params) -> Tensor:
            self.encodes.append(params)
            return change(functional_call(TOY, dict(params), (x,)))

        def scrambled(params: Params) -> Tensor:
            assert shuffle is not None and not torch.is_grad_enabled()
            self.shuffles += 1
            q: Tensor = functional_call(TOY, dict(params), (shuffle(x),))
            return q

        def nearest(q: Tensor) -> Tensor:
            assert not q.requires_grad
            if near is not None:
                return near(q)
            items: Tensor = GALLERY[(q @ GALLERY.T).topk(4, dim=1).indices]
            return items

        def shortlist(q: Tensor) -> Tensor:
            assert not q.requires_grad
            return found(q)

        real = torch.ones(len(x), dtype=torch.bool) if mask is None else mask
        return ToyPass(
            real,
            TOY(x),
            encode,
            nearest,
            shortlist,
            lambda: GALLERY,
            scrambled if shuffle is not None else lambda _: None,
        )


def batch(x: Tensor, mask: Tensor | None = None, **values: Any) -> ToyPass:
    return Stage().batch(x, mask, **values)


def made(maker: type[Peer], floor: int = 16, known: SourceConstants = CONSTANTS, **values: Any) -> Peer:
    config = AdaptConfig.model_validate({"anchor": 1.0, "clip": 1e9} | values)
    return maker(TOY.adaptable(), known, config, floor)


def state(method: Peer) -> str:
    return tensors_hash(*method.snapshot())


def theta(method: Peer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method.parameters().items()}


def norms(method: Peer) -> tuple[Array, Array]:
    held = theta(method)
    return held["norm.weight"].double().numpy(), held["norm.bias"].double().numpy()


# --- loops over floats


def encoded(x: Tensor, weight: Array, bias: Array) -> Array:
    rows = x.double().numpy()
    hat = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    h = (hat * weight + bias) @ TOY.proj.weight.double().numpy().T
    out: Array = h / np.linalg.norm(h, axis=1, keepdims=True)
    return out


def softmax(query: Row, columns: Sequence[Row], tau: float) -> list[float]:
    """0 at columns that are all zero."""
    logits = [sum(a * b for a, b in zip(query, c, strict=True)) / tau for c in columns]
    real = [any(value != 0 for value in column) for column in columns]
    top = max(value for value, there in zip(logits, real, strict=True) if there)
    powers = [math.exp(value - top) if there else 0.0 for value, there in zip(logits, real, strict=True)]
    return [value / math.fsum(powers) for value in powers]


def entropy(p: Row) -> float:
    return -math.fsum(value * math.log(value) for value in p if value > 0)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def cosine(a: Row, b: Row) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b)))


def slopes(
    loss: Callable[[Array], float], x: Tensor, weight: Array, bias: Array, step: float = 1e-5
) -> tuple[Array, Array]:
    """Central differences of a loss of features [R, D] by LayerNorm weight and bias."""
    out = np.zeros((2, INPUTS))
    for which in range(2):
        for k in range(INPUTS):
            sides = []
            for sign in (1, -1):
                moved = [weight.copy(), bias.copy()]
                moved[which][k] += sign * step
                sides.append(loss(encoded(x, *moved)))
            out[which, k] = (sides[0] - sides[1]) / (2 * step)
    return out[0], out[1]
