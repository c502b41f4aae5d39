"""DeYO: learn from sure rows whose prediction falls when the picture's patches are shuffled.

A prediction that survives shuffling rests on texture or background, not on the object's shape.

Reference: DeYO (ICLR 2024), as run in TCR's benchmark; docs/methods/peers.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.online.guard import require_finite
from adapters.online.peer import SURE_SHARE, Objective, Peer, Seen, lowest, mean_over, predict
from core.protocols import Pass

KEPT_SHARE = 0.5  # TCR benchmark: rows of lowest entropy that are looked at
PLPD_ABOVE = 0.0  # TCR benchmark; the original asks for .2
SOFTENING = 0.1  # TCR benchmark, grouped as decoded; the original weight has none


class Deyo(Peer):
    """One lane's DeYO. Arguments as for Peer. Without shuffled pictures PLPD is 0 and filters nothing."""

    name = "deyo"

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        entropy = seen.prediction.entropy
        kept, _ = lowest(entropy, KEPT_SHARE)
        drop = self._plpd(batch, seen)
        if drop is None:
            drop = torch.zeros_like(entropy.detach())
        else:
            kept = kept & (drop > PLPD_ABOVE)
        _, threshold = lowest(entropy, SURE_SHARE)
        weight = 1 / ((entropy.detach() - threshold).exp() + SOFTENING) + drop.exp() + SOFTENING
        return mean_over(kept, weight * entropy)

    @torch.no_grad()
    def _plpd(self, batch: Pass, seen: Seen) -> Tensor | None:
        """p(y) - p'(y) [R] for y the best column of the whole picture, over the same columns."""
        shuffled = batch.scrambled(self.parameters())
        if shuffled is None:
            return None
        shuffled = shuffled[batch.mask]
        require_finite([shuffled], "non-finite-features")
        best, label = seen.prediction.p.detach().max(1)
        p = predict(shuffled, seen.columns, self._settings.temperature).p
        return best - p.gather(1, label[:, None])[:, 0]
