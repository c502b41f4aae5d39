"""The journal of batch boundaries in a topic: of two boundaries of one batch the first counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from core.checkpoints import JournalEntry
from core.errors import ArtifactError, DeliveryError
from core.records import Partition
from stream.states import entry_from_bytes, entry_to_bytes, settled
from stream.topic_log import TopicLog

log = logging.getLogger("qshift.changelog")


@dataclass(slots=True)
class _Known:
    """What is known of one partition's journal."""

    end: int | None = None
    """Offset at which the next entry belongs, if nobody else writes."""
    open: dict[tuple[str, int], int] = field(default_factory=dict)
    """(lane, seq) -> first offset, of entries that no checkpoint covers yet."""
    start: int = 0
    """Where reading may begin for whoever has the loaded checkpoint..."""
    covered: Mapping[str, int] = field(default_factory=dict)
    """... which are those that ask for nothing before these seq, by lane."""


class Journal:
    """The journals of several partitions, in the partitions of one topic."""

    def __init__(self, records: TopicLog, topic: str) -> None:
        self._log, self._topic = records, topic
        self._known: dict[Partition, _Known] = {}
        self._unreadable = 0

    def loaded(self, partition: Partition, start: int = 0, covered: Mapping[str, int] | None = None) -> None:
        """A checkpoint was loaded that covers these seq by lane, and needs the journal from `start` on."""
        self._known[partition] = _Known(start=start, covered=covered or {})

    def needed(self, partition: Partition, covered: Mapping[str, int]) -> int:
        """Where reading may begin for whoever has a checkpoint that covers these seq."""
        known = self._of(partition)
        # Without having read the journal we cannot know where the entries that matter begin.
        return 0 if known.end is None else min([known.end, *_open(known, covered).values()])

    def saved(self, partition: Partition, covered: Mapping[str, int]) -> None:
        """A checkpoint that covers these seq is durable."""
        known = self._of(partition)
        known.open = _open(known, covered)

    def append(self, entry: JournalEntry) -> None:
        """Sends a boundary and waits for the acknowledgement.

        Raises:
            DeliveryError: not acknowledged in time; or acknowledged behind another boundary of the same batch
                (by a zombie, or by an attempt of ours that was given up and arrived all the same), which
                counts instead: load the newest checkpoint and obey the journal.
        """
        partition = (entry.topic, entry.partition)
        known = self._of(partition)
        key = f"{entry.lane}/{entry.seq}".encode()
        (offset,) = self._log.append(self._topic, entry.partition, [(key, entry_to_bytes(entry))])
        if known.end is None:  # nobody has asked for the journal
            return
        # A repeated attempt may be acknowledged without an offset (-1): then we look, too.
        expected, known.end = known.end, offset + 1 if offset >= 0 else None
        if offset != expected and not self._log.fenced:
            self._check_first(entry, expected)
        known.open.setdefault((entry.lane, entry.seq), offset)

    def _check_first(self, entry: JournalEntry, start: int) -> None:
        for _, other in self._entries((entry.topic, entry.partition), start):
            if other == entry:
                return
            if (other.lane, other.seq) == (entry.lane, entry.seq) and other.generation >= entry.generation:
                raise DeliveryError(
                    f"batch {entry.seq} of lane {entry.lane} already has another boundary in the journal "
                    f"(generation {other.generation}): continue from the newest checkpoint"
                )

    def entries(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        """Entries with seq >= since[lane], oldest first, one per (lane, seq).

        Raises:
            ArtifactError: the journal ends before the loaded checkpoint.
            DeliveryError: it could not be read in time.
        """
        known = self._of(partition)
        covered = bool(known.covered) and all(since.get(lane, 0) >= n for lane, n in known.covered.items())
        known.end, known.open, entries = known.start if covered else 0, {}, []
        for offset, entry in self._entries(partition, known.end):
            known.end = offset + 1
            if entry.seq >= since.get(entry.lane, 0):
                known.open.setdefault((entry.lane, entry.seq), offset)
            entries.append(entry)
        return settled(entries, since)

    def _entries(self, partition: Partition, start: int) -> Iterator[tuple[int, JournalEntry]]:
        """Offsets and entries of a partition up to the present end."""
        for offset, _, value in self._log.read(self._topic, partition[1], start):
            try:
                entry = entry_from_bytes(value or b"")
            except ArtifactError as error:
                self._unreadable += 1
                log.error(
                    "journal record skipped: it cannot be read",
                    extra={
                        "topic": self._topic, "partition": partition[1], "offset": offset,
                        "skipped": self._unreadable, "error": str(error),
                    },
                )  # fmt: skip
                continue
            if (entry.topic, entry.partition) == partition:
                yield offset, entry

    def _of(self, partition: Partition) -> _Known:
        return self._known.setdefault(partition, _Known())


def _open(known: _Known, covered: Mapping[str, int]) -> dict[tuple[str, int], int]:
    return {at: offset for at, offset in known.open.items() if at[1] >= covered.get(at[0], 0)}
