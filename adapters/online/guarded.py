"""Guards around any method with gradients: periodic reset, reset on a low loss, stochastic restore.

They return a lane, or a random part of it, to the source after it has learned. Off by default: anchoring and
twin fusion do better; docs/methods/peers.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.decouple import norm
from adapters.online.gradient import State, check_method
from adapters.online.wrapped import Wrapped
from core.config import GuardConfig
from core.errors import ArtifactError, ConfigError
from core.protocols import Adapter, Pass
from core.types import AdaptationStep

if TYPE_CHECKING:
    from core.protocols import Params

MOMENTUM = 0.9  # of the running loss, SAR


class Guarded(Wrapped):
    """A method and its guards, one lane. With all guards off it is the method itself to the last bit.

    Guards act only after an update that changed something: first the stochastic restore, then the resets. A
    reset is to what the method was when it was wrapped: parameters, moments, queues, running means.

    Args:
        inner: the method, fresh; its parameters are written to in place.
        source: adaptable tensors of the encoder at their source values.
        config: the `adapt.guard` section.
        seed: of the run; keys the draws of the stochastic restore, with the number of the update.

    Raises:
        ConfigError: the method does not stand at the source.
    """

    def __init__(self, inner: Adapter, source: Params, config: GuardConfig, seed: int) -> None:
        self._source = {name: tensor.detach().clone() for name, tensor in source.items()}
        theta = inner.parameters()
        if theta.keys() != source.keys() or not all(
            torch.equal(tensor, self._source[n]) for n, tensor in theta.items()
        ):
            raise ConfigError(
                "expected a method at its source values, got other tensors or one that has learned: "
                "wrap a fresh one"
            )
        super().__init__(inner)
        self._config, self._seed = config, seed
        self._start = inner.snapshot()
        self._version, self._resets = inner.version, 0
        self._loss: float | None = None

    @property
    def version(self) -> int:
        """Counts on over resets, while the method's own count returns with its state."""
        return self._version

    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        """Learns, then guards. The features are those the method returned, from before any guard acted."""
        step, features = self._inner.update(batch)
        if not step.updated:
            return replace(step, resets=self._resets + step.resets), features
        self._version += 1
        restored = self._restore_some()
        reset = self._due(step)
        if reset:
            self._inner.restore(*self._start)
            self._loss = None
            self._resets += 1 + step.resets  # the method's own count returns to zero with its state
        own = 0 if reset else step.resets
        step = replace(step, resets=self._resets + own)
        if restored or reset:
            step = replace(step, diagnostics={**step.diagnostics, "source_distance": self._distance()})
        return step, features

    @torch.no_grad()
    def _restore_some(self) -> bool:
        """Each scalar returns to its source value with probability p. Moments stay.

        Reference: stochastic restoration of CoTTA (CVPR 2022).
        """
        if self._config.restore == 0:
            return False
        draw = np.random.default_rng(_key(self._seed, self._version))
        for name, tensor in sorted(self._inner.parameters().items()):
            chosen = torch.from_numpy(draw.random(tuple(tensor.shape)) < self._config.restore)
            tensor.copy_(torch.where(chosen.to(tensor.device), self._source[name], tensor))
        return True

    def _due(self, step: AdaptationStep) -> bool:
        """Reference: every N updates, RDumb (NeurIPS 2023); running loss below a bound, SAR (ICLR 2023)."""
        periodic = self._config.reset_every > 0 and self._version % self._config.reset_every == 0
        if self._config.reset_below == 0 or not step.losses:
            return periodic
        total = sum(step.losses.values())
        self._loss = total if self._loss is None else MOMENTUM * self._loss + (1 - MOMENTUM) * total
        return periodic or self._loss < self._config.reset_below

    @torch.no_grad()
    def _distance(self) -> float:
        theta = self._inner.parameters()
        return norm({name: tensor - self._source[name] for name, tensor in theta.items()})

    def snapshot(self) -> State:
        tensors, inner = self._inner.snapshot()
        meta = {"method": self.name, "version": self._version, "resets": self._resets, "loss": self._loss}
        return tensors, meta | {"guarded": inner}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method, other tensors or no guards."""
        check_method(meta, self.name)
        if "guarded" not in meta:
            raise ArtifactError(
                "expected a state taken under guards, got one without: "
                "set adapt.guard as it was or reset the lane"
            )
        self._inner.restore(tensors, meta["guarded"])
        self._version, self._resets, self._loss = int(meta["version"]), int(meta["resets"]), meta["loss"]


def _key(seed: int, update: int) -> int:
    digest = hashlib.sha256(f"restore/{seed}/{update}".encode()).digest()
    return int.from_bytes(digest[:16], "big")
