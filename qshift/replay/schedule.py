"""Schedules: phases of shifted queries, drawn from seeds, the same for the live demo and for replay.

Every query is drawn from a generator keyed by (run seed, phase, index, purpose): its bytes do not depend on
batch size, order of generation or process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from core.records import Coordinates, Record
from core.types import Modality

Order = Literal["random", "sorted"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the stream: `shifts` are drawn evenly, one per query; order by group if sorted."""

    name: str
    modality: Modality
    shifts: tuple[str, ...]
    queries: int
    order: Order = "random"


@dataclass(frozen=True, slots=True)
class Item:
    """One query to send: its message, and the label that arrives later."""

    phase: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    label: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """Phases and what makes their queries; `make(phase, index)` is a pure function."""

    phases: tuple[Phase, ...]
    make: Callable[[Phase, int], Item]

    def items(self, phase: Phase) -> Iterator[Item]:
        for index in range(phase.queries):
            yield self.make(phase, index)

    def records(self, topic: str) -> Iterator[tuple[Record, Item]]:
        """The whole stream as one partition's log."""
        offset = 0
        for phase in self.phases:
            for item in self.items(phase):
                yield Record(Coordinates(topic, 0, offset), item.value, None, item.headers), item
                offset += 1

    def within(self, phase: Phase) -> Callable[[Coordinates], bool]:
        """Whether a query belongs to a phase, by its offset."""
        return lambda at: self.phase_of(at.offset) == phase.name

    def phase_of(self, offset: int) -> str:
        for phase in self.phases:
            if offset < phase.queries:
                return phase.name
            offset -= phase.queries
        return ""


DEMO_SHIFTS: Sequence[tuple[str, Modality, tuple[str, ...]]] = (
    ("clean", "image", ("clean",)),
    ("noise", "image", ("noise",)),
    ("contrast", "image", ("contrast",)),
    ("sketch", "image", ("sketch",)),
    ("mixed users", "image", ("clean", "noise", "contrast", "sketch")),
    ("misspelt text", "text", ("misspelt",)),
    ("clean again", "image", ("clean",)),
)


def demo_phases(queries: int) -> tuple[Phase, ...]:
    """The seven phases of `qshift demo`."""
    return tuple(Phase(name, modality, shifts, queries) for name, modality, shifts in DEMO_SHIFTS)


def hash_answers(answers: dict[int, bytes]) -> str:
    """sha256 over the answers in the order of their queries."""
    sha = hashlib.sha256()
    for offset in sorted(answers):
        sha.update(answers[offset])
    return sha.hexdigest()
