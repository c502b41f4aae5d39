"""UCA, rebuilt: unsure queries are made surer, too sure ones less sure, by their margin in the candidate set.

Of UCA only its abstract is known here: a Semantic Separation Margin is the prior of the confidence, from it
over- and under-confident queries are told apart, and one rule adjusts both. The equations are ours.

Reference: UCA (UAI 2026), reconstructed with low confidence; docs/methods/peers-2024.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.gradient import State
from adapters.online.guard import Unlearnable
from adapters.online.peer import Inner, Objective, Peer, Seen, lowest
from core.config import AdaptConfig
from core.protocols import Pass
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

SOURCE_LIKE = 0.3  # share of a batch whose margins are the source's: that of TCR's source-like pairs
MOMENTUM = 0.9  # of the reference margin, ours
LIMIT = 1.0  # of the weight of a row, ours
NONE = 1e-6  # a margin below is rounding noise of cosines


def margins(q: Tensor, near: Tensor) -> Tensor:
    """How far the best candidate is from those that mean something else [R].

    m_i = sum_k u_ik (q_i z_i1 - q_i z_ik) / sum_k u_ik, u_ik = 1 - z_i1 z_ik: a near copy of the best
    candidate is no rival. 0 where there is no rival.

    Args:
        q: unit queries [R, D].
        near: candidates [R, K, D], best first; zero rows are places that no item fills.
    """
    cosine = torch.einsum("rd,rkd->rk", q, near)
    apart = (1 - torch.einsum("rd,rkd->rk", near[:, 0], near)).clamp_min(0)
    apart = apart.masked_fill((near == 0).all(2), 0.0)
    apart[:, 0] = 0.0
    return (apart * (cosine[:, :1] - cosine)).sum(1) / apart.sum(1).clamp_min(NONE)


class Uca(Peer):
    """One lane's UCA: mean of w H, w = sg[clip(1 - m / m_ref, -1, 1)]. Arguments as for Peer."""

    name = "uca"

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        super().__init__(source, constants, config, floor)
        self._reference: float | None = None

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        q, entropy = seen.q.detach(), seen.prediction.entropy
        margin = margins(q[batch.mask], batch.neighbours(q)[batch.mask])
        sure, _ = lowest(entropy, SOURCE_LIKE)
        if not bool(sure.any()):
            raise Unlearnable("nothing-sure")
        now, old = float(margin[sure].mean()), self._reference
        self._reference = now if old is None else MOMENTUM * old + (1 - MOMENTUM) * now
        if self._reference < NONE:
            raise Unlearnable("nothing-sure")
        weight = (1 - margin / self._reference).clamp(-LIMIT, LIMIT)
        return Objective({"entropy": (weight * entropy).mean()}, len(entropy))

    def _report(self, steps: Sequence[Inner]) -> dict[str, float]:
        return super()._report(steps) | {"reference_margin": self._reference or 0.0}

    def snapshot(self) -> State:
        tensors, meta = super().snapshot()
        return tensors, meta | {"reference": self._reference}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        super().restore(tensors, meta)
        self._reference = meta["reference"]
