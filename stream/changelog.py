"""A state store on two Kafka topics: cuts on a compacted one, batch boundaries on one that is kept.

A cut is sent as chunks, and after their acknowledgement a manifest with their sizes and sha256: a reader
that finds no manifest, or one that does not fit its chunks, has met a torn write and takes the other slot.
Keys are `topic/partition/generation/slot/chunk`. The generation is in the key because compaction keeps the
last record of a key: a zombie's late write would otherwise erase the cut of the partition's new owner.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from core.config import KafkaConfig
from core.errors import ArtifactError, DeliveryError
from core.types import Cut, JournalEntry, Partition
from stream.states import canonical, cut_from_bytes, cut_to_bytes, entry_from_bytes, entry_to_bytes, settled

log = logging.getLogger("qshift.changelog")
T = TypeVar("T")

CHUNK_BYTES = 900_000
"""Kafka and its clients take about 1 MiB per message unless told otherwise."""
RETRY_SECONDS = 60.0
BACKOFF_SECONDS = (0.1, 2.0)
"""First and longest pause between attempts."""
STATE_SETTINGS = {
    "cleanup.policy": "compact",
    # The active segment is never compacted, and a restore reads all of it.
    "segment.bytes": str(64 << 20),
    "min.cleanable.dirty.ratio": "0.1",
}
JOURNAL_SETTINGS = {"cleanup.policy": "delete", "retention.ms": "-1"}
MANIFEST = "manifest"


@dataclass(slots=True)
class _Known:
    """What this store has learned about one partition."""

    end: int | None = None
    """Offset of the journal at which the next entry belongs, if nobody else writes."""
    open: dict[tuple[str, int], int] = field(default_factory=dict)
    """(lane, seq) -> first offset in the journal, of entries that no cut covers yet."""
    start: int = 0
    """Where reading the journal may begin for whoever has the loaded cut..."""
    covered: dict[str, int] = field(default_factory=dict)
    """... which are those that ask for nothing before these seq, by lane."""
    stale: list[tuple[int, bytes]] = field(default_factory=list)
    """(generation, key) of every record seen in the state topic."""
    saves: int = 0


class ChangelogStore:
    """Cuts and journal in Kafka. State and journal have as many partitions as the queries.

    Args:
        bootstrap_servers: host:port of any broker of the cluster.
        kafka: names of the topics, and how long one delivery may take.
        retry_seconds: how long a broker may be away before a call gives up.
    """

    def __init__(
        self, bootstrap_servers: str, kafka: KafkaConfig, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._servers, self._kafka, self._retry_seconds = bootstrap_servers, kafka, retry_seconds
        self._producer: Any = None
        self._known: dict[Partition, _Known] = {}

    @staticmethod
    def topic_configs(kafka: KafkaConfig) -> dict[str, dict[str, str]]:
        """How the two topics have to be kept, by name."""
        return {kafka.state: STATE_SETTINGS, kafka.journal: JOURNAL_SETTINGS}

    # -- cuts -------------------------------------------------------------------------------------------

    def save(self, cut: Cut) -> None:
        """1 chunks acknowledged, 2 manifest acknowledged, 3 what nobody needs any more erased.

        Raises:
            DeliveryError: not acknowledged in time; the cut may or may not be there.
        """
        known = self._known.setdefault((cut.topic, cut.partition), _Known())
        blob, place = cut_to_bytes(cut), f"{cut.topic}/{cut.partition}/{cut.generation}/{cut.seq % 2}"
        chunks = [blob[at : at + CHUNK_BYTES] for at in range(0, len(blob), CHUNK_BYTES)]
        covered = {lane.lane: lane.next_seq for lane in cut.lanes}
        still_open = {at: offset for at, offset in known.open.items() if at[1] >= covered.get(at[0], 0)}
        # Without having read the journal we cannot know where the entries that matter begin.
        journal = 0 if known.end is None else min([known.end, *still_open.values()])
        manifest = {
            "seq": cut.seq,
            "generation": cut.generation,
            "journal_offset": journal,
            "chunks": [{"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for c in chunks],
        }
        keyed = [(f"{place}/{number}".encode(), chunk) for number, chunk in enumerate(chunks)]
        self._deliver(self._kafka.state, cut.partition, keyed)
        self._deliver(
            self._kafka.state, cut.partition, [(f"{place}/{MANIFEST}".encode(), canonical(manifest))]
        )
        known.open, known.saves = still_open, known.saves + 1
        if known.saves == 2:  # both slots are whole and ours
            old = [key for generation, key in known.stale if generation < cut.generation]
            self._deliver(self._kafka.state, cut.partition, [(key, None) for key in old])

    def load(self, partition: Partition) -> Cut | None:
        """As promised by the protocol. A first cut that was torn counts as never written.

        Raises:
            ArtifactError: there are finished cuts and none is whole.
            DeliveryError: the topic could not be read in time.
        """
        records: dict[str, bytes] = {}
        for _, key, value in self._read(self._kafka.state, partition[1], 0):
            name = (key or b"").decode(errors="replace")
            if value is None:
                records.pop(name, None)
            elif name.startswith(f"{partition[0]}/{partition[1]}/"):
                records[name] = value
        finished = [name for name in records if name.endswith(f"/{MANIFEST}")]
        whole = []
        for name in finished:
            try:
                whole.append(_assemble(records, name.removesuffix(MANIFEST)))
            except (ArtifactError, ValueError, KeyError, TypeError) as error:
                log.warning("cut skipped", extra={"key": name, "error": str(error)})
        if finished and not whole:
            raise ArtifactError(
                f"none of the {len(finished)} cuts of {partition[0]}/{partition[1]} in the topic "
                f"{self._kafka.state} is whole: name another state topic to start from the base model"
            )
        known = self._known[partition] = _Known()
        known.stale = [(int(name.split("/")[2]), name.encode()) for name in records]
        if not whole:
            return None
        cut, known.start = max(whole, key=lambda found: (found[0].generation, found[0].seq))
        known.covered = {lane.lane: lane.next_seq for lane in cut.lanes}
        return cut

    # -- journal ----------------------------------------------------------------------------------------

    def journal(self, entry: JournalEntry) -> None:
        """Sends a boundary and waits for the acknowledgement.

        Raises:
            DeliveryError: not acknowledged in time; or acknowledged behind another boundary of the same batch
                (by a zombie, or by an attempt of ours that was given up and arrived all the same), which
                counts instead: load the newest cut and obey the journal.
        """
        partition = (entry.topic, entry.partition)
        known = self._known.setdefault(partition, _Known())
        key = f"{entry.lane}/{entry.seq}".encode()
        (offset,) = self._deliver(self._kafka.journal, entry.partition, [(key, entry_to_bytes(entry))])
        expected, known.end = known.end, offset + 1
        if expected is not None and offset != expected:
            for other in self._entries(partition, expected, offset):
                rival = (other.lane, other.seq) == (entry.lane, entry.seq) and other != entry
                if rival and other.generation >= entry.generation:
                    raise DeliveryError(
                        f"batch {entry.seq} of lane {entry.lane} already has another boundary in the journal "
                        f"(generation {other.generation}): continue from the newest cut"
                    )
        known.open.setdefault((entry.lane, entry.seq), offset)

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        """As promised by the protocol. Raises DeliveryError when the journal could not be read in time."""
        known = self._known.setdefault(partition, _Known())
        covered = bool(known.covered) and all(since.get(lane, 0) >= n for lane, n in known.covered.items())
        known.end, known.open = None, {}
        entries = list(self._entries(partition, known.start if covered else 0))
        return settled(entries, since)

    def close(self) -> None:
        self._discard()

    # -- pieces -----------------------------------------------------------------------------------------
