"""What TCR's peers have in common: a softmax over gallery items, and a batch learned whole or not at all.

Each method is its objective alone, in a file of its own. All of them move the same norm parameters with the
same AdamW, as in TCR's benchmark; docs/methods/peers.md says what was run there and what the papers used.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.decouple import Gradient
from adapters.online.descent import Descent
from adapters.online.gradient import State
from adapters.online.guard import Unlearnable, clip, require_finite
from core.config import AdaptConfig
from core.protocols import Pass
from core.references import SourceConstants

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


class Peer(Descent[Inner]):
    """One lane of one method. Arguments as for Descent."""

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        super().__init__(source, constants, config, floor)
        self._full = config.columns == "full"

    @abstractmethod
    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        """What to descend. Raises Unlearnable when no row is left to learn from."""

    def _inner(self, batch: Pass, first: bool) -> Inner:
        seen = self._look(batch)
        objective = self._objective(batch, seen)
        self._descend(self._gradient(objective))
        return self._seen(seen, objective)

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

    def _seen(self, seen: Seen, objective: Objective) -> Inner:
        losses = {name: float(term.detach()) for name, term in objective.terms.items()}
        entropy = seen.prediction.entropy.detach()
        return Inner(seen.q, losses, objective.kept / len(entropy), float(entropy.mean()))

    def _report(self, steps: Sequence[Inner]) -> dict[str, float]:
        return {"kept_share": steps[0].kept_share, "entropy": steps[0].entropy}

    def _mark(self) -> Callable[[], None]:
        before = self.snapshot()
        super()._mark()
        return lambda: self.restore(*before)

    def snapshot(self) -> State:
        tensors, meta = super().snapshot()
        return tensors, meta | {"resets": self._resets}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        super().restore(tensors, meta)
        self._resets = int(meta["resets"])


def _distinct(rows: Tensor) -> Tensor:
    found: Tensor = torch.unique(rows, dim=0)
    return found
