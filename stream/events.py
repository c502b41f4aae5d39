"""What happens to a run itself. Whoever is told never touches the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.commands import Obeyed
from stream.lanes import Lane


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint has become durable."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A partition continues from its newest checkpoint."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Rebalanced:
    """Other partitions are ours now."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A delivery failed: the run goes back to its newest checkpoints."""


@dataclass(frozen=True, slots=True)
class Delivering:
    """Deliveries begin to fail (False), or succeed again (True)."""

    succeeds: bool


@dataclass(frozen=True, slots=True)
class LanesChanged:
    """There are other lanes; these are all of them, live."""

    lanes: Sequence[Lane]


@dataclass(frozen=True, slots=True)
class Commanded:
    """A lane has obeyed a command, or refused it."""

    obeyed: Obeyed


Event = Saved | Restored | Rebalanced | Recovered | Delivering | LanesChanged | Commanded
Tell = Callable[[Event], None]


def nobody(_: Event) -> None:
    """Is told of nothing."""
