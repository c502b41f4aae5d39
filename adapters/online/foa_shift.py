"""FOA's activation shifting, without its prompts: features are moved by source mean minus running mean.

In FOA the class token is moved behind the last LayerNorm, before a linear classifier. Here it is the unit
feature behind the projection; the prompts found by CMA-ES are left out.

Reference: FOA (ICML 2024), back-to-source activation shifting, Eqs. 7-9; docs/methods/peers-2024.md.
"""

from __future__ import annotations

from torch import Tensor

from adapters.online.mean_shift import MeanShift, Running
from core.errors import ConfigError

ALPHA, PER_ROWS = 0.1, 64  # FOA: the newest batch counts a tenth, its batches have 64 queries
GAMMA = 1.0  # FOA: step size


class FoaShift(MeanShift):
    """One lane: emits normalize(q + gamma (mu_S - mu)), mu an EMA over the batches before this one.

    Args:
        mean: mu_S [D], mean of clean source queries.
        floor: smaller batches are moved by what is known already and are not learned from.

    Raises:
        ConfigError: the mean is no vector.
    """

    name = "foa-shift"

    def __init__(self, mean: Tensor, floor: int = 16) -> None:
        if mean.ndim != 1:
            raise ConfigError(f"expected the mean [D] of clean queries, got shape {tuple(mean.shape)}")
        super().__init__(floor)
        self._source: Tensor = mean.detach().float().clone()

    def _fold(self, running: Running | None, rows: Tensor) -> Running:
        now = rows.mean(0)
        if running is None:
            return now, len(rows)
        kept = (1 - ALPHA) ** (len(rows) / PER_ROWS)
        return kept * running[0].to(now) + (1 - kept) * now, running[1] + len(rows)

    def _offset(self, rows: Tensor) -> Tensor | None:
        # FOA's code shifts by what the earlier batches have left; the first batch goes as it is.
        return None if self._running is None else GAMMA * (self._source - self._running[0].to(self._source))

    def _report(self, mean: Tensor) -> dict[str, float]:
        return {"source_distance": float((mean - self._source).norm())}
