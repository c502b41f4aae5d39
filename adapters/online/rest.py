"""REST-style adaptation: the objective of TCR, with the part of its gradient removed that fights the source.

The decoupling formula is reconstructed from a published summary, not read in the paper; hence "REST-style".
The reference (D1) keeps the adapted encoder's predictions near those of the frozen one: at the source
parameters its gradient is zero, so the first step equals TCR's.

Symbols, constants and what is reconstructed: docs/methods/rest.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from adapters.online.decouple import project
from adapters.online.guard import require_finite
from adapters.online.objectives import loss_gen
from adapters.online.tcr import Direction, Tcr
from core.config import AdaptConfig
from core.protocols import Batch
from core.types import AdaptationStep, SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params


class Rest(Tcr):
    """One lane's REST-style method: TCR with decoupling. Arguments as for Tcr.

    With `decouple.reference = "none"` it is TCR to the last bit.
    """

    name = "rest"

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        super().__init__(source, constants, config, floor)
        self._decouple = config.decouple

    def update(self, batch: Batch) -> tuple[AdaptationStep, Tensor | None]:
        """Learns from a batch; one forward serves both gradients of an inner step."""
        if self._decouple.reference == "none":
            return self._learn(batch, self._plain)
        columns: list[Tensor] = []  # found at the first inner step: refused batches cost no search

        def decoupled(objective: Tensor, q: Tensor) -> Direction:
            if not columns:
                columns.append(batch.neighbours(batch.source)[:, 0])
            return self._decoupled(objective, q, batch, columns[0])

        return self._learn(batch, decoupled)

    def _decoupled(self, objective: Tensor, q: Tensor, batch: Batch, columns: Tensor) -> Direction:
        general = loss_gen(q, batch.source, columns, self._settings.temperature, batch.mask)
        require_finite([general], "non-finite-loss")
        g = self._weights.gradient(objective, keep_graph=True)
        r = self._weights.gradient(general)
        require_finite([*g.values(), *r.values()], "non-finite-gradient")
        descent, angles = project(g, r, self._decouple.strength, self._decouple.granularity)
        if math.isnan(angles.degrees):
            r = {}  # at the source there is only rounding noise, and no angle with it is worth reporting
        return Direction(
            descent, r, angles.degrees, angles.removed_energy, {"general": float(general.detach())}
        )
