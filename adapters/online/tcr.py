"""TCR: test-time adaptation for cross-modal retrieval with query shift.

Each query is paired with its nearest gallery item, the neighbours of the batch become the columns of a small
softmax, and three unweighted terms are descended over the norm parameters of the query encoder: queries
spread out, the query-gallery gap returns to its source value, sure predictions get surer.

Reference: TCR (ICLR 2025), algorithm box; symbols and constants in docs/methods/tcr.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.decouple import Gradient, Reference
from adapters.online.descent import Descent
from adapters.online.gradient import State
from adapters.online.guard import Unlearnable, clip, require_finite
from adapters.online.objectives import Gauges, gauges, loss_emg, loss_rem, loss_uni, refined
from adapters.online.source_pairs import SourceQueue, source_constants
from core.artifacts import part
from core.config import AdaptConfig
from core.protocols import Pass
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

COLLAPSED = 1e-4  # mean distance to the centre below which all queries are one point
Losses = dict[str, float]


@dataclass(frozen=True, slots=True)
class Direction:
    """What to descend along, and what a reference had to say about it.

    With `on_step` the reference is still to be heard: on the step that AdamW makes of the descent.
    """

    descent: Gradient
    reference: Reference | None = None
    degrees: float = math.nan
    removed_energy: float = 0.0
    losses: Losses = field(default_factory=dict)
    on_step: bool = False


@dataclass(frozen=True, slots=True)
class _Inner:
    """One inner step: queries [B, D] before it, and what was seen."""

    q: Tensor
    losses: Losses
    gauges: Gauges
    conflict_degrees: float
    realised_degrees: float
    removed_energy: float


class Tcr(Descent[_Inner]):
    """One lane's TCR. Arguments as for Descent.

    Entropy and uniformity of a few queries carry no signal while the gap term would still drag them: hence
    the floor.

    Raises:
        ConfigError: nothing to adapt, or source constants that cannot be used.
    """

    name = "tcr"

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        super().__init__(source, constants, config, floor)
        self._settings.check(constants)
        self._constants, self._queue = constants, SourceQueue()

    def _inner(self, batch: Pass, first: bool) -> _Inner:
        settings, mask = self._settings, batch.mask
        q = batch.encode(self.parameters())
        require_finite([q[mask]], "non-finite-features")
        nearest = batch.neighbours(q.detach())[:, 0]
        entropy = refined(q, nearest, settings.temperature, mask)[1]
        if first and settings.constants == "queue":
            self._queue.offer(q, nearest, entropy, mask)
        constants = source_constants(settings.constants, self._constants, self._queue, int(mask.sum()))
        if constants is None:
            raise Unlearnable("no-constants")
        delta_s, e_m = constants
        seen = gauges(q, nearest, entropy, e_m, mask)

        terms = {
            "uniformity": loss_uni(q, mask, settings.uniformity_scale),
            "gap": loss_emg(q, nearest, mask, delta_s),
        }
        consistency = self._consistency(batch, q, nearest, entropy, e_m)
        if not consistency and seen.uniformity < COLLAPSED:
            raise Unlearnable("nothing-sure")  # one point, and not a sure one: nothing but the gap would pull
        terms |= consistency
        objective = torch.stack(list(terms.values())).sum()
        require_finite([objective], "non-finite-loss")

        direction = self._direction(batch, objective, q)
        require_finite(direction.descent.values(), "non-finite-gradient")
        reference = direction.reference
        on_step = reference.remove if reference is not None and direction.on_step else None
        moved = self._weights.step(clip(direction.descent, settings.clip), on_step)
        if not self._weights.finite():
            raise Unlearnable("rolled-back")
        return _Inner(
            q,
            {name: float(term.detach()) for name, term in terms.items()} | direction.losses,
            seen,
            direction.degrees,
            math.nan if reference is None else reference.degrees(moved.by),
            direction.removed_energy if on_step is None else moved.removed_energy,
        )

    def _consistency(
        self, batch: Pass, q: Tensor, nearest: Tensor, entropy: Tensor, e_m: float
    ) -> dict[str, Tensor]:
        """The third term by its name; empty when no row has a part in it."""
        rem = loss_rem(entropy, e_m, batch.mask)
        return {} if rem is None else {"entropy": rem}

    def _direction(self, batch: Pass, objective: Tensor, q: Tensor) -> Direction:
        """From the objective to what is descended along; q [B, D] is the forward it rests on."""
        return Direction(self._weights.gradient(objective))

    def _report(self, steps: Sequence[_Inner]) -> dict[str, float]:
        start, last = steps[0].gauges, steps[-1]
        return {
            "kept_share": start.kept_share,
            "entropy": start.entropy,
            "uniformity": start.uniformity,
            "gap": start.gap,
            "conflict_degrees": last.conflict_degrees,
            "realised_degrees": last.realised_degrees,
            "removed_energy": last.removed_energy,
        }

    def _mark(self) -> Callable[[], None]:
        """Nothing is copied before a step."""
        undo, queue = super()._mark(), copy.copy(self._queue)

        def undo_both() -> None:
            undo()
            self._queue = queue

        return undo_both

    def snapshot(self) -> State:
        tensors, meta = super().snapshot()
        held, queue = self._queue.snapshot()
        tensors |= {f"queue/{name}": array for name, array in held.items()}
        return tensors, meta | {"queue": queue}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        super().restore(tensors, meta)
        self._queue.restore(part(tensors, "queue/"), meta["queue"], self._weights.device)
