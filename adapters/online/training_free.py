"""Training-free TCR: a batch is spread about its centre and moved until its gap is the source's.

Forward only, no parameters: what is left of TCR where nothing can be learned. Uses the means of the batch, so
a batch of few queries is answered as it is.

Reference: the training-free variant of TCR (ICLR 2025); docs/methods/training_free.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from adapters.online.gradient import Settings, State, check_method
from adapters.online.objectives import gauges, refined
from adapters.online.source_pairs import SourceQueue, source_constants
from core.config import AdaptConfig
from core.protocols import Pass
from core.references import SourceConstants
from core.types import AdaptationStep

if TYPE_CHECKING:
    from core.protocols import Params

STRETCH = 2.0  # lambda, TCR code
NO_GAP = 1e-6  # below it the direction of the gap of unit vectors is rounding noise


class TrainingFree:
    """Emits normalize(lambda (q - mean(q)) + mean(q) + (1 - Delta_S / Delta_T) (mean(g') - mean(q))).

    The only state is TCR's queue, and that only with `constants = "queue"`: a batch is offered before it is
    answered, and kept when it is learned from. While the queue is empty nothing is moved, only spread.

    Args:
        constants: Delta_S, E_m and temperature of the base model.
        config: the `adapt` section.
        floor: batches with fewer usable rows are answered as they are.

    Raises:
        ConfigError: source constants that cannot be used.
    """

    name = "training_free"
    learns_first = False

    def __init__(self, constants: SourceConstants, config: AdaptConfig, floor: int = 16) -> None:
        self._settings = Settings.resolve(config, constants)
        self._settings.check(constants)
        self._constants, self._floor = constants, floor
        self._queue = SourceQueue()
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    def parameters(self) -> Params:
        """None of its own: the encoder's are used."""
        return {}

    @torch.no_grad()
    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        # A broken query must not reach its batch mates through the means.
        usable = batch.mask & torch.isfinite(features).all(1)
        if int(usable.sum()) < self._floor:
            return features
        near = batch.neighbours(features)[:, 0]
        _, constants, _ = self._known(features, near, usable)
        delta_s = None if constants is None else constants[0]
        return normalize(respread(features, near, usable, delta_s), dim=1)

    @torch.no_grad()
    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        """Keeps what the queue took of the batch; with source constants there is nothing to learn."""
        if int(batch.mask.sum()) < self._floor:
            return AdaptationStep(False, "too-small"), None
        features = batch.encode(self.parameters())
        if not bool(torch.isfinite(features[batch.mask]).all()):
            return AdaptationStep(False, "non-finite-features"), None
        near = batch.neighbours(features)[:, 0]
        queue, constants, entropy = self._known(features, near, batch.mask)
        if constants is None:
            return AdaptationStep(False, "no-constants"), features
        seen = gauges(features, near, entropy, constants[1], batch.mask)
        learns = self._settings.constants == "queue" and not self._queue.frozen
        if learns:
            self._queue, self._version = queue, self._version + 1
        step = AdaptationStep(
            learns,
            "" if learns else "nothing-to-learn",
            diagnostics={
                "kept_share": seen.kept_share,
                "entropy": seen.entropy,
                "uniformity": seen.uniformity,
                "gap": seen.gap,
            },
        )
        return step, features

    def _known(
        self, q: Tensor, near: Tensor, mask: Tensor
    ) -> tuple[SourceQueue, tuple[float, float] | None, Tensor]:
        """The queue with this batch in it, (Delta_S, E_m) by it, and the refined entropy [B]."""
        entropy = refined(q, near, self._settings.temperature, mask)[1]
        queue = copy.copy(self._queue)
        if self._settings.constants == "queue":
            queue.offer(q, near, entropy, mask)
        known = source_constants(self._settings.constants, self._constants, queue, int(mask.sum()))
        return queue, known, entropy

    def snapshot(self) -> State:
        held, queue = self._queue.snapshot()
        return held, {"method": self.name, "version": self._version, "queue": queue}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method."""
        check_method(meta, self.name)
        self._queue.restore(tensors, meta["queue"], torch.device("cpu"))
        self._version = int(meta["version"])


def respread(q: Tensor, gp: Tensor, mask: Tensor, delta_s: float | None, stretch: float = STRETCH) -> Tensor:
    """All rows [B, D] spread by `stretch` and moved, not yet normalised: then their gap is Delta_S.

    Args:
        q: unit queries [B, D].
        gp: their nearest gallery items [B, D].
        mask: rows [B] that the means are taken over.
        delta_s: the gap to reach; None moves nothing. Nor is anything moved where there is no gap.
        stretch: lambda.
    """
    centre = q[mask].mean(0)
    out = stretch * (q - centre) + centre
    difference = gp[mask].mean(0) - centre
    delta_t = float(difference.norm())
    if delta_s is None or delta_t < NO_GAP:
        return out
    return out + (1 - delta_s / delta_t) * difference
