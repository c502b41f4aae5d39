"""What stands in the log: records and their coordinates, labels, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import Stage

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True, order=True)
class Coordinates:
    """Where a record stands in the log: the identity of a query."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Record:
    """Raw bytes with their coordinates, as a source yields them and a sink takes them."""

    at: Coordinates
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """A late label: the relevance class of an earlier query, by that query's coordinates."""

    at: Coordinates
    query: Coordinates
    label: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record was not processed; becomes exactly one dead letter."""

    record: Record
    stage: Stage
    error: str
    reason: str
