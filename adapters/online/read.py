"""READ: sure rows are made surer without letting unsure ones dominate, and the mean prediction is kept broad.

Reference: READ (ICLR 2024), as run in TCR's benchmark; docs/methods/peers.md.
"""

from __future__ import annotations

from adapters.online.peer import Objective, Peer, Seen
from core.protocols import Pass


class Read(Peer):
    """One lane's READ: mean(-p_max ln p_max) - entropy(softmax(sum_i p_i)). Arguments as for Peer.

    The paper's confidence term is p_max (1 - ln p_max + ln gamma), at its gamma = 1/e just -p_max ln p_max.
    """

    name = "read"

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        best, place = seen.prediction.p.max(1)
        log_best = seen.prediction.log_p.gather(1, place[:, None])[:, 0]
        balance = self._shared(batch, seen).p.sum(0).log_softmax(0)
        terms = {"confidence": -(best * log_best).mean(), "balance": (balance.exp() * balance).sum()}
        return Objective(terms, len(best))
