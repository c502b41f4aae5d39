"""The other end of the topics: sends queries and labels, reads answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import AuthorizationError, TopicAuthorizationFailedError

from core.config import KafkaConfig
from core.errors import DeliveryError
from core.records import Coordinates, Record
from core.security import OPEN, SecurityConfig
from stream.cluster import RECONNECT_MS
from stream.handshake import introduce
from stream.options import client_options
from stream.records import tolerant
from stream.rights import READ, hidden, said
from stream.sink import KafkaSink, Sent


class QueryClient:
    """A client of a running service: queries and labels go out, answers come in.

    Args:
        bootstrap_servers: host:port of any broker of the cluster.
        topics: the names of the topics, and how Kafka is secured.

    Raises:
        BrokerError: a secured Kafka does not let us in.
    """

    def __init__(self, bootstrap_servers: str, topics: KafkaConfig) -> None:
        introduce(bootstrap_servers, topics.security)
        self._servers, self._topics = bootstrap_servers, topics
        self._sink = KafkaSink(bootstrap_servers, topics)
        self._answers: Any = None

    def send(self, value: bytes, headers: Sequence[tuple[str, bytes]] = (), key: bytes | None = None) -> Sent:
        """Sends a query; what is returned knows its place in the log."""
        return self._sink.emit_to(self._topics.queries, value, key, headers)

    def label(self, value: bytes, key: bytes) -> None:
        self._sink.send("labels", value, key)

    def flush(self, budget_seconds: float = 60.0) -> None:
        """Raises DeliveryError unless everything sent is stored."""
        self._sink.flush(budget_seconds)

    def answers(self, budget_seconds: float) -> list[Record]:
        """New answers since the last call; the first call starts at the beginning of the topic.

        Raises:
            DeliveryError: we may not read them.
        """
        try:
            if self._answers is None:
                self._answers = reader_of(self._servers, self._topics.security, self._topics.answers)
            return polled(self._answers, budget_seconds)
        except AuthorizationError as error:
            raise DeliveryError(said(error, READ, self._topics.security.username)) from error

    def close(self) -> None:
        self._sink.close()
        if self._answers is not None:
            self._answers.close()


def read_all(
    bootstrap_servers: str, topic: str, budget_seconds: float = 30.0, security: SecurityConfig = OPEN
) -> list[Record]:
    """Everything in a topic up to its present end, by partition and offset.

    Raises:
        DeliveryError: the end was not reached within the budget.
    """
    reader = reader_of(bootstrap_servers, security, topic)
    try:
        ends = reader.end_offsets(list(reader.assignment()))
        records: list[Record] = []
        deadline = time.monotonic() + budget_seconds
        while any(reader.position(part) < end for part, end in ends.items()):
            if time.monotonic() > deadline:
                raise DeliveryError(f"{topic} could not be read to its end within {budget_seconds:.0f} s")
            records += polled(reader, 0.2)
        return sorted(records, key=lambda record: record.at)
    finally:
        reader.close()


def reader_of(bootstrap_servers: str, security: SecurityConfig, topic: str) -> Any:
    """A consumer without a group, at the beginning of all partitions. Raises AuthorizationError."""
    reader = tolerant(KafkaConsumer(
        **client_options(bootstrap_servers, security), group_id=None, enable_auto_commit=False,
        auto_offset_reset="earliest", reconnect_backoff_max_ms=RECONNECT_MS, fetch_max_wait_ms=50,
        isolation_level="read_committed",
    ))  # fmt: skip
    partitions = reader.partitions_for_topic(topic)
    if not partitions and hidden(reader, topic):
        reader.close()
        raise TopicAuthorizationFailedError({topic})
    reader.assign([TopicPartition(topic, number) for number in sorted(partitions or {0})])
    reader.seek_to_beginning()
    return reader


def polled(reader: Any, budget_seconds: float) -> list[Record]:
    """What comes within the budget."""
    found = reader.poll(timeout_ms=int(budget_seconds * 1000), max_records=4096)
    return [
        Record(Coordinates(r.topic, r.partition, r.offset), r.value, r.key, tuple(r.headers), r.timestamp)
        for records in found.values()
        for r in records
    ]
