"""The source on Apache Kafka, through kafka-python 3.0.

Rules that come from measured traps of the client, each with a test:
raw bytes only, no deserializers (one that raises makes `poll` hang for ever) · every future is checked
(a flush can return normally although records expired) · a bound on un-acknowledged bytes (the producer has
none) · reconnect back-off of 1 s (the default lets a recovery take 20 s) · a record that cannot be read comes
marked (`stream.records`) · `kafka.*` never logs below WARNING (its debug log prints keys and values).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError
from kafka.structs import MemberState, OffsetAndMetadata

from core.config import KafkaConfig
from core.errors import (
    BrokerError,
    ConfigError,
    DeliveryError,
    NameTaken,
    OffsetGoneError,
    PartitionsLost,
    QshiftError,
)
from core.types import Coordinates, Partition, Record
from stream.cluster import (
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    LOOKUP_SECONDS,
    RECONNECT_MS,
    SETTLE_SECONDS,
    quiet,
    unreachable,
)
from stream.records import tolerant
from stream.topics import too_few

log = logging.getLogger("qshift.kafka")

ANEW = "state and journal belong to the old one; name new ones (kafka.state, kafka.journal), or delete them"
SAY_SECONDS = 60.0  # between two lines about the same lasting trouble
RECOGNISED_SECONDS = 1.0  # how long the query topic counts as the one it was when last asked
CONFIRM_SECONDS = 5.0  # how long the group may take to say whether we own a partition

# The partition is ours no longer, or the group is in the middle of a change: the next poll shows it.
_STALE = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
)


class _Revocations(ConsumerRebalanceListener):  # type: ignore[misc]
    """Partitions taken away since last asked. Runs on the client's thread, inside `poll` only."""

    def __init__(self) -> None:
        self.taken: set[TopicPartition] = set()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Seen through the consumer's own assignment."""

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.taken.update(revoked)

    def on_partitions_lost(self, lost: Any) -> None:
        self.taken.update(lost)


class KafkaSource:
    """Queries as a member of a consumer group, and all partitions of the label topic besides.

    Labels are read by a second consumer without a group, so that every worker sees all of them and they
    take no part in rebalances; they start at the beginning of their topic, or where `seek` puts them.
    Partitions of the label topic are those that exist when the source is made.

    The broker may go and come back: `poll` returns [] meanwhile. Not safe for use by several threads, but
    for `lag`.

    Args:
        bootstrap_servers: host:port[,host:port].
        config: topics and group.
        worker: name of this worker, unique in the group and kept over restarts (a static member). With it
            a restarted worker has its partitions back at once; without, a crashed one keeps them until
            `session_seconds` are over.
        max_poll_records: most query records per poll.
        fetch_wait_seconds: how long the broker may hold an empty answer.
        session_seconds: silence after which the group gives a worker's partitions away.
        max_poll_interval_seconds: longest step between two polls.
        kept_partitions: partitions of the queries whose state has a place; those added later are not read,
            see `unserved`. None: all.
        metadata_seconds: how soon partitions that are added, or a topic made anew, are noticed.

    Raises:
        BrokerError: no Kafka at the address.
        ConfigError: a topic does not exist.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        config: KafkaConfig,
        worker: str | None = None,
        max_poll_records: int = 512,
        fetch_wait_seconds: float = 0.05,
        session_seconds: float = 15.0,
        max_poll_interval_seconds: float = 300.0,
        kept_partitions: int | None = None,
        metadata_seconds: float = 30.0,
    ) -> None:
        quiet()
        self._config, self._worker = config, worker
        self._revocations = _Revocations()
        shared: dict[str, Any] = {
            "bootstrap_servers": bootstrap_servers,
            "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
            "enable_auto_commit": False,
            "auto_offset_reset": config.reset,
            "isolation_level": "read_committed",
            "check_crcs": True,
            "fetch_max_wait_ms": int(fetch_wait_seconds * 1000),
            "fetch_max_bytes": 16 << 20,
            "max_partition_fetch_bytes": 8 << 20,  # the client's 1 MiB is half a batch of pictures
            "reconnect_backoff_max_ms": RECONNECT_MS,
            "metadata_max_age_ms": int(metadata_seconds * 1000),
            "max_poll_records": max_poll_records,
        }
        try:
            self._labels = tolerant(KafkaConsumer(group_id=None, **shared))
            self._queries = tolerant(KafkaConsumer(
                group_id=config.group, group_instance_id=worker,
                partition_assignment_strategy=[CooperativeStickyAssignor],
                session_timeout_ms=int(session_seconds * 1000),
                heartbeat_interval_ms=int(session_seconds * 1000 / 15),  # how soon a rebalance is noticed
                max_poll_interval_ms=int(max_poll_interval_seconds * 1000), **shared,
            ))  # fmt: skip
        except KafkaError as error:
            raise unreachable(bootstrap_servers, CONNECT_SECONDS, error) from error
        try:
            self._labels.assign([TopicPartition(config.labels, n) for n in self._numbers(config.labels)])
            self._labels.seek_to_beginning()
            self._numbers(config.queries)
        except ConfigError:
            self.close()
            raise
        self._queries.subscribe([config.queries], listener=self._revocations)
        # Learn of the topic before joining: a leader that does not know it assigns nothing, and has to
        # notice and join again, which now and then never ends.
        self._queries.topics()
        self._assigned: frozenset[Partition] = frozenset()
        self._held: list[Record] = []
        self._next: dict[Partition, int] = {}
        self._paused = False
        self._kept = kept_partitions
        self._unserved: frozenset[TopicPartition] = frozenset()
        self._identity, self._recognised = self._topic_id(), float("-inf")
        self._labels_said = float("-inf")

    def _numbers(self, topic: str) -> list[int]:
        numbers = self._labels.partitions_for_topic(topic)
        if not numbers:
            raise ConfigError(f"the topic {topic} does not exist: create it, or correct kafka.* in the TOML")
        return sorted(numbers)

    def poll(self, budget_seconds: float) -> list[Record]:
        """Labels and queries that are there, in log order per partition; waits at most about the budget.

        Records that cannot be read come marked, see `stream.records`.

        Raises:
            OffsetGoneError: retention removed records that were not read yet, or the topic was made anew.
            BrokerError: an error that waiting does not cure, such as a missing permission.
        """
        self._held += self._poll(self._queries, budget_seconds)
        self._settle()
        known = self._recognise(asks=bool(self._held))
        now = self._served(self._queries.assignment())
        # A partition that was taken away and came back within one poll may have been moved on by another
        # worker: show one poll without it, so that its state is loaded again.
        returned = now & self._revocations.taken
        for part in self._revocations.taken:
            if part not in returned:
                self._next.pop(tuple(part), None)
        self._revocations.taken.clear()
        self._assigned = frozenset((part.topic, part.partition) for part in now - returned)
        if self._paused:
            self._queries.pause(*now)
        if returned or self._paused or not known:
            return []
        owned = {(part.topic, part.partition) for part in now}
        held, self._held = self._held, []
        labels = self._poll(self._labels, 0.0)
        return labels + [record for record in held if (record.at.topic, record.at.partition) in owned]

    def _topic_id(self) -> UUID | None:
        """What tells the query topic from another of its name; None before Kafka 2.8, or while it is gone."""
        found = self._queries._cluster.topic_id(self._config.queries)
        return found if found is not None and found.int else None

    def _recognise(self, asks: bool) -> bool:
        """Whether the query topic is known to be the one we began with; its records wait until it is.

        A topic that was deleted and made again counts its offsets anew: ours mean nothing there. The client
        asks by name and hands out the new one's records before it has noticed, so that where there are
        records it is asked, once a second.
        """
        began = time.monotonic()
        if asks and self._identity is not None and began - self._recognised >= RECOGNISED_SECONDS:
            update = self._queries._cluster.request_update()
            while not update.is_done and time.monotonic() - began < RECOGNISED_SECONDS:
                time.sleep(0.001)
            if update.succeeded() and self._topic_id() is not None:
                self._recognised = began
        found = self._topic_id()
        self._identity = self._identity or found
        if found is not None and found != self._identity:
            raise OffsetGoneError(f"the topic {self._config.queries} was made anew: {ANEW}")
        return not asks or self._identity is None or began - self._recognised < RECOGNISED_SECONDS

    def _served(self, assigned: set[TopicPartition]) -> set[TopicPartition]:
        """Without the partitions that were added since the start and whose state has no place."""
        beyond = frozenset(p for p in assigned if self._kept is not None and p.partition >= self._kept)
        if beyond:
            self._queries.pause(*beyond)
        if beyond - self._unserved:
            count = len(self._queries.partitions_for_topic(self._config.queries))
            log.error(
                "partitions were added and are not read: " + too_few(self._config, count, self._kept or 0),
                extra={"partitions": sorted(p.partition for p in beyond)},
            )
        self._unserved = beyond
        return assigned - beyond

    @property
    def unserved(self) -> frozenset[Partition]:
        """Partitions given to this worker that it does not read, because their state has no place."""
        return frozenset((part.topic, part.partition) for part in self._unserved)

    def _settle(self) -> None:
        """Sees a rebalance through, for a few seconds.

        The client joins in the background but takes the result only inside `poll`. A join that completes
        between two polls is thrown away and begun again, which makes every other member begin again: with
        short polls and long steps between them the group never comes to rest.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._queries.group_metadata().state == MemberState.REBALANCING:
            self._held += self._poll(self._queries, 0.2)
            if time.monotonic() > deadline:
                return

    def _poll(self, consumer: Any, budget_seconds: float) -> list[Record]:
        started = time.monotonic()
        try:
            found = consumer.poll(timeout_ms=int(budget_seconds * 1000))
        except KafkaError as error:
            if isinstance(error, kafka_errors.FencedInstanceIdError):
                raise self._refused(error) from error
            if consumer is self._labels:
                self._say_labels(error)
                return []
            if not error.retriable and not isinstance(error, _STALE):
                raise BrokerError(f"Kafka cannot be read: {error!r}") from error
            log.info("waiting for Kafka", extra={"error": repr(error)})
            time.sleep(max(0.0, budget_seconds - (time.monotonic() - started)))
            return []
        return [self._record(consumer, raw) for raws in found.values() for raw in raws]

    def _record(self, consumer: Any, raw: Any) -> Record:
        partition = (raw.topic, raw.partition)
        expected = self._next.get(partition)
        taken = partition in self._revocations.taken  # and given back: read from the group's offset again
        if expected is not None and raw.offset != expected and not taken:
            self._explain_gap(consumer, partition, expected, raw.offset)
        self._next[partition] = raw.offset + 1
        headers = tuple((name, value if value is not None else b"") for name, value in raw.headers)
        return Record(Coordinates(*partition, raw.offset), raw.value, raw.key, headers, raw.timestamp)

    def _explain_gap(self, consumer: Any, partition: Partition, expected: int, found: int) -> None:
        """A jump is harmless over transaction markers and compacted records, and fatal over lost ones.

        The client resets an offset that is out of range without a word: this is where it is noticed.
        """
        first, _ = self._bounds(consumer, partition)
        if found < expected or (first is not None and first > expected):
            self._gone(partition, expected, found)

    def _gone(self, partition: Partition, wanted: int, have: int) -> None:
        name = f"{partition[0]}/{partition[1]}"
        if partition[0] == self._config.labels:
            # Labels only measure. To miss old ones is no reason to stand still.
            log.warning("labels are missing", extra={"partition": name, "wanted": wanted, "have": have})
            return
        if have < wanted:
            raise OffsetGoneError(
                f"{name} should continue at offset {wanted}, but its log ends or begins again at {have}: the "
                f"topic was made anew; {ANEW}"
            )
        raise OffsetGoneError(
            f"{name} should continue at offset {wanted}, but the log has it no longer and goes on at {have}: "
            "lengthen the topic's retention, and start from another state topic or directory"
        )

    def _say_labels(self, error: KafkaError) -> None:
        """Labels only measure: that they cannot be read now must not stop the answers."""
        if time.monotonic() - self._labels_said >= SAY_SECONDS:
            self._labels_said = time.monotonic()
            log.warning("labels cannot be read", extra={"topic": self._config.labels, "error": repr(error)})

    def _bounds(self, consumer: Any, partition: Partition) -> tuple[int | None, int | None]:
        """First offset of the log and the one after its last; (None, None) while Kafka is away."""
        part, timeout_ms = TopicPartition(*partition), int(LOOKUP_SECONDS * 1000)
        try:
            first = consumer.beginning_offsets([part], timeout_ms=timeout_ms)[part]
            return first, consumer.end_offsets([part], timeout_ms=timeout_ms)[part]
        except KafkaError as error:
            if not error.retriable:
                raise BrokerError(f"Kafka cannot be read: {error!r}") from error
            return None, None

    def assignment(self) -> frozenset[Partition]:
        """Query partitions this worker reads, as of the last `poll`."""
        return self._assigned

    def seek(self, partition: Partition, offset: int) -> None:
        """Continues a query or label partition at an offset.

        While Kafka is away the log's bounds cannot be asked for; `poll` then finds the gap.

        Raises:
            OffsetGoneError: the log of a query partition starts later, or ends before the offset. Labels
                continue at the start of their log instead.
        """
        consumer = self._labels if partition[0] == self._config.labels else self._queries
        first, end = self._bounds(consumer, partition)
        if first is not None and first > offset:
            self._gone(partition, offset, first)
            offset = first
        if end is not None and end < offset:
            self._gone(partition, offset, end)
            offset = end
        consumer.seek(TopicPartition(*partition), offset)
        self._next[partition] = offset
        self._held = [r for r in self._held if (r.at.topic, r.at.partition) != partition]

    def pause(self, paused: bool) -> None:
        """While paused, `poll` keeps the group membership alive and returns nothing."""
        self._paused = paused
        if not paused:
            self._queries.resume(*self._queries.paused())
        else:
            self._queries.pause(*self._queries.assignment())

    def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
        """Commits to the group. A commit that cannot be made now is logged and left to the next one.

        The state that covers the offsets is durable already, and on a restart it wins over the group's
        offset: nothing depends on this commit but what tools show as lag.

        Raises:
            PartitionsLost, NameTaken: as `confirm`.
        """
        try:
            self._commit(offsets, metadata, LOOKUP_SECONDS)
        except DeliveryError as error:
            log.warning("offsets not committed, the next commit covers them", extra={"error": str(error)})

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        """Commits once more what is committed: the group refuses that to whom it does not count as owner.

        None stands for a partition of which nothing was read yet.

        Raises:
            PartitionsLost: this worker is no member, of another generation, or in the middle of a change.
            NameTaken: another worker of the same name has taken its place.
            DeliveryError: Kafka does not answer.
        """
        known: dict[Partition, int] = {}
        for partition, offset in offsets.items():
            found = self._position(partition) if offset is None else offset
            if found is not None:
                known[partition] = found
        self._commit(known, metadata, CONFIRM_SECONDS)

    def _position(self, partition: Partition) -> int | None:
        try:
            found = self._queries.position(TopicPartition(*partition), int(CONFIRM_SECONDS * 1000))
        except kafka_errors.IllegalStateError as error:
            raise PartitionsLost(f"{partition[0]}/{partition[1]} was taken away: {error}") from error
        except KafkaError as error:
            raise self._refused(error) from error
        return None if found is None else int(found)

    def _commit(self, offsets: Mapping[Partition, int], metadata: str, seconds: float) -> None:
        if not offsets:
            return
        wanted = {TopicPartition(*p): OffsetAndMetadata(o, metadata, -1) for p, o in offsets.items()}
        try:
            self._queries.commit(wanted, timeout_ms=int(seconds * 1000))
        except KafkaError as error:
            raise self._refused(error) from error

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """Offset and metadata of the group's last commit. Raises DeliveryError when Kafka does not answer."""
        part, limit_ms = TopicPartition(*partition), int(LOOKUP_SECONDS * 1000)
        try:
            found = self._queries.committed(part, metadata=True, timeout_ms=limit_ms)
        except KafkaError as error:
            raise self._refused(error) from error
        return None if found is None or found.offset < 0 else (int(found.offset), found.metadata or "")

    def _refused(self, error: KafkaError) -> QshiftError:
        """What an error of the group means to us."""
        if isinstance(error, kafka_errors.FencedInstanceIdError):
            return NameTaken(
                f"another worker is called {self._worker} in group {self._config.group}: give each its own "
                "--worker"
            )
        if isinstance(error, _STALE):
            return PartitionsLost(f"the group does not count this worker as the owner: {error!r}")
        if error.retriable:
            return DeliveryError(f"the group {self._config.group} does not answer: {error!r}; is Kafka up?")
        return BrokerError(f"the group {self._config.group} cannot be used: {error!r}")

    def log_id(self) -> str:
        """The query topic's id; "" before Kafka 2.8."""
        return "" if self._identity is None else str(self._identity)

    def generation(self) -> int:
        """The group's generation as this member knows it; -1 before it joined."""
        return int(self._queries.group_metadata().generation_id)

    def lag(self) -> dict[Partition, int]:
        """Records between what was read and the end of the log, per assigned query partition.

        From the last answers of the broker, without a request; partitions not read yet are left out.
        """
        behind: dict[Partition, int] = {}
        for partition in self._assigned:
            position, part = self._next.get(partition), TopicPartition(*partition)
            try:
                end = self._queries.highwater(part)
                if end is not None and position is not None and end > position:
                    # The client also knows what it has stepped over: markers of transactions are no records.
                    position = max(position, self._queries.position(part, timeout_ms=0) or 0)
            except kafka_errors.IllegalStateError:  # lost since the last poll
                continue
            except KafkaError as error:
                log.debug("position not known", extra={"partition": partition, "error": repr(error)})
            if end is not None and position is not None:
                behind[partition] = max(0, end - position)
        return behind

    @property
    def exhausted(self) -> bool:
        """A live log has no end."""
        return False

    def close(self) -> None:
        """Leaves the group (a static member keeps its partitions for the session time)."""
        for consumer in (self._queries, self._labels):
            try:
                consumer.close(autocommit=False, timeout_ms=int(CLOSE_SECONDS * 1000))
            except KafkaError as error:
                log.warning("consumer did not close cleanly", extra={"error": repr(error)})
