"""In-memory source and sink: the same loop without Kafka, for replay, tests and crashes as test input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from core.protocols import Channel
from core.records import Coordinates, Partition, Record


class Crash(Exception):
    """Raised by MemorySource where its events say so: a crash is an element of the test input."""


class MemorySource:
    """Records in the order given. A `Crash` among them is raised once, when it is reached.

    Args:
        events: records of any topic, and crashes.
        queries: names of the topics whose partitions count as assigned.
        step: most records per poll.
    """

    def __init__(self, events: Iterable[Record | Crash], queries: Sequence[str], step: int = 256) -> None:
        self._events = list(events)
        self._step = step
        self._next = 0
        self._paused = False
        self._floor: dict[Partition, int] = {}
        self.commits: dict[Partition, tuple[int, str]] = {}
        self._partitions = frozenset(
            (e.at.topic, e.at.partition)
            for e in self._events
            if isinstance(e, Record) and e.at.topic in queries
        )

    def poll(self, budget_seconds: float) -> list[Record]:
        records: list[Record] = []
        while not self._paused and self._next < len(self._events) and len(records) < self._step:
            event = self._events[self._next]
            if isinstance(event, Crash):
                if records:
                    break
                self._events.pop(self._next)
                raise event
            self._next += 1
            if event.at.offset >= self._floor.get((event.at.topic, event.at.partition), 0):
                records.append(event)
        return records

    def assignment(self) -> frozenset[Partition]:
        return self._partitions

    def seek(self, partition: Partition, offset: int) -> None:
        """Reads the list again from its start and leaves out what the partition has covered."""
        self._floor[partition] = offset
        self._next = 0

    def pause(self, paused: bool) -> None:
        self._paused = paused

    def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
        self.commits.update({partition: (offset, metadata) for partition, offset in offsets.items()})

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        """Nobody else reads: it is a commit, as it is with Kafka."""
        self.commits.update({place: (at, metadata) for place, at in offsets.items() if at is not None})

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        return self.commits.get(partition)

    def lag(self) -> Mapping[Partition, int]:
        return {}

    def log_id(self) -> str:
        return ""

    def generation(self) -> int:
        return 0

    @property
    def exhausted(self) -> bool:
        return self._next >= len(self._events)

    def close(self) -> None:
        """Nothing is held."""


class MemorySink:
    """Keeps what it is given, by channel."""

    def __init__(self) -> None:
        self.records: dict[Channel, list[Record]] = defaultdict(list)

    def send(
        self, channel: Channel, value: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        at = Coordinates(channel, 0, len(self.records[channel]))
        self.records[channel].append(Record(at, value, key, tuple(headers)))

    def flush(self, budget_seconds: float) -> None:
        """Everything is durable as far as it goes."""

    def close(self) -> None:
        """Nothing is held."""
