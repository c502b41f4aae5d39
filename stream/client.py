"""The other end of the topics: sends queries and labels, reads answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from core.config import KafkaConfig
from core.errors import DeliveryError
from core.types import Coordinates, Record


class QueryClient:
    """A client of a running service.

    Args:
        bootstrap_servers: host:port of any broker of the cluster.
        topics: the names of the topics.
        max_bytes: largest message; the broker must allow it too.
    """

    def __init__(self, bootstrap_servers: str, topics: KafkaConfig, max_bytes: int = 1 << 20) -> None:
        self._servers, self._topics = bootstrap_servers, topics
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True, linger_ms=5,
            max_request_size=max_bytes + 65536, reconnect_backoff_max_ms=1000, delivery_timeout_ms=60000,
        )  # fmt: skip
        self._answers: Any = None

    def send(self, value: bytes, headers: Sequence[tuple[str, bytes]] = (), key: bytes | None = None) -> Any:
        """Sends a query; `coordinates()` of what is returned waits for its place in the log."""
        return self._producer.send(self._topics.queries, value=value, key=key, headers=list(headers))

    @staticmethod
    def coordinates(sent: Any, budget_seconds: float = 60.0) -> Coordinates:
        """Where a query was stored. Raises DeliveryError if it was not."""
        try:
            stored = sent.get(timeout=budget_seconds)
        except Exception as error:
            raise DeliveryError(f"the query was not stored: {error}; is Kafka reachable?") from error
        return Coordinates(stored.topic, stored.partition, stored.offset)

    def label(self, value: bytes, key: bytes) -> None:
        self._producer.send(self._topics.labels, value=value, key=key)

    def flush(self) -> None:
        self._producer.flush()

    def answers(self, budget_seconds: float) -> list[Record]:
        """New answers since the last call; the first call starts at the beginning of the topic."""
        if self._answers is None:
            self._answers = _reader(self._servers, self._topics.answers)
        found = self._answers.poll(timeout_ms=int(budget_seconds * 1000), max_records=4096)
        return [
            Record(Coordinates(r.topic, r.partition, r.offset), r.value, r.key, tuple(r.headers), r.timestamp)
            for records in found.values()
            for r in records
        ]

    def close(self) -> None:
        self._producer.close(timeout=5)
        if self._answers is not None:
            self._answers.close()


def read_all(bootstrap_servers: str, topic: str, budget_seconds: float = 30.0) -> list[Record]:
    """Everything in a topic up to its present end, partition by partition in order."""
    reader = _reader(bootstrap_servers, topic)
    try:
        ends = reader.end_offsets(list(reader.assignment()))
        records: list[Record] = []
        deadline = time.monotonic() + budget_seconds
        while any(reader.position(part) < end for part, end in ends.items()):
            if time.monotonic() > deadline:
                raise DeliveryError(f"{topic} could not be read to its end within {budget_seconds:.0f} s")
            for found in reader.poll(timeout_ms=200).values():
                records += [
                    Record(
                        Coordinates(r.topic, r.partition, r.offset),
                        r.value,
                        r.key,
                        tuple(r.headers),
                        r.timestamp,
                    )
                    for r in found
                ]
        return sorted(records, key=lambda record: record.at)
    finally:
        reader.close()


def _reader(bootstrap_servers: str, topic: str) -> Any:
    reader = KafkaConsumer(
        bootstrap_servers=bootstrap_servers, group_id=None, enable_auto_commit=False,
        auto_offset_reset="earliest", reconnect_backoff_max_ms=1000, fetch_max_wait_ms=50,
    )  # fmt: skip
    partitions = reader.partitions_for_topic(topic) or {0}
    reader.assign([TopicPartition(topic, number) for number in sorted(partitions)])
    reader.seek_to_beginning()
    return reader
