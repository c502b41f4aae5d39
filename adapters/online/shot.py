"""SHOT-style: information maximisation, and pseudo labels where the prediction is nearly certain.

Pseudo labels are the prediction's own best column, as in TCR's benchmark; SHOT itself takes them from class
centroids over the whole target set, which a stream does not have.

Reference: SHOT (ICML 2020), as run in TCR's benchmark; docs/methods/peers.md.
"""

from __future__ import annotations

import math

from adapters.online.peer import Objective, Peer, Seen
from core.protocols import Pass

PSEUDO_WEIGHT = 0.1  # theta, TCR benchmark
PSEUDO_ABOVE = 0.9  # beta, TCR benchmark


class Shot(Peer):
    """One lane's SHOT-style method: mean H + sum_k p_k ln p_k (mean p) + .1 CE. Arguments as for Peer."""

    name = "shot"

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        prediction = seen.prediction
        log_shared = self._shared(batch, seen).log_p
        log_mean = log_shared.logsumexp(0) - math.log(len(log_shared))  # the mean itself underflows
        terms = {"entropy": prediction.entropy.mean(), "diversity": (log_mean.exp() * log_mean).sum()}
        best, label = prediction.p.detach().max(1)
        certain = best > PSEUDO_ABOVE
        if bool(certain.any()):
            cross = -prediction.log_p.gather(1, label[:, None])[:, 0]
            terms["pseudo"] = PSEUDO_WEIGHT * cross[certain].mean()
        return Objective(terms, len(best))
