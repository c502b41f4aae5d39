"""CLIPTTA: a query is to tell its nearest item from those of its batch mates, and no item is to win all.

Softly: the entropy of the choice is minimised, so that a wrong pair is not forced. The confident memory and
the loss against outliers are left out.

Reference: CLIPTTA (NeurIPS 2025); docs/methods/peers-2024.md.
"""

from __future__ import annotations

import math

from adapters.online.peer import Objective, Peer, Seen, predict
from core.protocols import Pass

BALANCE_WEIGHT = 1.0  # beta_reg, CLIPTTA code


class Cliptta(Peer):
    """One lane's CLIPTTA: mean_i H(softmax_j q_i g'_j / tau) + sum_k m_k ln m_k. Arguments as for Peer."""

    name = "cliptta"

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        # Equal nearest items stay equal columns, as in TCR: CLIPTTA's batches hold a class twice, too.
        nearest = batch.neighbours(seen.q.detach())[batch.mask][:, 0]
        contrast = predict(seen.q[batch.mask], nearest, self._settings.temperature).entropy
        log_shared = self._shared(batch, seen).log_p
        log_mean = log_shared.logsumexp(0) - math.log(len(log_shared))  # the mean itself underflows
        balance = BALANCE_WEIGHT * (log_mean.exp() * log_mean).sum()
        return Objective({"contrast": contrast.mean(), "balance": balance}, len(contrast))
