"""TCR: test-time adaptation for cross-modal retrieval with query shift.

Each query is paired with its nearest gallery item, the neighbours of the batch become the columns of a small
softmax, and three unweighted terms are descended over the norm parameters of the query encoder: queries
spread out, the query-gallery gap returns to its source value, sure predictions get surer.

Reference: TCR (ICLR 2025), algorithm box; symbols and constants in docs/methods/tcr.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.decouple import Gradient, degrees
from adapters.online.gradient import Settings, State, Trainable, check_method, part
from adapters.online.guard import Unlearnable, clip, require_finite
from adapters.online.memory import SourceQueue, entropy_scale
from adapters.online.objectives import Gauges, gauges, loss_emg, loss_rem, loss_uni, refined
from core.config import AdaptConfig
from core.errors import ConfigError
from core.protocols import Batch
from core.types import AdaptationStep, SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

COLLAPSED = 1e-4  # mean distance to the centre below which all queries are one point
Losses = dict[str, float]


@dataclass(frozen=True, slots=True)
class Direction:
    """What to descend along, and what a reference had to say about it."""

    descent: Gradient
    reference: Gradient = field(default_factory=dict)
    degrees: float = math.nan
    removed_energy: float = 0.0
    losses: Losses = field(default_factory=dict)


Rule = Callable[[Tensor, Tensor], Direction]
"""(objective, queries [B, D] with graph) -> direction."""


@dataclass(frozen=True, slots=True)
class _Inner:
    """One inner step: queries [B, D] before it, theta before minus theta after, and what was seen."""

    q: Tensor
    direction: Direction
    moved: Gradient
    losses: Losses
    gauges: Gauges


class Tcr:
    """One lane's TCR.

    A batch is learned from completely or not at all: when any inner step is refused, parameters, moments and
    queue return to the last bit to what they were before the batch.

    Args:
        source: adaptable tensors of the encoder at their source values.
        constants: Delta_S, E_m, temperature and rate of the base model.
        config: the `adapt` section.
        floor: batches with fewer real rows are not learned from; entropy and uniformity of a few queries
            carry no signal while the gap term would still drag them.

    Raises:
        ConfigError: nothing to adapt, or source constants that cannot be used.
    """

    name = "tcr"

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        self._settings = Settings.resolve(config, constants)
        usable = math.isfinite(constants.source_gap + constants.entropy_ceiling) and constants.batch > 1
        if self._settings.constants == "source" and not usable:
            raise ConfigError(
                f"expected finite source constants of batches above 1, got {constants}: "
                'build the base model again or set adapt.constants = "queue"'
            )
        self._constants, self._floor = constants, floor
        self._weights = Trainable(source, self._settings)
        self._queue = SourceQueue()
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    @property
    def learns_first(self) -> bool:
        return self._settings.emit != "before"

    def parameters(self) -> Params:
        return self._weights.tensors

    def emit(self, features: Tensor, batch: Batch) -> Tensor:
        return features

    def update(self, batch: Batch) -> tuple[AdaptationStep, Tensor | None]:
        """Learns from a batch; the features returned are those of the last inner forward."""
        return self._learn(batch, self._plain)

    def _plain(self, objective: Tensor, q: Tensor) -> Direction:
        return Direction(self._weights.gradient(objective))

    @torch.enable_grad()
    def _learn(self, batch: Batch, rule: Rule) -> tuple[AdaptationStep, Tensor | None]:
        if int(batch.mask.sum()) < self._floor:
            return self._refused("too-small"), None
        before = self.snapshot()
        inner: list[_Inner] = []
        try:
            for _ in range(self._settings.steps):
                inner.append(self._inner(batch, rule, first=not inner))
        except Unlearnable as refused:
            self.restore(*before)
            return self._refused(refused.reason, bool(inner) or refused.reason == "rolled-back"), None
        except BaseException:  # out of memory, a stop signal: half a batch must not stay behind
            self.restore(*before)
            raise
        self._version += 1
        start, last = inner[0].gauges, inner[-1]
        step = AdaptationStep(
            updated=True,
            losses=last.losses,
            kept_share=start.kept_share,
            entropy=start.entropy,
            uniformity=start.uniformity,
            gap=start.gap,
            conflict_degrees=last.direction.degrees,
            realised_degrees=degrees(last.moved, last.direction.reference),
            removed_energy=last.direction.removed_energy,
            source_distance=self._weights.distance(),
        )
        return step, None if self._settings.emit == "after" else last.q.detach()

    def _inner(self, batch: Batch, rule: Rule, first: bool) -> _Inner:
        settings, mask = self._settings, batch.mask
        q = batch.encode(self.parameters())
        require_finite([q[mask]], "non-finite-features")
        nearest = batch.neighbours(q.detach())[:, 0]
        entropy = refined(q, nearest, settings.temperature, mask)[1]
        if first and settings.constants == "queue":
            self._queue.offer(q, nearest, entropy, mask)
        delta_s, e_m = self._source_constants(int(mask.sum()))
        seen = gauges(q, nearest, entropy, e_m, mask)

        terms = {
            "uniformity": loss_uni(q, mask, settings.uniformity_scale),
            "gap": loss_emg(q, nearest, mask, delta_s),
        }
        rem = loss_rem(entropy, e_m, mask)
        if rem is not None:
            terms["entropy"] = rem
        elif seen.uniformity < COLLAPSED:
            raise Unlearnable("nothing-sure")  # one point, and not a sure one: nothing but the gap would pull
        objective = torch.stack(list(terms.values())).sum()
        require_finite([objective], "non-finite-loss")

        direction = rule(objective, q)
        require_finite(direction.descent.values(), "non-finite-gradient")
        moved = self._weights.step(clip(direction.descent, settings.clip))
        if not self._weights.finite():
            raise Unlearnable("rolled-back")
        losses = {name: float(term.detach()) for name, term in terms.items()} | direction.losses
        return _Inner(q, direction, moved, losses, seen)

    def _source_constants(self, rows: int) -> tuple[float, float]:
        """Delta_S and E_m, the ceiling scaled from the batch it was measured at to `rows` columns."""
        if self._settings.constants == "source":
            ceiling = self._constants.entropy_ceiling * entropy_scale(rows, self._constants.batch)
            return self._constants.source_gap, ceiling
        constants = self._queue.constants(rows)
        if constants is None:
            raise Unlearnable("no-constants")
        return constants

    def _refused(self, reason: str, rolled_back: bool = False) -> AdaptationStep:
        return AdaptationStep(
            False, reason, source_distance=self._weights.distance(), rolled_back=rolled_back
        )

    def snapshot(self) -> State:
        held, queue = self._queue.snapshot()
        tensors = self._weights.snapshot() | {f"queue/{name}": array for name, array in held.items()}
        return tensors, {"method": self.name, "version": self._version, "queue": queue}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        check_method(meta, self.name)
        self._weights.restore(tensors)
        self._queue.restore(part(tensors, "queue/"), meta["queue"], self._weights.device)
        self._version = int(meta["version"])
