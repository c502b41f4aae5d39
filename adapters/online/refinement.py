"""Neighbour refinement: a query is pulled towards a soft mean of its nearest gallery items.

No state and no parameters. It gains by category rather than by instance: what many neighbours share is
strengthened, what tells one item from another is not.

Query expansion of this kind is common practice in retrieval, the settings are ours;
docs/methods/refinement.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from adapters.online.gradient import State, check_method
from core.errors import ConfigError
from core.protocols import Pass
from core.types import AdaptationStep

if TYPE_CHECKING:
    from core.protocols import Params


class Refinement:
    """Emits normalize(q + a sum_k w_k z_k), w = softmax(q . z / tau) over the k nearest items z.

    Args:
        strength: a.
        temperature: tau.
        neighbours: k; the batch offers 16 at most, fewer in a small gallery.

    Raises:
        ConfigError: a setting out of range.
    """

    name = "refinement"
    version = 0
    learns_first = False

    def __init__(self, strength: float = 0.3, temperature: float = 0.05, neighbours: int = 10) -> None:
        if not (0 <= strength < math.inf and 0 < temperature < math.inf and neighbours >= 1):
            raise ConfigError(
                "expected a strength from 0, a temperature above 0 and at least 1 neighbour, "
                f"got {strength}, {temperature} and {neighbours}"
            )
        self._strength, self._temperature, self._neighbours = strength, temperature, neighbours

    def parameters(self) -> Params:
        """None of its own: the encoder's are used."""
        return {}

    @torch.no_grad()
    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        near = batch.neighbours(features)[:, : self._neighbours]
        return normalize(features + self._strength * soft_mean(features, near, self._temperature), dim=1)

    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        return AdaptationStep(False, "nothing-to-learn"), None

    def snapshot(self) -> State:
        return {}, {"method": self.name}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method."""
        check_method(meta, self.name)


def soft_mean(q: Tensor, near: Tensor, tau: float) -> Tensor:
    """Softmax-weighted mean [B, D] of the items [B, K, D], not re-normalised.

    Zero rows of `near` are places that no item fills: they get no weight, and a query with no other gets 0.
    """
    absent = (near == 0).all(2)
    logits = torch.einsum("bd,bkd->bk", q, near) / tau
    weights = logits.masked_fill(absent, -math.inf).softmax(1).masked_fill(absent, 0.0)
    return torch.einsum("bk,bkd->bd", weights, near)
