"""A state store on two Kafka topics: checkpoints on a compacted one, batch boundaries on one that is kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.checkpoints import Checkpoint, JournalEntry, LaneRecord, LaneState
from core.config import KafkaConfig
from core.errors import ArtifactError
from core.records import Partition
from stream.chunks import generations, join, manifests, split
from stream.journal import Journal
from stream.lane_topic import LaneTopic
from stream.topic_log import TopicLog
from stream.transaction import Transaction, TransactionLog

log = logging.getLogger("qshift.changelog")

RETRY_SECONDS = 60.0
STATE_SETTINGS = {
    "cleanup.policy": "compact",
    # The active segment is never compacted, and a restore reads all of it.
    "segment.bytes": str(64 << 20),
    "min.cleanable.dirty.ratio": "0.1",
}
JOURNAL_SETTINGS = {"cleanup.policy": "delete", "retention.ms": "-1"}


@dataclass(slots=True)
class _Written:
    """What this store knows of one partition's records in the state topic."""

    stale: list[tuple[int, bytes]] = field(default_factory=list)
    """(generation, key) of every record seen."""
    slots: dict[int, frozenset[bytes]] = field(default_factory=dict)
    """Keys of what it has saved last in either slot."""
    saves: int = 0


class ChangelogStore:
    """Checkpoints and journal in Kafka. State and journal have as many partitions as the queries.

    Args:
        bootstrap_servers: host:port of any broker of the cluster.
        kafka: names of the topics, and how long one delivery may take.
        retry_seconds: how long a broker may be away before a call gives up.
        hurry: once it is set, calls give up soon.
        transaction: what checkpoints and journal are part of; None: each is durable by itself.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        kafka: KafkaConfig,
        retry_seconds: float = RETRY_SECONDS,
        hurry: threading.Event | None = None,
        transaction: Transaction | None = None,
    ) -> None:
        self._kafka = kafka
        of_the_log = (bootstrap_servers, kafka.delivery_timeout_seconds, retry_seconds, hurry)
        self._beside: TopicLog | None = None
        if transaction is None:
            self._log = TopicLog(*of_the_log, kafka.security)
        else:
            self._log = TransactionLog(transaction, *of_the_log, kafka.security)
            # Records of lanes are fetched before they are committed. They count when a checkpoint names them.
            self._beside = TopicLog(*of_the_log, kafka.security, "read_uncommitted")
        self._journal = Journal(self._log, kafka.journal)
        self._written: dict[Partition, _Written] = {}
        self._lanes = LaneTopic(lambda: self._beside or self._log, kafka.state)

    @staticmethod
    def topic_configs(kafka: KafkaConfig) -> dict[str, dict[str, str]]:
        """How the two topics have to be kept, by name."""
        return {kafka.state: STATE_SETTINGS, kafka.journal: JOURNAL_SETTINGS}

    @property
    def place(self) -> str:
        return f"the topic {self._kafka.state}"

    def warm_up(self) -> None:
        """Connects to the topics, which the first batch would wait for."""
        if not self._log.fenced:
            self._log.connect((self._kafka.state, self._kafka.journal))

    def save(self, checkpoint: Checkpoint) -> None:
        """1 chunks acknowledged, 2 manifest acknowledged, 3 what nobody needs any more erased.

        Raises:
            DeliveryError: not acknowledged in time; the checkpoint may or may not be there.
        """
        at, state = (checkpoint.topic, checkpoint.partition), self._kafka.state
        written = self._written.setdefault(at, _Written())
        covered = checkpoint.covered
        chunks, manifest = split(checkpoint, self._journal.needed(at, covered))
        keys, slot = frozenset(key for key, _ in (*chunks, manifest)), checkpoint.seq % 2
        gone = sorted(written.slots.get(slot, frozenset()) - keys)
        self._log.append(state, checkpoint.partition, chunks)
        self._log.append(state, checkpoint.partition, [manifest, *((key, None) for key in gone)])
        self._journal.saved(at, covered)
        self._lanes.saved(checkpoint)
        written.slots[slot] = keys
        written.saves += 1
        if written.saves == 2:  # both slots are whole and ours
            held, newest = frozenset().union(*written.slots.values()), checkpoint.generation
            old = [key for generation, key in written.stale if generation <= newest and key not in held]
            self._log.append(state, checkpoint.partition, [(key, None) for key in old])

    def load(self, partition: Partition) -> Checkpoint | None:
        """As promised by the protocol. A first checkpoint that was torn counts as never written.

        Raises:
            ArtifactError: there are finished checkpoints and none is whole.
            DeliveryError: the topic could not be read in time.
        """
        records = self._records(partition)
        finished, whole = manifests(records), []
        for name in finished:
            try:
                whole.append(join(records, name))
            except ArtifactError as error:
                log.warning("checkpoint skipped", extra={"key": name, "error": str(error)})
        if finished and not whole:
            raise ArtifactError(
                f"none of the {len(finished)} checkpoints of {partition[0]}/{partition[1]} in the topic "
                f"{self._kafka.state} is whole: name another state topic to start from the base model"
            )
        self._written[partition] = _Written(generations(records))
        if not whole:
            self._journal.loaded(partition)
            return None
        checkpoint, start = max(whole, key=lambda found: (found[0].generation, found[0].seq))
        self._journal.loaded(partition, start, checkpoint.covered)
        return checkpoint

    def _records(self, partition: Partition) -> dict[str, bytes]:
        """The last value of each key of a partition of the queries."""
        records: dict[str, bytes] = {}
        self._lanes.forget(partition)
        for offset, key, value in self._log.read(self._kafka.state, partition[1], 0):
            name = (key or b"").decode(errors="replace")
            if self._lanes.met(partition, name, offset, value is not None):
                continue
            if value is None:
                records.pop(name, None)
            elif name.startswith(f"{partition[0]}/{partition[1]}/"):
                records[name] = value
        return records

    def keep(self, partition: Partition, generation: int, states: Sequence[LaneState]) -> list[LaneRecord]:
        """As promised by the protocol. Raises DeliveryError: not acknowledged in time."""
        return self._lanes.keep(partition, generation, states)

    def fetch(self, partition: Partition, record: LaneRecord) -> LaneState:
        """As promised by the protocol. Raises DeliveryError where the topic cannot be read in time."""
        return self._lanes.fetch(partition, record)

    def journal(self, entry: JournalEntry) -> None:
        """Sends a boundary and waits for the acknowledgement. Raises as `Journal.append`."""
        self._journal.append(entry)

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        """As promised by the protocol. Raises as `Journal.entries`."""
        return self._journal.entries(partition, since)

    def close(self) -> None:
        self._log.close()
        if self._beside is not None:
            self._beside.close()
