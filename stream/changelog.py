"""A state store on two Kafka topics: checkpoints on a compacted one, batch boundaries on one that is kept.

A checkpoint is sent as chunks, and after their acknowledgement a manifest with their sizes and sha256: a
reader that finds no manifest, or one that does not fit its chunks, has met a torn write and takes the other
slot.
Keys are `topic/partition/generation/slot/chunk`. The generation is in the key because compaction keeps the
last record of a key: a zombie's late write would otherwise erase the checkpoint of the partition's new owner.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError
from kafka.net.compat import KafkaNetClient

from core.checkpoints import Checkpoint, JournalEntry
from core.config import KafkaConfig
from core.errors import ArtifactError, DeliveryError
from core.types import Partition
from stream.contradictions import ANEW
from stream.patience import Backoff, Patience
from stream.records import tolerant
from stream.states import (
    canonical,
    checkpoint_from_bytes,
    checkpoint_to_bytes,
    entry_from_bytes,
    entry_to_bytes,
    manifest_from_bytes,
    settled,
)

log = logging.getLogger("qshift.changelog")

CHUNK_BYTES = 900_000
"""Kafka and its clients take about 1 MiB per message unless told otherwise."""
RETRY_SECONDS = 60.0
CONNECT_SECONDS = 5.0
"""Of one attempt; a stop has to wait for it."""
LOOK_SECONDS = 0.5
"""How often a call that waits looks whether it is to hurry."""
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
OURS = re.compile(rf".+/[0-9]+/(-?[0-9]{{1,19}})/[01]/(?:[0-9]+|{MANIFEST})", re.DOTALL)
"""Keys of the state topic: topic, partition, generation, slot, and which chunk or the manifest."""
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


@dataclass(slots=True)
class _Known:
    """What this store has learned about one partition."""

    end: int | None = None
    """Offset of the journal at which the next entry belongs, if nobody else writes."""
    open: dict[tuple[str, int], int] = field(default_factory=dict)
    """(lane, seq) -> first offset in the journal, of entries that no checkpoint covers yet."""
    start: int = 0
    """Where reading the journal may begin for whoever has the loaded checkpoint..."""
    covered: dict[str, int] = field(default_factory=dict)
    """... which are those that ask for nothing before these seq, by lane."""
    stale: list[tuple[int, bytes]] = field(default_factory=list)
    """(generation, key) of every record seen in the state topic."""
    saves: int = 0


class ChangelogStore:
    """Checkpoints and journal in Kafka. State and journal have as many partitions as the queries.

    Args:
        bootstrap_servers: host:port of any broker of the cluster.
        kafka: names of the topics, and how long one delivery may take.
        retry_seconds: how long a broker may be away before a call gives up.
        hurry: once it is set, calls give up soon.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        kafka: KafkaConfig,
        retry_seconds: float = RETRY_SECONDS,
        hurry: threading.Event | None = None,
    ) -> None:
        self._servers, self._kafka, self._retry_seconds = bootstrap_servers, kafka, retry_seconds
        self._hurry = hurry
        self._producer: Any = None
        self._known: dict[Partition, _Known] = {}
        self._unreadable = 0

    @staticmethod
    def topic_configs(kafka: KafkaConfig) -> dict[str, dict[str, str]]:
        """How the two topics have to be kept, by name."""
        return {kafka.state: STATE_SETTINGS, kafka.journal: JOURNAL_SETTINGS}

    @property
    def place(self) -> str:
        return f"the topic {self._kafka.state}"

    # -- checkpoints ------------------------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint) -> None:
        """1 chunks acknowledged, 2 manifest acknowledged, 3 what nobody needs any more erased.

        Raises:
            DeliveryError: not acknowledged in time; the checkpoint may or may not be there.
        """
        known = self._known.setdefault((checkpoint.topic, checkpoint.partition), _Known())
        blob, place = (
            checkpoint_to_bytes(checkpoint),
            f"{checkpoint.topic}/{checkpoint.partition}/{checkpoint.generation}/{checkpoint.seq % 2}",
        )
        chunks = [blob[at : at + CHUNK_BYTES] for at in range(0, len(blob), CHUNK_BYTES)]
        covered = {lane.lane: lane.next_seq for lane in checkpoint.lanes}
        still_open = {at: offset for at, offset in known.open.items() if at[1] >= covered.get(at[0], 0)}
        # Without having read the journal we cannot know where the entries that matter begin.
        journal = 0 if known.end is None else min([known.end, *still_open.values()])
        manifest = {
            "seq": checkpoint.seq,
            "generation": checkpoint.generation,
            "journal_offset": journal,
            "chunks": [{"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for c in chunks],
        }
        keyed = [(f"{place}/{number}".encode(), chunk) for number, chunk in enumerate(chunks)]
        self._deliver(self._kafka.state, checkpoint.partition, keyed)
        self._deliver(
            self._kafka.state, checkpoint.partition, [(f"{place}/{MANIFEST}".encode(), canonical(manifest))]
        )
        known.open, known.saves = still_open, known.saves + 1
        if known.saves == 2:  # both slots are whole and ours
            old = [key for generation, key in known.stale if generation < checkpoint.generation]
            self._deliver(self._kafka.state, checkpoint.partition, [(key, None) for key in old])

    def load(self, partition: Partition) -> Checkpoint | None:
        """As promised by the protocol. A first checkpoint that was torn counts as never written.

        Raises:
            ArtifactError: there are finished checkpoints and none is whole.
            DeliveryError: the topic could not be read in time.
        """
        records: dict[str, bytes] = {}
        for _, key, value in self._read(self._kafka.state, partition[1], 0):
            name = (key or b"").decode(errors="replace")
            if value is None:
                records.pop(name, None)
            elif name.startswith(f"{partition[0]}/{partition[1]}/"):
                records[name] = value
        finished = [name for name in records if OURS.fullmatch(name) and name.endswith(f"/{MANIFEST}")]
        whole = []
        for name in finished:
            try:
                whole.append(_assemble(records, name.removesuffix(MANIFEST)))
            except ArtifactError as error:
                log.warning("checkpoint skipped", extra={"key": name, "error": str(error)})
        if finished and not whole:
            raise ArtifactError(
                f"none of the {len(finished)} checkpoints of {partition[0]}/{partition[1]} in the topic "
                f"{self._kafka.state} is whole: name another state topic to start from the base model"
            )
        known = self._known[partition] = _Known()
        # A key that is none of ours is nobody's to erase.
        known.stale = [(int(found[1]), name.encode()) for name in records if (found := OURS.fullmatch(name))]
        if not whole:
            return None
        checkpoint, known.start = max(whole, key=lambda found: (found[0].generation, found[0].seq))
        known.covered = {lane.lane: lane.next_seq for lane in checkpoint.lanes}
        return checkpoint

    # -- journal ----------------------------------------------------------------------------------------

    def journal(self, entry: JournalEntry) -> None:
        """Sends a boundary and waits for the acknowledgement.

        Raises:
            DeliveryError: not acknowledged in time; or acknowledged behind another boundary of the same batch
                (by a zombie, or by an attempt of ours that was given up and arrived all the same), which
                counts instead: load the newest checkpoint and obey the journal.
        """
        partition = (entry.topic, entry.partition)
        known = self._known.setdefault(partition, _Known())
        key = f"{entry.lane}/{entry.seq}".encode()
        (offset,) = self._deliver(self._kafka.journal, entry.partition, [(key, entry_to_bytes(entry))])
        if known.end is None:  # nobody has asked for the journal
            return
        # A repeated attempt may be acknowledged without an offset (-1): then we look, too.
        expected, known.end = known.end, offset + 1 if offset >= 0 else None
        if offset != expected:
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

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        """As promised by the protocol. Raises DeliveryError when the journal could not be read in time."""
        known = self._known.setdefault(partition, _Known())
        covered = bool(known.covered) and all(since.get(lane, 0) >= n for lane, n in known.covered.items())
        known.end, known.open, entries = known.start if covered else 0, {}, []
        for offset, entry in self._entries(partition, known.end):
            known.end = offset + 1
            if entry.seq >= since.get(entry.lane, 0):
                known.open.setdefault((entry.lane, entry.seq), offset)
            entries.append(entry)
        return settled(entries, since)

    def close(self) -> None:
        self._discard()

    # -- pieces -----------------------------------------------------------------------------------------

    def _entries(self, partition: Partition, start: int) -> Iterator[tuple[int, JournalEntry]]:
        """Offsets and entries of a partition up to the present end."""
        for offset, _, value in self._read(self._kafka.journal, partition[1], start):
            try:
                entry = entry_from_bytes(value or b"")
            except ArtifactError as error:
                self._unreadable += 1
                log.error(
                    "journal record skipped: it cannot be read",
                    extra={
                        "topic": self._kafka.journal, "partition": partition[1], "offset": offset,
                        "skipped": self._unreadable, "error": str(error),
                    },
                )  # fmt: skip
                continue
            if (entry.topic, entry.partition) == partition:
                yield offset, entry

    def _deliver(self, topic: str, partition: int, keyed: Sequence[tuple[bytes, bytes | None]]) -> list[int]:
        """Offsets of the records, all acknowledged. Raises DeliveryError after `retry_seconds`."""
        attempts = _Attempts(self._retry_seconds, self._hurry)
        while True:
            try:
                producer = self._open_producer()
                sent = [producer.send(topic, value=v, key=k, partition=partition) for k, v in keyed]
                return [_offset(future, attempts) for future in sent]
            except (KafkaError, OSError, ValueError) as error:  # ValueError: no such partition
                # Idempotence ends with a producer's error: a new one starts clean, at the price of a copy.
                self._discard()
                if isinstance(error, TOO_LARGE) or not attempts.again(error, topic):
                    raise DeliveryError(
                        f"{topic}/{partition} did not acknowledge {len(keyed)} records within "
                        f"{self._retry_seconds:.0f} s: {error}; is Kafka up, and does the topic exist?"
                    ) from error

    def _read(
        self, topic: str, partition: int, start: int
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """(offset, key, value) up to the present end.

        Raises:
            ArtifactError: the log ends before `start`, where it once was.
            DeliveryError: after a silence.
        """
        at, end, position = TopicPartition(topic, partition), None, start
        attempts = _Attempts(self._retry_seconds, self._hurry)
        limit_ms = int(1000 * min(CONNECT_SECONDS, self._retry_seconds))
        while True:
            reader: Any = None
            try:
                reader = _connected(
                    KafkaConsumer,
                    bootstrap_servers=self._servers, group_id=None, enable_auto_commit=False,
                    auto_offset_reset="earliest", allow_auto_create_topics=False, fetch_max_wait_ms=50,
                    max_partition_fetch_bytes=8 << 20, reconnect_backoff_max_ms=1000,
                    request_timeout_ms=limit_ms, bootstrap_timeout_ms=limit_ms,
                )  # fmt: skip
                tolerant(reader).assign([at])
                end = reader.end_offsets([at])[at] if end is None else end
                if position > end:
                    raise ArtifactError(
                        f"the topic {topic} was made anew: it ends at {end}, and the newest checkpoint was "
                        f"made at {position} of the old one, so what came after it is gone: {ANEW}"
                    )
                reader.seek(at, position)
                while position < end:
                    before = position
                    for record in reader.poll(timeout_ms=500).get(at, []):
                        yield record.offset, record.key, record.value
                        position = record.offset + 1
                    # Compaction leaves holes, at the end of the log too.
                    position = max(position, reader.position(at))
                    if position > before:
                        attempts = _Attempts(self._retry_seconds, self._hurry)
                    elif attempts.left() <= 0:
                        raise KafkaTimeoutError(f"nothing came at offset {position}, {end} is the end")
                return
            except (KafkaError, OSError) as error:
                if not attempts.again(error, topic):
                    raise DeliveryError(
                        f"{topic}/{partition} could not be read within {self._retry_seconds:.0f} s: {error}; "
                        "is Kafka up, and does the topic exist?"
                    ) from error
            finally:
                if reader is not None:
                    reader.close()

    def warm_up(self) -> None:
        """Connects the producer to its topics, which the first batch would wait for."""
        producer = self._open_producer()
        for topic in (self._kafka.state, self._kafka.journal):
            producer.partitions_for(topic)

    def _open_producer(self) -> Any:
        if self._producer is None:
            limit_ms = int(1000 * min(self._kafka.delivery_timeout_seconds, self._retry_seconds))
            self._producer = _connected(
                KafkaProducer,
                bootstrap_servers=self._servers, acks="all", enable_idempotence=True,
                allow_auto_create_topics=False, delivery_timeout_ms=limit_ms,
                request_timeout_ms=min(10_000, limit_ms),
                max_block_ms=min(int(1000 * CONNECT_SECONDS), limit_ms),
                bootstrap_timeout_ms=min(int(1000 * CONNECT_SECONDS), limit_ms),
                reconnect_backoff_max_ms=1000,
            )  # fmt: skip
        return self._producer

    def _discard(self) -> None:
        """Drops the producer together with whatever it has not sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            # close() alone first waits for a flush, and leaves the thread sending when that fails.
            producer._sender.force_close()
            with suppress(KafkaError):
                producer.close(timeout=5)


def _connected(kind: Any, **options: Any) -> Any:
    """A client of Kafka. One that cannot connect raises, and would leave its thread and sockets behind."""
    opened: list[Any] = []

    def client(**config: Any) -> Any:
        opened.append(KafkaNetClient(**config))
        return opened[-1]

    try:
        return kind(kafka_client=client, **options)
    except KafkaError:
        for one in opened:
            one.close()
        raise


class _Attempts(Patience):
    """Time and pauses of one call."""

    def __init__(self, seconds: float, hurry: threading.Event | None) -> None:
        super().__init__(seconds, hurry)
        self._backoff = Backoff(*BACKOFF_SECONDS)

    def again(self, error: Exception, topic: str) -> bool:
        """Waits before the next attempt; False when the time is up."""
        if self.left() <= 0:
            return False
        log.warning("Kafka failed, trying again", extra={"topic": topic, "error": str(error)})
        self.pause(self._backoff.next())
        return True


def _offset(future: Any, attempts: Patience) -> int:
    """Where a record was stored. Raises KafkaError when it was not, or the time is up."""
    while True:
        try:
            return int(future.get(timeout=min(LOOK_SECONDS, attempts.left())).offset)
        except KafkaTimeoutError:
            if future.is_done or attempts.left() <= 0:
                raise


def _assemble(records: Mapping[str, bytes], place: str) -> tuple[Checkpoint, int]:
    """The checkpoint under a key's first parts, and where its journal begins. Raises if it is not whole."""
    manifest = manifest_from_bytes(records[f"{place}{MANIFEST}"])
    chunks = []
    for number, expected in enumerate(manifest.chunks):
        chunk = records.get(f"{place}{number}", b"")
        if len(chunk) != expected.bytes or hashlib.sha256(chunk).hexdigest() != expected.sha256:
            raise ArtifactError(
                f"chunk {number} of {place} is missing or of another checkpoint: the write was torn"
            )
        chunks.append(chunk)
    checkpoint = checkpoint_from_bytes(b"".join(chunks))
    if f"{checkpoint.topic}/{checkpoint.partition}/{checkpoint.generation}/{checkpoint.seq % 2}/" != place:
        raise ArtifactError(f"the checkpoint at {place} says that it belongs elsewhere")
    return checkpoint, manifest.journal_offset
