"""UATTA: entropies count by how well query and item agree on each other.

A query is trusted where its best item would choose it among the queries, too. UATTA adapts off line, on all
queries; here the queries of the batch stand for them.

Reference: UATTA (SIGIR 2026), bidirectional retrieval disagreement; docs/methods/peers-2024.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.online.guard import require_finite
from adapters.online.peer import Objective, Peer, Seen
from core.protocols import Pass

SCALE = 1.0  # kappa, UATTA code


class Uatta(Peer):
    """One lane's UATTA: mean of H / U, U = sg[exp(kappa (1 - (p + r) / 2))]. Arguments as for Peer."""

    name = "uatta"

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        entropy = seen.prediction.entropy
        chosen = seen.prediction.p.detach().max(1).values
        weight = 1 / uncertainty(chosen, self._returned(batch, seen), SCALE)
        return Objective({"entropy": (weight * entropy).mean()}, len(entropy))

    @torch.no_grad()
    def _returned(self, batch: Pass, seen: Seen) -> Tensor:
        """r [R]: how probably each query's best item would choose it among the queries of the batch."""
        q = seen.q[batch.mask]
        place = seen.prediction.p.argmax(1)
        own = torch.arange(len(q), device=q.device)
        best = seen.columns[place] if seen.columns.ndim == 2 else seen.columns[own, place]
        logits = best @ q.T / self._settings.temperature
        require_finite([logits], "non-finite-loss")
        return logits.softmax(1).diagonal()


def uncertainty(chosen: Tensor, returned: Tensor, scale: float) -> Tensor:
    """exp(kappa (1 - (p + r) / 2)) [R], from 1 (both directions agree) to exp(kappa)."""
    return (scale * (1 - (chosen + returned) / 2)).exp()
