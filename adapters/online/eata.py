"""EATA: learn from sure rows that do not repeat what was learned from lately. The Fisher term is off.

Over the whole gallery "lately" is the running mean of the predictions, as published. Shortlists have no
columns in common, so there the running mean is of the expected gallery feature sum_k p_ik z_k (ours).

Reference: EATA (ICML 2022), as run in TCR's benchmark; docs/methods/peers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from adapters.online.gradient import State
from adapters.online.peer import SURE_SHARE, Objective, Peer, Seen, lowest, mean_over
from core.config import AdaptConfig
from core.protocols import Pass
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

MARGIN = SURE_SHARE  # TCR benchmark: one number, the share that is kept and the exponent's offset
REDUNDANT = 0.05  # d, EATA and TCR benchmark
MOMENTUM = 0.9  # EATA and TCR benchmark


class Eata(Peer):
    """One lane's EATA. Arguments as for Peer."""

    name = "eata"

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        super().__init__(source, constants, config, floor)
        self._mean: Tensor | None = None
        """[N] mean prediction, or [D] mean expected feature, of the rows learned from."""

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        entropy = seen.prediction.entropy
        kept, _ = lowest(entropy, MARGIN)
        signature, likeness = self._likeness(seen)
        if likeness is not None:
            kept = kept & (likeness < REDUNDANT)
        weight = (MARGIN - entropy.detach()).exp()
        objective = mean_over(kept, weight * entropy)
        mean = signature[kept].mean(0)
        self._mean = mean if likeness is None or self._mean is None else _blend(self._mean, mean)
        return objective

    @torch.no_grad()
    def _likeness(self, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """What stands for each row [R, N] or [R, D], and its cosine with the running mean (None: no mean)."""
        p = seen.prediction.p.detach()
        if self._full:
            if self._mean is None or len(self._mean) != p.shape[1]:  # another gallery was swapped in
                return p, None
            return p, cosine_similarity(p, self._mean[None], dim=1).abs()
        expected = torch.einsum("rc,rcd->rd", p, seen.columns)
        if self._mean is None:
            return expected, None
        # Features of one gallery lie in a cone: without a centre every row would be like every other. Around
        # a centre a negative cosine says that the row is unlike, hence no absolute value.
        present = (seen.columns != 0).any(2)
        centre = seen.columns[present].mean(0)
        return expected, cosine_similarity(expected - centre, (self._mean - centre)[None], dim=1)

    def snapshot(self) -> State:
        tensors, meta = super().snapshot()
        if self._mean is not None:
            tensors["mean"] = self._mean.cpu().numpy().copy()
        return tensors, meta

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        super().restore(tensors, meta)
        mean = tensors.get("mean")
        self._mean = None if mean is None else torch.from_numpy(np.array(mean)).to(self._weights.device)


def _blend(old: Tensor, new: Tensor) -> Tensor:
    return MOMENTUM * old + (1 - MOMENTUM) * new
