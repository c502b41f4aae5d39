"""Reads a stretch of recorded topics from Kafka: between offsets, without a group, touching nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from core.errors import BrokerError
from core.records import Coordinates, Record
from core.security import OPEN, SecurityConfig
from stream.cluster import CONNECT_SECONDS, LOOKUP_SECONDS, RECONNECT_MS, unreachable
from stream.handshake import introduce
from stream.options import client_options
from stream.records import tolerant
from stream.rights import READ, denied, hidden, said

SILENCE_SECONDS = 30.0


class KafkaLog:
    """The topics of a cluster as they lie there. Partitions are named by their numbers.

    Args:
        bootstrap_servers: host:port[,host:port].

    Raises:
        BrokerError: no Kafka at the address; from every method, when it cannot or may not be read.
    """

    def __init__(self, bootstrap_servers: str, security: SecurityConfig = OPEN) -> None:
        self._user = security.username
        introduce(bootstrap_servers, security)
        try:
            self._consumer: Any = tolerant(KafkaConsumer(
                **client_options(bootstrap_servers, security), group_id=None, enable_auto_commit=False,
                auto_offset_reset="none", isolation_level="read_committed", check_crcs=True,
                allow_auto_create_topics=False, fetch_max_wait_ms=50, max_partition_fetch_bytes=8 << 20,
                reconnect_backoff_max_ms=RECONNECT_MS, bootstrap_timeout_ms=int(CONNECT_SECONDS * 1000),
            ))  # fmt: skip
        except KafkaError as error:
            raise unreachable(bootstrap_servers, security, CONNECT_SECONDS, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> (first offset, the one after the last); {} for a topic that does not exist."""
        try:
            parts = [
                TopicPartition(topic, n) for n in sorted(self._consumer.partitions_for_topic(topic) or ())
            ]
            if not parts and hidden(self._consumer, topic):
                raise BrokerError(denied([(READ, "topic", topic)], self._user))
            limit_ms = int(LOOKUP_SECONDS * 1000)
            first = self._consumer.beginning_offsets(parts, timeout_ms=limit_ms) if parts else {}
            ends = self._consumer.end_offsets(parts, timeout_ms=limit_ms) if parts else {}
        except KafkaError as error:
            raise BrokerError(f"the bounds of {topic} cannot be asked for: {said(error, READ)}") from error
        return {part.partition: (first[part], ends[part]) for part in parts}

    def at_time(self, topic: str, time_ms: int) -> dict[int, int | None]:
        """Partition -> the first offset with a timestamp of at least `time_ms`; None where there is none."""
        try:
            parts = [TopicPartition(topic, n) for n in self._consumer.partitions_for_topic(topic) or ()]
            found = self._consumer.offsets_for_times(
                dict.fromkeys(parts, time_ms), timeout_ms=int(LOOKUP_SECONDS * 1000)
            )
        except KafkaError as error:
            raise BrokerError(f"offsets of {topic} by time cannot be asked for: {error!r}") from error
        return {part.partition: None if at is None else at.offset for part, at in found.items()}

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        """Records of each partition from its first offset up to before its second, by place.

        Those that cannot be read come marked, as they do to the service (`stream.records`).

        Raises:
            BrokerError: also when nothing comes for 30 s.
        """
        ends = {TopicPartition(topic, n): end for n, (start, end) in ranges.items() if start < end}
        records: list[Record] = []
        if not ends:
            return records
        try:
            self._consumer.assign(list(ends))
            for part in ends:
                self._consumer.seek(part, ranges[part.partition][0])
            heard, positions = time.monotonic(), {part: ranges[part.partition][0] for part in ends}
            while any(positions[part] < end for part, end in ends.items()):
                for part, raws in self._consumer.poll(timeout_ms=500).items():
                    records += [_record(raw) for raw in raws if raw.offset < ends[part]]
                # Not the last record's offset: compaction and transactions leave holes, at the end too.
                now = {part: self._consumer.position(part) for part in ends}
                heard = time.monotonic() if now != positions else heard
                positions = now
                if time.monotonic() - heard > SILENCE_SECONDS:
                    raise BrokerError(f"{topic} could not be read: nothing came for {SILENCE_SECONDS:.0f} s")
        except KafkaError as error:
            raise BrokerError(f"{topic} cannot be read: {said(error, READ)}") from error
        return sorted(records, key=lambda record: record.at)


def _record(raw: Any) -> Record:
    headers = tuple((name, value if value is not None else b"") for name, value in raw.headers)
    at = Coordinates(raw.topic, raw.partition, raw.offset)
    return Record(at, raw.value, raw.key, headers, raw.timestamp)
