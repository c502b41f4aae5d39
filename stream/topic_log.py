"""A partition of a topic as a log: what is appended is acknowledged, what is read reaches the present end.

Both are tried again while Kafka is away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError
from kafka.net.compat import KafkaNetClient

from core.errors import ArtifactError, ConfigError, DeliveryError
from core.security import OPEN, SecurityConfig
from stream.cluster import TOO_LARGE, absent
from stream.contradictions import ANEW
from stream.options import client_options
from stream.patience import Backoff, Patience
from stream.records import tolerant
from stream.rights import READ, WRITE, refused, said

log = logging.getLogger("qshift.changelog")

CONNECT_SECONDS = 5.0
"""Of one attempt; a stop has to wait for it."""
LOOK_SECONDS = 0.5
"""How often a call that waits looks whether it is to hurry."""
BACKOFF_SECONDS = (0.1, 2.0)
"""First and longest pause between attempts."""
SINGLE_BYTES = 64 << 10
"""Asked for where one record is wanted: Kafka sends it whole, however large, and little of what follows."""
MISSING_SECONDS = 3.0
"""A topic that the brokers do not have is waited for so long: one that was just made is known to all soon."""

TRANSIENT = (KafkaError, OSError, ConfigError)
"""What another attempt may cure: a secret that is being renewed, too."""

Isolation = Literal["read_committed", "read_uncommitted"]
Keyed = tuple[bytes, bytes | None]
"""Key and value."""


class TopicLog:
    """Writes to and reads from partitions, for one thread. Of transactions it reads what is committed.

    Args:
        bootstrap_servers: host:port of any broker of the cluster.
        delivery_seconds: how long one delivery may take.
        retry_seconds: how long a broker may be away before a call gives up.
        hurry: once it is set, calls give up soon.
        isolation: what is read of transactions, and whether one that is open is waited for.
    """

    fenced = False
    """Whether whoever was replaced as the owner of a partition cannot write there any more."""

    def __init__(
        self,
        bootstrap_servers: str,
        delivery_seconds: float,
        retry_seconds: float,
        hurry: threading.Event | None = None,
        security: SecurityConfig = OPEN,
        isolation: Isolation = "read_committed",
    ) -> None:
        self._servers, self._delivery_seconds = bootstrap_servers, delivery_seconds
        self._isolation: Isolation = isolation
        self._security = security
        self._retry_seconds, self._hurry = retry_seconds, hurry
        self._producer: Any = None
        self._places: Any = None
        """The reader of single records."""

    def connect(self, topics: Iterable[str]) -> None:
        """Connects the producer to topics, which the first append would wait for."""
        producer = self._open_producer()
        for topic in topics:
            producer.partitions_for(topic)

    def close(self) -> None:
        self._discard()
        self._let_go()

    def append(self, topic: str, partition: int, keyed: Sequence[Keyed]) -> list[int]:
        """Offsets of the records, all acknowledged. Raises DeliveryError after `retry_seconds`."""
        attempts = self._attempts()
        while True:
            try:
                producer = self._open_producer()
                sent = [producer.send(topic, value=v, key=k, partition=partition) for k, v in keyed]
                return [_offset(future, attempts) for future in sent]
            except (*TRANSIENT, ValueError) as error:  # ValueError: no such partition
                if self._producer is not None and absent(self._producer, [topic]):
                    attempts.is_missing(0.0)  # the client has waited for it
                # Idempotence ends with a producer's error: a new one starts clean, at the price of a copy.
                self._discard()
                if isinstance(error, TOO_LARGE) or not attempts.again(error, topic):
                    raise DeliveryError(
                        f"{topic}/{partition} did not acknowledge {len(keyed)} records within "
                        f"{self._retry_seconds:.0f} s: {_why(error, WRITE)}; is Kafka up, and does the topic "
                        "exist?"
                    ) from error

    def read(
        self, topic: str, partition: int, start: int
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """(offset, key, value) up to the present end.

        Raises:
            ArtifactError: the log ends before `start`, where it once was.
            DeliveryError: after a silence.
        """
        at, end, position = TopicPartition(topic, partition), None, start
        attempts = self._attempts()
        while True:
            reader: Any = None
            try:
                reader = self._reader(at)
                if not reader.partitions_for_topic(topic):  # the brokers' own word: we are connected
                    attempts.is_missing(MISSING_SECONDS)
                    raise UnknownTopicOrPartitionError(f"there is no topic {topic}")
                end = self._end(at) if end is None else end
                if position > end:
                    raise _made_anew(topic, position, end)
                reader.seek(at, position)
                while position < end:
                    before = position
                    for record in reader.poll(timeout_ms=500).get(at, []):
                        yield record.offset, record.key, record.value
                        position = record.offset + 1
                    # Compaction leaves holes, at the end of the log too.
                    position = max(position, reader.position(at))
                    if position > before:
                        attempts = self._attempts()
                    elif attempts.left() <= 0:
                        raise KafkaTimeoutError(f"nothing came at offset {position}, {end} is the end")
                return
            except TRANSIENT as error:
                if not attempts.again(error, topic):
                    raise DeliveryError(
                        f"{topic}/{partition} could not be read within {self._retry_seconds:.0f} s: "
                        f"{_why(error, READ)}; is Kafka up, and does the topic exist?"
                    ) from error
            finally:
                if reader is not None:
                    reader.close()

    def at(self, topic: str, partition: int, offset: int) -> tuple[int, bytes | None, bytes | None]:
        """(offset, key, value) of the record there, or of the next where compaction has removed it.

        Raises DeliveryError after a silence. The client stays connected: this is asked for often.
        """
        at, attempts = TopicPartition(topic, partition), self._attempts()
        while True:
            try:
                if self._places is None:
                    self._places = self._reader(at, SINGLE_BYTES)
                if self._places.assignment() != {at}:
                    self._places.assign([at])
                self._places.resume(at)
                self._places.seek(at, offset)
                while attempts.left() > 0:
                    for record in self._places.poll(timeout_ms=500, max_records=1).get(at, []):
                        self._places.pause(at)  # what follows is nobody's wish
                        return record.offset, record.key, record.value
                raise KafkaTimeoutError(f"nothing came at offset {offset}")
            except TRANSIENT as error:
                self._let_go()
                if not attempts.again(error, topic):
                    raise DeliveryError(
                        f"{topic}/{partition} could not be read within {self._retry_seconds:.0f} s: "
                        f"{_why(error, READ)}; is Kafka up, and does the topic exist?"
                    ) from error

    def _let_go(self) -> None:
        reader, self._places = self._places, None
        if reader is not None:
            with suppress(KafkaError):
                reader.close()

    def _attempts(self) -> _Attempts:
        return _Attempts(self._retry_seconds, self._hurry)

    def _end(self, at: TopicPartition) -> int:
        """Also of what is not committed yet: it may be so before we are done, and then it counts."""
        reader = self._reader(at, isolation="read_uncommitted")
        try:
            return int(reader.end_offsets([at])[at])
        finally:
            reader.close()

    def _reader(
        self, at: TopicPartition, most_bytes: int = 8 << 20, isolation: Isolation | None = None
    ) -> Any:
        limit_ms = int(1000 * min(CONNECT_SECONDS, self._retry_seconds))
        reader = _connected(
            KafkaConsumer,
            **client_options(self._servers, self._security), group_id=None, enable_auto_commit=False,
            auto_offset_reset="earliest", allow_auto_create_topics=False, fetch_max_wait_ms=50,
            max_partition_fetch_bytes=most_bytes, reconnect_backoff_max_ms=1000,
            request_timeout_ms=limit_ms, bootstrap_timeout_ms=limit_ms,
            isolation_level=isolation or self._isolation,
        )  # fmt: skip
        tolerant(reader).assign([at])
        return reader

    def _open_producer(self) -> Any:
        if self._producer is None:
            limit_ms = int(1000 * min(self._delivery_seconds, self._retry_seconds))
            self._producer = _connected(
                KafkaProducer,
                **client_options(self._servers, self._security), acks="all", enable_idempotence=True,
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


def _why(error: Exception, right: str) -> str:
    return said(error, right) if refused(error) else str(error)


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


def _made_anew(topic: str, wanted: int, end: int) -> ArtifactError:
    return ArtifactError(
        f"the topic {topic} was made anew: it ends at {end}, and the newest checkpoint was "
        f"made at {wanted} of the old one, so what came after it is gone: {ANEW}"
    )


class _Attempts(Patience):
    """Time and pauses of one call."""

    def __init__(self, seconds: float, hurry: threading.Event | None) -> None:
        super().__init__(seconds, hurry)
        self._backoff, self._missing = Backoff(*BACKOFF_SECONDS), False

    def is_missing(self, seconds: float) -> None:
        """The brokers answer, and do not have the topic: little time is left, from the first time on."""
        if not self._missing:
            self._missing = True
            self.shorten(seconds)

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
