"""Centring of what is transformed, under any method: alignment for towers that call no hook.

Where there are no batch statistics to align, what a shift does to all queries alike is taken off the
features. The inner method learns from its own, raw features: centring inside the loss was unstable. Only what
leaves is centred. docs/methods/centring.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.centring import Centring
from adapters.online.gradient import State, check_method
from adapters.online.wrapped import Wrapped
from core.artifacts import part
from core.protocols import Adapter, Pass
from core.types import AdaptationStep

if TYPE_CHECKING:
    pass


class Centred(Wrapped):
    """A method whose transformed features are centred on the clean mean; one lane.

    Args:
        inner: the method; its own `transform` is not used.
        mean: mean [D] of clean source queries.
        floor: smaller batches are corrected by what is known already and are not learned from.
    """

    def __init__(self, inner: Adapter, mean: Tensor, floor: int = 16) -> None:
        super().__init__(inner)
        self._centring = Centring(mean, floor)

    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        return self._centring.transform(features, batch)

    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        """The inner update; the running mean takes in the features that the inner method learned from.

        A batch that the inner method refuses is not taken in either: state and version move together.
        """
        step, features = self._inner.update(batch)
        if step.updated:
            with torch.no_grad():
                learned = batch.encode(self.parameters()) if features is None else features
            self._centring.take_in(learned[batch.mask])
        return step, features

    def snapshot(self) -> State:
        tensors, meta = self._inner.snapshot()
        held, known = self._centring.snapshot()
        found = {f"inner/{name}": array for name, array in tensors.items()}
        found |= {f"centring/{name}": array for name, array in held.items()}
        return found, {"method": "centred", "inner": meta, "centring": known}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method."""
        check_method(meta, "centred")
        self._inner.restore(part(tensors, "inner/"), meta["inner"])
        self._centring.restore(part(tensors, "centring/"), meta["centring"])
