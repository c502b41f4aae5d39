"""Topics read piece by piece, so that memory does not grow with a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from core.records import Record

Ranges = Mapping[int, tuple[int, int]]
"""Partition -> (first offset, the one after the last)."""
Progress = Callable[[int, int, str], None]
"""(done, total, what)."""
WINDOW = 4096
"""Offsets that are read at once."""


class Log(Protocol):
    """Where recordings lie: `stream.recording.KafkaLog`, or a list in tests."""

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> (first offset, the one after the last); {} for a topic that does not exist."""

    def at_time(self, topic: str, time_ms: int) -> dict[int, int | None]:
        """Partition -> the first offset with a timestamp of at least `time_ms`; None where there is none."""

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        """Records of each partition from its first offset up to before its second, by place."""


def nobody(_done: int, _total: int, _what: str) -> None:
    """Shows no progress."""


def windows(log: Log, topic: str, ranges: Ranges, progress: Progress = nobody) -> Iterator[Record]:
    """The records of some partitions, one partition after the other, each in its own order."""
    total, done = sum(end - start for start, end in ranges.values()), 0
    for number, (start, end) in sorted(ranges.items()):
        for low in range(start, end, WINDOW):
            high = min(low + WINDOW, end)
            yield from log.read(topic, {number: (low, high)})
            done += high - low
            progress(done, total, topic)
