"""The page's table of lanes: what each has answered, learned and refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.types import Outcome

LANES = 64


@dataclass(slots=True)
class _LaneRow:
    modality: str
    queries: int = 0
    updates: int = 0
    refused: int = 0
    resets: int = 0
    reason: str = ""
    source_distance: float = 0.0
    flip_share: float = math.nan
    state_hash: str = ""
    seq: int = 0


class LaneRows:
    """A row per lane; of more than 64 the one that was silent for longest goes."""

    def __init__(self) -> None:
        self._rows: dict[str, _LaneRow] = {}

    def add(self, outcome: Outcome) -> None:
        """Counts a batch of its lane."""
        name = outcome.batch.lane
        row = self._rows.pop(name, None) or _LaneRow(outcome.batch.modality)
        self._rows[name] = row
        while len(self._rows) > LANES:
            del self._rows[next(iter(self._rows))]
        row.queries += len(outcome.batch)
        row.seq, row.state_hash = outcome.batch.seq, outcome.state_hash
        flipped = (outcome.adapted.codes ^ outcome.frozen.codes)[outcome.paired]
        if len(flipped):
            row.flip_share = float(np.unpackbits(flipped).mean())
        step = outcome.step
        if step is not None:
            row.updates += step.updated
            row.refused += not step.updated
            row.resets += step.rolled_back
            row.reason = step.reason or row.reason  # the newest refusal stays readable
            row.source_distance = step.diagnostics.get("source_distance", 0.0)

    def shown(self) -> list[dict[str, Any]]:
        """Rows by name."""
        return [
            {"lane": name, **{slot: getattr(row, slot) for slot in _LaneRow.__slots__}}
            for name, row in sorted(self._rows.items())
        ]
