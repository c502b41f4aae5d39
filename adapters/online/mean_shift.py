"""What NEO and FOA's shifting have in common: one vector for all queries, found from a running mean of them.

Forward only. Each method is how the mean runs and where it is moved to; docs/methods/peers-2024.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from adapters.online.gradient import State, check_method
from core.protocols import Pass
from core.types import AdaptationStep

if TYPE_CHECKING:
    from core.protocols import Params

TINY = 1e-6  # of a length: shorter differences of unit vectors are rounding noise

Running = tuple[Tensor, int]
"""A mean [D] and how many queries it has seen."""


class MeanShift(ABC):
    """One lane that emits normalize(q + offset); rows of which nothing would be left stay as they are.

    Args:
        floor: smaller batches are moved by what is known already and are not learned from.
    """

    name: str
    learns_first = False

    def __init__(self, floor: int = 16) -> None:
        self._running: Running | None = None
        self._floor, self._version = floor, 0

    @property
    def version(self) -> int:
        return self._version

    def parameters(self) -> Params:
        """None of its own: the encoder's are used."""
        return {}

    @abstractmethod
    def _fold(self, running: Running | None, rows: Tensor) -> Running:
        """The mean with rows [n, D] taken in; None is the mean of nothing."""

    @abstractmethod
    def _offset(self, rows: Tensor) -> Tensor | None:
        """What is added to each query [D] of a batch with usable rows [n, D]; None moves nothing."""

    @torch.no_grad()
    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        # A broken query must not reach its batch mates through the mean.
        offset = self._offset(features[batch.mask & torch.isfinite(features).all(1)].float())
        if offset is None:
            return features
        moved = features + offset.to(features)
        return torch.where(moved.norm(dim=1, keepdim=True) > TINY, normalize(moved, dim=1), features)

    @torch.no_grad()
    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        if int(batch.mask.sum()) < self._floor:
            return AdaptationStep(False, "too-small"), None
        features = batch.encode(self.parameters())
        rows = features[batch.mask].float()
        if not bool(torch.isfinite(rows).all()):
            return AdaptationStep(False, "non-finite-features"), None
        self._running = self._fold(self._running, rows)
        self._version += 1
        return AdaptationStep(True, diagnostics=self._report(self._running[0])), features

    def _report(self, mean: Tensor) -> dict[str, float]:
        return {"mean_length": float(mean.norm())}

    def snapshot(self) -> State:
        tensors: dict[str, NDArray[Any]] = {}
        seen = 0
        if self._running is not None:
            mean, seen = self._running
            tensors["mean"] = mean.cpu().numpy().copy()
        return tensors, {"method": self.name, "version": self._version, "seen": seen}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method."""
        check_method(meta, self.name)
        self._version, self._running = int(meta["version"]), None
        if "mean" in tensors:
            mean = torch.from_numpy(np.array(tensors["mean"], dtype=np.float32))
            self._running = mean, int(meta["seen"])
