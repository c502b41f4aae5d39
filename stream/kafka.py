"""Source and sink on Apache Kafka, through kafka-python 3.0.

Rules that come from measured traps of the client, each with a test:
raw bytes only, no deserializers (one that raises makes `poll` hang for ever) · every future is checked
(a flush can return normally although records expired) · a bound on un-acknowledged bytes (the producer has
none) · reconnect back-off of 1 s (the default lets a recovery take 20 s) · a record that fails its checksum
is skipped by us, visibly · `kafka.*` never logs below WARNING (its debug log prints keys and values).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError
from kafka.structs import MemberState, OffsetAndMetadata

from core.config import KafkaConfig
from core.errors import BrokerError, ConfigError, DeliveryError, OffsetGoneError, Refused
from core.protocols import Channel
from core.types import Coordinates, Partition, Record

log = logging.getLogger("qshift.kafka")

CORRUPT = "CorruptRecord"
CONNECT_SECONDS = 30.0
LOOKUP_SECONDS = 10.0
CLOSE_SECONDS = 5.0
SETTLE_SECONDS = 5.0
RECONNECT_MS = 1000  # the client's 30 s makes every recovery wait
HEADROOM_BYTES = 64 << 10  # a dead letter is the original record plus its headers
RECORD_OVERHEAD_BYTES = 128  # of one record in the client's memory, besides its bytes
# The partition is ours no longer, or the group is in the middle of a change: the next poll shows it.
_STALE = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
)


def quiet() -> None:
    """Keeps the client's own loggers at WARNING: at DEBUG they print keys, values and headers."""
    client = logging.getLogger("kafka")
    if client.level < logging.WARNING:
        client.setLevel(logging.WARNING)


def ensure_topics(
    bootstrap_servers: str,
    topics: Mapping[str, tuple[int, Mapping[str, str]]],
    budget_seconds: float = CONNECT_SECONDS,
) -> dict[str, int]:
    """Creates the topics that are missing; leaves existing ones as they are.

    Args:
        topics: name -> (partitions, topic configuration such as {"cleanup.policy": "compact"}).

    Returns:
        Partitions that each topic has now, which for an existing topic may not be those asked for.

    Raises:
        BrokerError: Kafka cannot be reached or refuses.
    """
    quiet()
    timeout_ms = int(budget_seconds * 1000)
    try:
        admin = KafkaAdminClient(
            bootstrap_servers=bootstrap_servers, bootstrap_timeout_ms=timeout_ms,
            request_timeout_ms=timeout_ms, reconnect_backoff_max_ms=RECONNECT_MS,
        )  # fmt: skip
    except KafkaError as error:
        raise _unreachable(bootstrap_servers, budget_seconds, error) from error
    try:
        missing = sorted(set(topics) - set(admin.list_topics()))
        for name in missing:
            partitions, settings = topics[name]
            try:
                admin.create_topics({name: {"num_partitions": partitions, "configs": dict(settings)}})
            except kafka_errors.TopicAlreadyExistsError:
                log.debug("topic was created by another process", extra={"topic": name})
        if missing:
            admin.wait_for_topics(missing, timeout_ms=timeout_ms)
        found = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(topics))}
    except KafkaError as error:
        raise BrokerError(f"the topics {sorted(topics)} could not be made: {error}") from error
    finally:
        admin.close()
    for name, (partitions, _) in topics.items():
        if found[name] != partitions:
            log.warning("topic has another number of partitions", extra={"topic": name, "has": found[name]})
    return found


def _unreachable(servers: str, seconds: float, error: Exception) -> BrokerError:
    return BrokerError(
        f"no Kafka answered at {servers} within {seconds:.0f} s ({error}): start it, for example with "
        "`qshift broker up`, or correct kafka.bootstrap_servers"
    )


# -- source ---------------------------------------------------------------------------------------------


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
    ) -> None:
        quiet()
        self._config = config
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
            "reconnect_backoff_max_ms": RECONNECT_MS,
            "max_poll_records": max_poll_records,
        }
        try:
            self._labels = KafkaConsumer(group_id=None, **shared)
            self._queries = KafkaConsumer(
                group_id=config.group, group_instance_id=worker,
                partition_assignment_strategy=[CooperativeStickyAssignor],
                session_timeout_ms=int(session_seconds * 1000),
                heartbeat_interval_ms=int(session_seconds * 1000 / 15),  # how soon a rebalance is noticed
                max_poll_interval_ms=int(max_poll_interval_seconds * 1000), **shared,
            )  # fmt: skip
        except KafkaError as error:
            raise _unreachable(bootstrap_servers, CONNECT_SECONDS, error) from error
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

    def _numbers(self, topic: str) -> list[int]:
        numbers = self._labels.partitions_for_topic(topic)
        if not numbers:
            raise ConfigError(f"the topic {topic} does not exist: create it, or correct kafka.* in the TOML")
        return sorted(numbers)

    def poll(self, budget_seconds: float) -> list[Record]:
        """Labels and queries that are there, in log order per partition; waits at most about the budget.

        Records that fail their checksum come with value None and the header `x-error-class`.

        Raises:
            OffsetGoneError: retention removed records that were not read yet, or the topic was made anew.
            BrokerError: an error that waiting does not cure, such as a missing permission.
        """
        self._held += self._poll(self._queries, budget_seconds)
        self._settle()
        now = self._queries.assignment()
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
        if returned or self._paused:
            return []
        owned = {(part.topic, part.partition) for part in now}
        held, self._held = self._held, []
        labels = self._poll(self._labels, 0.0)
        return labels + [record for record in held if (record.at.topic, record.at.partition) in owned]

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
        except kafka_errors.CorruptRecordError as error:
            return self._skip(consumer, error)
        except KafkaError as error:
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
        raise OffsetGoneError(
            f"{name} should continue at offset {wanted}, but the log has it no longer and goes on at {have}: "
            "lengthen the topic's retention, and start from another state topic or directory"
        )

    def _skip(self, consumer: Any, error: KafkaError) -> list[Record]:
        """One record further. A batch shares one checksum: each of its records is skipped in its turn."""
        named = re.search(r"TopicPartition\(topic='(.+?)', partition=(\d+)\)", str(error))
        if named is None:
            raise BrokerError(f"a record is corrupt, and Kafka does not say which: {error}") from error
        partition = (named[1], int(named[2]))
        part = TopicPartition(*partition)
        offset = consumer.position(part, timeout_ms=int(LOOKUP_SECONDS * 1000))
        consumer.seek(part, offset + 1)
        self._next[partition] = offset + 1
        log.error("corrupt record skipped", extra={"partition": partition, "offset": offset})
        return [Record(Coordinates(*partition, offset), None, headers=(("x-error-class", CORRUPT.encode()),))]

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
        """
        if not offsets:
            return
        wanted = {TopicPartition(*p): OffsetAndMetadata(o, metadata, -1) for p, o in offsets.items()}
        try:
            self._queries.commit(wanted, timeout_ms=int(LOOKUP_SECONDS * 1000))
        except KafkaError as error:
            if not error.retriable and not isinstance(error, _STALE):
                raise BrokerError(f"offsets cannot be committed: {error!r}") from error
            log.warning("offsets not committed, the next commit covers them", extra={"error": repr(error)})

    def generation(self) -> int:
        """The group's generation as this member knows it; -1 before it joined."""
        return int(self._queries.group_metadata().generation_id)

    def lag(self) -> dict[Partition, int]:
        """Records between what was read and the end of the log, per assigned query partition.

        From the last answers of the broker, without a request; partitions not read yet are left out.
        """
        behind: dict[Partition, int] = {}
        for partition in self._assigned:
            position = self._next.get(partition)
            try:
                end = self._queries.highwater(TopicPartition(*partition))
            except kafka_errors.IllegalStateError:  # lost since the last poll
                continue
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


# -- sink -----------------------------------------------------------------------------------------------


class Sent:
    """A record on its way."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def coordinates(self, budget_seconds: float = 60.0) -> Coordinates:
        """Where it was stored; waits for that. Raises DeliveryError if it was not."""
        try:
            stored = self._future.get(timeout=budget_seconds)
        except KafkaError as error:
            raise DeliveryError(f"the record was not stored: {error!r}; is Kafka reachable?") from error
        return Coordinates(stored.topic, stored.partition, stored.offset)


class _Inflight:
    """Bytes that are not acknowledged yet, over all producers of one sink, with a limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.bytes = 0
        self._limit = limit_bytes
        self.changed = threading.Condition()

    def take(self, size: int, budget_seconds: float) -> bool:
        """Waits until `size` more fit. A record larger than the limit passes alone."""
        with self.changed:
            if not self.changed.wait_for(
                lambda: self.bytes == 0 or self.bytes + size <= self._limit, budget_seconds
            ):
                return False
            self.bytes += size
            return True

    def give(self, size: int) -> None:
        with self.changed:
            self.bytes -= size
            self.changed.notify_all()


class _Epoch:
    """One producer and what became of everything sent through it."""

    def __init__(self, producer: Any, inflight: _Inflight) -> None:
        self.producer = producer
        self.pending = 0
        self.failed = 0
        self.first_error: BaseException | None = None
        self._inflight = inflight

    def watch(self, future: Any, size: int) -> None:
        with self._inflight.changed:
            self.pending += 1
        future.add_callback(lambda _: self._settle(size, None))
        future.add_errback(lambda error: self._settle(size, error))

    def _settle(self, size: int, error: BaseException | None) -> None:
        with self._inflight.changed:
            self.pending -= 1
            if error is not None:
                self.failed += 1
                self.first_error = self.first_error or error
        self._inflight.give(size)

    def settled(self, budget_seconds: float) -> bool:
        with self._inflight.changed:
            return self._inflight.changed.wait_for(lambda: self.pending == 0, budget_seconds)


class KafkaSink:
    """Writes with acks=all and an idempotent producer.

    After a failed `flush` the producer is thrown away, and the next record makes a new one: what became of
    the old one's records is not known, and the caller sends them again.

    Args:
        bootstrap_servers: host:port[,host:port].
        config: topics, bound on un-acknowledged bytes, delivery time-out.
        message_bytes: largest record; one larger is refused before it is sent.
        linger_seconds: how long a record may wait for company; `flush` does not wait for it.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        config: KafkaConfig,
        message_bytes: int = 1 << 20,
        linger_seconds: float = 0.005,
    ) -> None:
        quiet()
        self._servers, self._timeout = bootstrap_servers, config.delivery_timeout_seconds
        self._topics: dict[Channel, str] = {
            "answers": config.answers, "dead-letters": config.dead_letters,
            "labels": config.labels, "queries": config.queries,
        }  # fmt: skip
        self._limit, self._linger = message_bytes + HEADROOM_BYTES, linger_seconds
        self._inflight = _Inflight(config.max_inflight_bytes)
        self._epoch: _Epoch | None = None
        self._making = threading.Lock()

    @property
    def inflight_bytes(self) -> int:
        """Bytes taken by `emit` and not acknowledged yet."""
        return self._inflight.bytes

    def emit(
        self, channel: Channel, value: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Takes one record; blocks while too many bytes are not acknowledged.

        Raises:
            DeliveryError: Kafka is away for longer than the delivery time-out.
            Refused: the record is larger than `message_bytes` (and 64 KiB for headers); nothing was sent.
        """
        self.emit_to(self._topics[channel], value, key, headers)

    def emit_to(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> Sent:
        """As `emit`, to any topic and partition; what is returned knows the record's place in the log."""
        size = len(value or b"") + len(key or b"") + RECORD_OVERHEAD_BYTES
        size += sum(len(name) + len(content) for name, content in headers)
        if size > self._limit:
            raise Refused(
                "validate",
                f"a record of {size} bytes for {topic}, expected at most {self._limit}: send less, or a "
                "reference, or raise limits.message_bytes and the topic's max.message.bytes",
            )
        epoch = self._producer()
        # Every record is acknowledged or fails within the time-out, so waiting longer means a defect.
        if not self._inflight.take(size, self._timeout + CLOSE_SECONDS):
            raise DeliveryError(f"no room for a record: {self.inflight_bytes} bytes are not acknowledged")
        try:
            future = epoch.producer.send(
                topic, value=value, key=key, headers=list(headers), partition=partition
            )
        except KafkaError as error:
            self._inflight.give(size)
            raise DeliveryError(f"a record for {topic} was not taken: {error!r}; is Kafka up?") from error
        except BaseException:
            self._inflight.give(size)
            raise
        epoch.watch(future, size)
        return Sent(future)

    def flush(self, budget_seconds: float) -> None:
        """Returns when every record since the last flush is durable.

        Raises:
            DeliveryError: one was not acknowledged, or not within the budget.
        """
        epoch = self._epoch
        if epoch is None:
            return
        started = time.monotonic()
        try:
            epoch.producer.flush(timeout=budget_seconds)
        except KafkaError as error:
            log.warning("flush failed", extra={"error": repr(error)})
        # The producer's word is not enough: it returns normally when records have expired (T1).
        epoch.settled(max(0.0, budget_seconds - (time.monotonic() - started)))
        if epoch.pending or epoch.failed:
            self._discard(epoch)
            raise DeliveryError(
                f"{epoch.failed} records failed and {epoch.pending} were not acknowledged within "
                f"{budget_seconds:.0f} s, first error: {epoch.first_error!r}; they must be sent again"
            )

    def close(self) -> None:
        """Sends what is left, for a few seconds. Call `flush` before to be sure."""
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            _end(epoch.producer, CLOSE_SECONDS)

    def _producer(self) -> _Epoch:
        with self._making:
            if self._epoch is None:
                self._epoch = _Epoch(self._connect(), self._inflight)
            return self._epoch

    def _connect(self) -> Any:
        timeout_ms = int(self._timeout * 1000)
        linger_ms = int(self._linger * 1000)
        try:
            return KafkaProducer(
                bootstrap_servers=self._servers, bootstrap_timeout_ms=timeout_ms, acks="all",
                enable_idempotence=True, max_in_flight_requests_per_connection=5, linger_ms=linger_ms,
                batch_size=128 << 10, max_request_size=self._limit, max_block_ms=timeout_ms,
                delivery_timeout_ms=timeout_ms, request_timeout_ms=min(10_000, timeout_ms // 2),
                reconnect_backoff_max_ms=RECONNECT_MS,
            )  # fmt: skip
        except KafkaError as error:
            raise DeliveryError(f"no Kafka at {self._servers}: {error!r}; is it up?") from error

    def _discard(self, epoch: _Epoch) -> None:
        """Lets a producer end on its own thread: its batches expire, and count as in flight until then."""
        self._epoch = None
        threading.Thread(
            target=_end, args=(epoch.producer, self._timeout + CLOSE_SECONDS), daemon=True
        ).start()


def _end(producer: Any, budget_seconds: float) -> None:
    try:
        producer.close(timeout=budget_seconds)
    except KafkaError as error:
        log.warning("producer closed with records left", extra={"error": repr(error)})
