"""What TCR's peers have in common: a softmax over gallery items, and a batch learned whole or not at all.

Each method is its objective alone, in a file of its own. All of them move the same norm parameters with the
same AdamW, as in TCR's benchmark; docs/methods/peers.md says what was run there and what the papers used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.decouple import Gradient
from adapters.online.gradient import Settings, State, Trainable, check_method
from adapters.online.guard import Unlearnable, clip, require_finite
from core.config import AdaptConfig
from core.protocols import Pass
from core.types import AdaptationStep, SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

SURE_SHARE = (
    0.4  # TCR benchmark: share of a batch that EATA and SAR call sure, and DeYO's scale of the weights
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Softmax p and ln p [R, C] of R real rows; both are 0 where a row has no such column."""

    p: Tensor
    log_p: Tensor

    @property
    def entropy(self) -> Tensor:
        """H [R] in nats."""
        return -(self.p * self.log_p).sum(1)


def predict(q: Tensor, columns: Tensor, tau: float) -> Prediction:
    """p_i = softmax(q_i Z^T / tau).

    Args:
        q: unit queries [R, D].
        columns: unit gallery features, [C, D] for all rows or [R, C, D] for each its own; zero rows are
            places that no item fills, and get no probability.
        tau: temperature.

    Raises:
        Unlearnable: "nothing-sure" when a row has no column at all, "non-finite-loss" on an overflow.
    """
    if columns.ndim == 2:
        logits, absent = q @ columns.T, (columns == 0).all(1).expand(len(q), -1)
    else:
        logits, absent = torch.einsum("rd,rcd->rc", q, columns), (columns == 0).all(2)
    if bool(absent.all(1).any()):
        raise Unlearnable("nothing-sure")
    log_p = (logits / tau).masked_fill(absent, -math.inf).log_softmax(1)
    filled = log_p.masked_fill(absent, 0.0)  # 0 * -inf would be NaN
    require_finite([filled], "non-finite-loss")  # here, as filters would hide a NaN
    return Prediction(log_p.exp(), filled)


def lowest(entropy: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The int(share R) rows of lowest entropy, ties by row order, for share < 1.

    Returns:
        kept [R] bool, and the threshold: the lowest entropy that is not kept, a scalar without gradient.
    """
    values = entropy.detach()
    order, count = values.argsort(stable=True), int(share * len(values))
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[order[:count]] = True
    return kept, values[order[count]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One forward: queries [B, D] with graph, and what their R real rows predict over which columns."""

    q: Tensor
    columns: Tensor
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Objective:
    """Terms to be summed, and how many rows they rest on."""

    terms: dict[str, Tensor]
    kept: int


def mean_over(kept: Tensor, values: Tensor) -> Objective:
    """The mean of an entropy over the rows kept [R]. Raises Unlearnable when there are none."""
    if not bool(kept.any()):
        raise Unlearnable("nothing-sure")
    return Objective({"entropy": values[kept].mean()}, int(kept.sum()))


@dataclass(frozen=True, slots=True)
class Inner:
    """One inner step: queries [B, D] before it, and what was seen."""

    q: Tensor
    losses: dict[str, float]
    kept_share: float
    entropy: float
    backwards: int = 1


class Peer(ABC):
    """One lane of one method.

    A batch is learned from completely or not at all: when any inner step is refused, all state returns to the
    last bit to what it was before the batch.

    Args:
        source: adaptable tensors of the encoder at their source values.
        constants: temperature and rate of the base model.
        config: the `adapt` section.
        floor: batches with fewer real rows are not learned from.

    Raises:
        ConfigError: nothing to adapt.
    """

    name: str

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        self._settings = Settings.resolve(config, constants)
        self._full, self._floor = config.columns == "full", floor
        self._weights = Trainable(source, self._settings)
        self._version = self._resets = 0

    @property
    def version(self) -> int:
        return self._version

    @property
    def learns_first(self) -> bool:
        return self._settings.emit != "before"

    def parameters(self) -> Params:
        return self._weights.tensors

    def emit(self, features: Tensor, batch: Pass) -> Tensor:
        return features

    @torch.enable_grad()
    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        """Learns from a batch; the features returned are those of the last inner forward."""
        if int(batch.mask.sum()) < self._floor:
            return self._refused("too-small"), None
        before = self.snapshot()
        inner: list[Inner] = []
        try:
            for _ in range(self._settings.steps):
                inner.append(self._inner(batch))
        except Unlearnable as refused:
            self.restore(*before)
            return self._refused(refused.reason, bool(inner) or refused.reason == "rolled-back"), None
        except BaseException:  # out of memory, a stop signal: half a batch must not stay behind
            self.restore(*before)
            raise
        self._version += 1
        step = AdaptationStep(
            updated=True,
            losses=inner[-1].losses,
            kept_share=inner[0].kept_share,
            entropy=inner[0].entropy,
            source_distance=self._weights.distance(),
            backwards=sum(step.backwards for step in inner),
            resets=self._resets,
        )
        return step, None if self._settings.emit == "after" else inner[-1].q.detach()

    @abstractmethod
    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        """What to descend. Raises Unlearnable when no row is left to learn from."""

    def _inner(self, batch: Pass) -> Inner:
        seen = self._look(batch)
        objective = self._objective(batch, seen)
        self._descend(self._gradient(objective))
        return self._report(seen, objective)

    def _look(self, batch: Pass) -> Seen:
        q = batch.encode(self.parameters())
        require_finite([q[batch.mask]], "non-finite-features")
        columns = self._columns(batch, q.detach())
        return Seen(q, columns, predict(q[batch.mask], columns, self._settings.temperature))

    def _columns(self, batch: Pass, q: Tensor) -> Tensor:
        """[N, D], or the shortlist [R, K, D] of each real row."""
        return batch.gallery() if self._full else batch.shortlist(q)[batch.mask]

    def _shared(self, batch: Pass, seen: Seen) -> Prediction:
        """Predictions over columns that all rows share, for terms on the mean prediction.

        Shortlists differ from row to row. The union of the batch's rank-1 neighbours, each item once, stands
        in for the gallery.
        """
        if self._full:
            return seen.prediction
        nearest = batch.neighbours(seen.q.detach())[batch.mask][:, 0]
        return predict(seen.q[batch.mask], _distinct(nearest), self._settings.temperature)

    def _gradient(self, objective: Objective) -> Gradient:
        loss = torch.stack(list(objective.terms.values())).sum()
        require_finite([loss], "non-finite-loss")
        gradient = self._weights.gradient(loss)
        require_finite(gradient.values(), "non-finite-gradient")
        return gradient

    def _descend(self, gradient: Gradient) -> None:
        self._weights.step(clip(gradient, self._settings.clip))
        if not self._weights.finite():
            raise Unlearnable("rolled-back")

    def _report(self, seen: Seen, objective: Objective, backwards: int = 1) -> Inner:
        losses = {name: float(term.detach()) for name, term in objective.terms.items()}
        entropy = seen.prediction.entropy.detach()
        return Inner(seen.q, losses, objective.kept / len(entropy), float(entropy.mean()), backwards)

    def _refused(self, reason: str, rolled_back: bool = False) -> AdaptationStep:
        return AdaptationStep(
            False,
            reason,
            source_distance=self._weights.distance(),
            rolled_back=rolled_back,
            resets=self._resets,
        )

    def snapshot(self) -> State:
        meta = {"method": self.name, "version": self._version, "resets": self._resets}
        return self._weights.snapshot(), meta

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        check_method(meta, self.name)
        self._weights.restore(tensors)
        self._version, self._resets = int(meta["version"]), int(meta["resets"])


def _distinct(rows: Tensor) -> Tensor:
    found: Tensor = torch.unique(rows, dim=0)
    return found
