"""Tent: the mean entropy of the predictions is minimised over the norm parameters.

Reference: Tent (ICLR 2021), as run in TCR's benchmark; docs/methods/peers.md.
"""

from __future__ import annotations

from adapters.online.peer import Objective, Peer, Seen
from core.protocols import Pass


class Tent(Peer):
    """One lane's Tent. Arguments as for Peer."""

    name = "tent"

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        entropy = seen.prediction.entropy
        return Objective({"entropy": entropy.mean()}, len(entropy))
