"""Centring: forward-only correction of a shift that all queries of a stream share.

Plain centring moves the running mean of the queries to the source mean; it mistakes a change of the class mix
for a shift. Residual centring moves the running mean of q - g'(q), the query minus a soft mean of its
gallery neighbours, to its clean value: content is in both and cancels.

Plain centring is common practice, residual centring is ours; docs/methods/centring.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
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

FORGETTING, PER_ROWS, PRIOR = 0.9, 64, 64.0  # per 64 queries; the prior counts as 64 queries at the source
NEIGHBOURS, TEMPERATURE, ROUNDS = 5, 0.05, 2

Running = tuple[Tensor, float]
"""A mean [D] and the number of queries it counts as."""


def fold(running: Running, rows: Tensor) -> Running:
    """A forgetting mean with rows [n, D] taken in: .9 per 64 queries, whatever the batches were."""
    mean, total = running
    decayed = FORGETTING ** (len(rows) / PER_ROWS) * total
    new_total = decayed + len(rows)
    return mean * (decayed / new_total) + rows.sum(0) / new_total, new_total


class Centring:
    """Emits normalize(q - m + mean), m the running mean of the stream's queries, this batch included.

    Args:
        mean: mean [D] of clean source queries.
        floor: smaller batches are corrected by what is known already and are not learned from.
    """

    name = "centring"
    learns_first = False

    def __init__(self, mean: Tensor, floor: int = 16) -> None:
        if mean.ndim != 1:
            raise ConfigError(f"expected the mean [D] of clean queries, got shape {tuple(mean.shape)}")
        self._clean: Tensor = mean.detach().float().clone()
        self._running: Running = (self._clean.clone(), PRIOR)
        self._floor, self._version = floor, 0

    @property
    def version(self) -> int:
        return self._version

    def parameters(self) -> Params:
        """None of its own: the encoder's are used."""
        return {}

    @torch.no_grad()
    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        rows = _usable(features, batch)
        mean = self._running[0] if len(rows) < self._floor else fold(self._running, rows)[0]
        return normalize(features - (mean - self._clean), dim=1)

    @torch.no_grad()
    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        if int(batch.mask.sum()) < self._floor:
            return AdaptationStep(False, "too-small"), None
        features = batch.encode(self.parameters())
        step = self.take_in(features[batch.mask])
        return step, features if step.updated else None

    @torch.no_grad()
    def take_in(self, rows: Tensor) -> AdaptationStep:
        """Learns from features [n, D] of real rows, however they were made."""
        if not bool(torch.isfinite(rows).all()):
            return AdaptationStep(False, "non-finite-features")
        self._running = fold(self._running, rows.float())
        self._version += 1
        return _learned(_distance(self._running, self._clean))

    def snapshot(self) -> State:
        tensors = {"mean": self._running[0].cpu().numpy().copy()}
        return tensors, {"method": self.name, "version": self._version, "total": self._running[1]}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method."""
        check_method(meta, self.name)
        self._running = (_tensor(tensors["mean"], self._clean.device), float(meta["total"]))
        self._version = int(meta["version"])


class ResidualCentring:
    """Emits normalize(q - s), s = running mean of the residual q - g'(q) minus its clean value.

    The neighbours are those of the corrected query, so s is found by a few fixed-point rounds. The clean
    value is measured once, against the gallery in use at the first batch, and then belongs to the state.

    Args:
        reference: clean source queries [n, D] as the frozen encoder sees them.
        floor: smaller batches are corrected by what is known already and are not learned from.
    """

    name = "residual_centring"
    learns_first = False

    def __init__(self, reference: Tensor, floor: int = 16) -> None:
        if reference.ndim != 2 or len(reference) == 0:
            raise ConfigError(
                f"expected clean source queries [n, D], got shape {tuple(reference.shape)}: "
                "their mean is not enough, pass the features"
            )
        self._reference = reference.detach().float().clone()
        self._clean: Tensor | None = None
        self._running: Running | None = None
        self._floor, self._version = floor, 0

    @property
    def version(self) -> int:
        return self._version

    def parameters(self) -> Params:
        """None of its own: the encoder's are used."""
        return {}

    @torch.no_grad()
    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        clean, running = self._state(batch)
        rows = _usable(features, batch)
        if len(rows) >= self._floor:
            running = self._fixed_point(rows, batch, clean, running)
        return normalize(features - (running[0] - clean), dim=1)

    @torch.no_grad()
    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        if int(batch.mask.sum()) < self._floor:
            return AdaptationStep(False, "too-small"), None
        features = batch.encode(self.parameters())
        if not bool(torch.isfinite(features[batch.mask]).all()):
            return AdaptationStep(False, "non-finite-features"), None
        clean, running = self._state(batch)
        self._clean = clean
        self._running = self._fixed_point(features[batch.mask].float(), batch, clean, running)
        self._version += 1
        return _learned(_distance(self._running, clean)), features

    def _fixed_point(self, rows: Tensor, batch: Pass, clean: Tensor, before: Running) -> Running:
        running = before
        for _ in range(ROUNDS):
            corrected = normalize(rows - (running[0] - clean), dim=1)
            running = fold(before, rows - soft_neighbour(corrected, batch.neighbours(corrected)))
        return running

    def _state(self, batch: Pass) -> tuple[Tensor, Running]:
        """The clean value and the running mean; before the first update the latter is the prior."""
        if self._clean is not None and self._running is not None:
            return self._clean, self._running
        found = self._reference - soft_neighbour(self._reference, batch.neighbours(self._reference))
        clean = found.mean(0)
        return clean, (clean, PRIOR)

    def snapshot(self) -> State:
        meta: dict[str, Any] = {"method": self.name, "version": self._version}
        if self._clean is None or self._running is None:
            return {}, meta
        tensors = {"clean": self._clean.cpu().numpy().copy(), "mean": self._running[0].cpu().numpy().copy()}
        return tensors, meta | {"total": self._running[1]}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method."""
        check_method(meta, self.name)
        self._version, self._clean, self._running = int(meta["version"]), None, None
        if "clean" in tensors:
            device = self._reference.device
            self._clean = _tensor(tensors["clean"], device)
            self._running = (_tensor(tensors["mean"], device), float(meta["total"]))


def soft_neighbour(q: Tensor, near: Tensor) -> Tensor:
    """Softmax-weighted mean [B, D] of the first few of the neighbours [B, K, D]; not re-normalised."""
    near = near[:, :NEIGHBOURS]
    weights = (torch.einsum("bd,bkd->bk", q, near) / TEMPERATURE).softmax(1)
    return torch.einsum("bk,bkd->bd", weights, near)


def _learned(distance: float) -> AdaptationStep:
    return AdaptationStep(True, diagnostics={"source_distance": distance})


def _usable(features: Tensor, batch: Pass) -> Tensor:
    """Real and finite rows: a broken query must not reach its batch mates through the mean."""
    return features[batch.mask & torch.isfinite(features).all(1)].float()


def _distance(running: Running, clean: Tensor) -> float:
    return float((running[0] - clean).norm())


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)
