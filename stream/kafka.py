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

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import FencedInstanceIdError, KafkaError

from core.config import KafkaConfig
from core.errors import BrokerError, ConfigError
from core.records import Partition, Record
from stream.cluster import (
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    LOOKUP_SECONDS,
    RECONNECT_MS,
    SETTLE_SECONDS,
    unreachable,
)
from stream.membership import STALE, Membership, Revocations, member_settings
from stream.options import client_options
from stream.positions import Positions
from stream.quiet import SAY_SECONDS
from stream.records import tolerant
from stream.rights import READ, said
from stream.topic_identity import TopicIdentity
from stream.topics import too_few

log = logging.getLogger("qshift.kafka")
SESSION_SECONDS = 15.0


class KafkaSource:
    """Queries as a member of a consumer group, and all of the label and the control topic besides.

    Labels and commands are read by a second consumer without a group, so that every worker sees all of them
    and they take no part in rebalances; they start at the beginning of their topic, or where `seek` puts
    them.
    Partitions of those topics are those that exist when the source is made.

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
        session_seconds: float = SESSION_SECONDS,
        max_poll_interval_seconds: float = 300.0,
        kept_partitions: int | None = None,
        metadata_seconds: float = 30.0,
    ) -> None:
        self._config = config
        shared = client_options(bootstrap_servers, config.security)
        shared |= _reading(config.reset, max_poll_records, fetch_wait_seconds, metadata_seconds)
        member = member_settings(config.group, worker, session_seconds, max_poll_interval_seconds)
        try:
            self._labels = tolerant(KafkaConsumer(group_id=None, **shared))
            self._queries = tolerant(KafkaConsumer(**member, **shared))
        except KafkaError as error:
            raise unreachable(bootstrap_servers, config.security, CONNECT_SECONDS, error) from error
        self._revocations = Revocations()
        self._membership = Membership(self._queries, config.group, worker)
        self._positions = Positions(config.queries)
        self._assigned: frozenset[Partition] = frozenset()
        self._member: Any = None
        self._held: list[Record] = []
        self._early: list[Record] = []
        self._paused = False
        self._kept = kept_partitions
        self._unserved: frozenset[TopicPartition] = frozenset()
        self._labels_said = float("-inf")
        self._begin()
        self._identity = TopicIdentity(self._queries, config.queries)

    def _begin(self) -> None:
        """Takes all partitions of the labels, and joins the group for the queries."""
        labels, queries, control = self._config.labels, self._config.queries, self._config.control
        try:
            beside = [TopicPartition(labels, number) for number in self._numbers(labels)]
            commands = [TopicPartition(control, n) for n in self._labels.partitions_for_topic(control) or ()]
            places = self._commanded(commands)
            self._labels.assign(beside + commands)
            self._labels.seek_to_beginning(*beside)
            for part, place in places.items():
                self._labels.seek(part, place)
            self._numbers(queries)
        except ConfigError:
            self.close()
            raise
        self._queries.subscribe([queries], listener=self._revocations)
        # Learn of the topic before joining: a leader that does not know it assigns nothing, and has to
        # notice and join again, which now and then never ends.
        self._queries.topics()

    def _commanded(self, parts: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Reads the commands there are before any query: lanes begin as was said of all of them.

        Returns:
            Where reading goes on.
        """
        if not parts:  # nobody has made the topic: whoever commands makes it
            return {}
        self._labels.assign(parts)
        places = dict.fromkeys(parts, 0)
        try:
            self._labels.seek_to_beginning(*parts)
            ends = self._labels.end_offsets(parts)
            deadline = time.monotonic() + LOOKUP_SECONDS
            while any(places[part] < end for part, end in ends.items()) and time.monotonic() < deadline:
                self._early += self._poll(self._labels, 0.1)
                places = {part: self._labels.position(part) for part in parts}
        except KafkaError as error:
            log.warning("commands cannot be read yet", extra={"error": repr(error)})
        return places

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
        known = self._identity.recognised(asks=bool(self._held))
        # Before the assignment: a generation of later than what we know to be ours would vouch for us.
        self._member = self._queries.group_metadata()
        now = self._served(self._queries.assignment())
        # A partition that was taken away and came back within one poll may have been moved on by another
        # worker: show one poll without it, so that its state is loaded again.
        returned = now & self._revocations.taken
        for part in self._revocations.taken:
            if part not in returned:
                self._positions.forget(tuple(part))
        self._revocations.taken.clear()
        self._assigned = frozenset((part.topic, part.partition) for part in now - returned)
        if self._paused:
            self._queries.pause(*now)
        if returned or not known:
            return []
        labels, self._early = self._early + self._poll(self._labels, 0.0), []
        if self._paused:  # a batch that waits for labels makes room for queries
            return labels
        owned = {(part.topic, part.partition) for part in now}
        held, self._held = self._held, []
        return labels + [record for record in held if (record.at.topic, record.at.partition) in owned]

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
        while self._membership.rebalancing:
            self._held += self._poll(self._queries, 0.2)
            if time.monotonic() > deadline:
                return

    def _poll(self, consumer: Any, budget_seconds: float) -> list[Record]:
        started = time.monotonic()
        try:
            found = consumer.poll(timeout_ms=int(budget_seconds * 1000))
        except KafkaError as error:
            if isinstance(error, FencedInstanceIdError):
                raise self._membership.refused(error) from error
            if consumer is self._labels:
                self._say_labels(error)
                return []
            if not error.retriable and not isinstance(error, STALE):
                raise BrokerError(
                    f"Kafka cannot be read: {said(error, READ, self._config.security.username)}"
                ) from error
            log.info("waiting for Kafka", extra={"error": repr(error)})
            time.sleep(max(0.0, budget_seconds - (time.monotonic() - started)))
            return []
        taken = self._revocations.taken
        return [
            self._positions.record(consumer, raw, part in taken)
            for part, raws in found.items()
            for raw in raws
        ]

    def _say_labels(self, error: KafkaError) -> None:
        """Labels only measure: that they cannot be read now must not stop the answers."""
        if time.monotonic() - self._labels_said >= SAY_SECONDS:
            self._labels_said = time.monotonic()
            reason = said(error, READ, self._config.security.username)
            log.warning("labels cannot be read", extra={"topic": self._config.labels, "error": reason})

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
        self._positions.seek(consumer, partition, offset)
        self._held = [r for r in self._held if (r.at.topic, r.at.partition) != partition]

    def pause(self, paused: bool) -> None:
        """While paused, `poll` keeps the group membership alive and brings labels alone."""
        self._paused = paused
        if not paused:
            self._queries.resume(*self._queries.paused())
        else:
            self._queries.pause(*self._queries.assignment())

    def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
        """Commits to the group; see `Membership.commit`."""
        self._membership.commit(offsets, metadata)

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        """Raises PartitionsLost unless the group counts us as the owner; see `Membership.confirm`."""
        self._membership.confirm(offsets, metadata)

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """Offset and metadata of the group's last commit. Raises DeliveryError when Kafka does not answer."""
        return self._membership.committed(partition)

    def generation(self) -> int:
        """The group's generation as this member knows it; -1 before it joined."""
        return self._membership.generation()

    def member(self) -> Any:
        """As whom the group knew us at the last `poll`: what a transaction's offsets are held against."""
        return self._member

    def log_id(self) -> str:
        """The query topic's id; "" before Kafka 2.8."""
        return str(self._identity)

    def lag(self) -> dict[Partition, int]:
        """Records between what was read and the end of the log, per assigned query partition.

        From the last answers of the broker, without a request; partitions not read yet are left out.
        """
        return self._positions.lag(self._queries, self._assigned)

    @property
    def exhausted(self) -> bool:
        """A live log has no end."""
        return False

    def close(self) -> None:
        """Leaves the group: others have its partitions within seconds. A crash keeps them for a while."""
        self._membership.leave()
        for consumer in (self._queries, self._labels):
            try:
                consumer.close(autocommit=False, timeout_ms=int(CLOSE_SECONDS * 1000))
            except KafkaError as error:
                log.warning("consumer did not close cleanly", extra={"error": repr(error)})


def _reading(
    reset: str, max_poll_records: int, fetch_wait_seconds: float, metadata_seconds: float
) -> dict[str, Any]:
    """How both consumers read."""
    return {
        "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
        "enable_auto_commit": False,
        "auto_offset_reset": reset,
        "isolation_level": "read_committed",
        "check_crcs": True,
        "fetch_max_wait_ms": int(fetch_wait_seconds * 1000),
        "fetch_max_bytes": 16 << 20,
        "max_partition_fetch_bytes": 8 << 20,  # the client's 1 MiB is half a batch of pictures
        "reconnect_backoff_max_ms": RECONNECT_MS,
        "metadata_max_age_ms": int(metadata_seconds * 1000),
        "max_poll_records": max_poll_records,
    }
