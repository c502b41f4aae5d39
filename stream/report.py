"""What a run did."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """What a run did."""

    queries: int = 0
    batches: int = 0
    dead_letters: int = 0
    judgements: int = 0
    checkpoints: int = 0
    recoveries: int = 0
    lanes: Mapping[str, str] = field(default_factory=dict)
    """State hash of each lane, by name, at the end."""
    unsaved: str = ""
    """Why a stopped run ended without a last checkpoint; the next one continues from the newest."""

    @property
    def state_sha256(self) -> str:
        """Of all lanes, by name."""
        text = "|".join(f"{name}={value}" for name, value in self.lanes.items())
        return hashlib.sha256(text.encode()).hexdigest()
