"""NEO: the mean of all embeddings of the stream so far is subtracted.

Not moved to the clean mean, as `Centring` does, but to the origin, with no forgetting and nothing to set.

Reference: NEO (ICLR 2026), there before a linear classifier; docs/methods/peers-2024.md.
"""

from __future__ import annotations

from torch import Tensor

from adapters.online.mean_shift import MeanShift, Running


class Neo(MeanShift):
    """One lane's NEO: emits normalize(q - c), c the mean of all queries so far, this batch included."""

    name = "neo"

    def _fold(self, running: Running | None, rows: Tensor) -> Running:
        if running is None:
            return rows.mean(0), len(rows)
        mean, seen = running[0].to(rows), running[1]
        total = seen + len(rows)
        return mean * (seen / total) + rows.sum(0) / total, total

    def _offset(self, rows: Tensor) -> Tensor | None:
        known = self._running if len(rows) < self._floor else self._fold(self._running, rows)
        return None if known is None else -known[0]
