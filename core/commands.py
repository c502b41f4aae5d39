"""What an operator asks of lanes, as it stands in the log, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.records import Coordinates

Action = Literal["freeze", "unfreeze", "reset", "rollback", "checkpoint", "method", "w", "swap-gallery"]
Result = Literal["applied", "refused"]
STANDING: dict[Action, str] = {
    "freeze": "freeze", "unfreeze": "freeze", "method": "method", "w": "w", "swap-gallery": "swap-gallery",
}  # fmt: skip
"""Commands that hold from now on, also for lanes to come: action -> what it sets. Others happen once."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Without `lane` and `tenant` it is for all lanes.

    Of the arguments an action has its own: `steps` or `state` of a rollback, `method`, `weight` (None: no
    bound) and `gallery`, a version, "" for the newest.
    """

    at: Coordinates
    action: Action
    author: str
    lane: str = ""
    tenant: str = ""
    base: str = ""
    """Base model that it is meant for, the beginning of its version; "" for any."""
    steps: int = 1
    state: str = ""
    method: str = ""
    weight: float | None = None
    gallery: str = ""

    def concerns(self, lane: str) -> bool:
        """Whether it is for the lane of this name."""
        if self.lane:
            return lane == self.lane
        return not self.tenant or lane.split(":", 2)[2:] == [self.tenant]


@dataclass(frozen=True, slots=True)
class Obeyed:
    """What became of a command in one lane, at boundary `seq`.

    `lane` is "" where a partition has none that it is for; `state` the lane's hash behind the boundary;
    `repeated` says that the journal had it already.
    """

    command: Command
    lane: str
    seq: int
    result: Result
    reason: str
    state: str
    repeated: bool
