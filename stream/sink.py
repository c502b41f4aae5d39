"""The sink on Apache Kafka: acks=all, every future checked, a bound on un-acknowledged bytes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.errors import KafkaError, KafkaTimeoutError

from core.config import KafkaConfig
from core.errors import ConfigError, DeliveryError, Refused
from core.protocols import Channel
from core.records import Coordinates
from stream.cluster import CLOSE_SECONDS, RECONNECT_MS, TOO_LARGE, absent, message_limits
from stream.inflight import Epoch, Inflight
from stream.letters import HEADROOM_BYTES, fitted, least
from stream.options import client_options
from stream.patience import Patience
from stream.records import encoded_bytes
from stream.rights import WRITE, refused, said

log = logging.getLogger("qshift.kafka")
NOT_TAKEN = (kafka_errors.InvalidRecordError, kafka_errors.InvalidTimestampError)
"""A topic that wants keys, or no old records: the same record is refused at each attempt."""
FLUSH_SECONDS = 1.0  # after so long a flush looks for itself whether all is settled, or it is to hurry
TOPIC_MS = 2000  # after so long a record that waits for its topic to be known looks for itself, too


class Sent:
    """A record on its way."""

    def __init__(self, future: Any, user: str | None = None) -> None:
        self._future, self._user = future, user

    def coordinates(self, budget_seconds: float = 60.0) -> Coordinates:
        """Where it was stored; waits for that. Raises DeliveryError if it was not."""
        try:
            stored = self._future.get(timeout=budget_seconds)
        except KafkaError as error:
            if refused(error):
                raise DeliveryError(said(error, WRITE, self._user)) from error
            raise DeliveryError(f"the record was not stored: {error!r}; is Kafka reachable?") from error
        return Coordinates(stored.topic, stored.partition, stored.offset)


class KafkaSink:
    """Writes with acks=all and an idempotent producer.

    After a failed `flush` the producer is thrown away, and the next record makes a new one: what became of
    the old one's records is not known, and the caller sends them again.

    A record that a topic cannot take would be sent again for ever. So the topics are asked for their limit
    once, a record above it is refused before it is sent, and a dead letter is cut until it fits. Where they
    cannot be asked, or their limit was lowered since, what Kafka refuses for its size lowers ours.

    Args:
        bootstrap_servers: host:port[,host:port].
        config: topics, bound on un-acknowledged bytes, delivery time-out.
        message_bytes: largest record, without 64 KiB for headers; one larger is refused before it is sent.
        linger_seconds: how long a record may wait for company; `flush` does not wait for it.
        hurry: once it is set, calls that wait give up soon.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        config: KafkaConfig,
        message_bytes: int = 1 << 20,
        linger_seconds: float = 0.005,
        hurry: threading.Event | None = None,
    ) -> None:
        self._servers, self._timeout = bootstrap_servers, config.delivery_timeout_seconds
        self._security = config.security
        self._topics: dict[Channel, str] = {
            "answers": config.answers, "dead-letters": config.dead_letters,
            "labels": config.labels, "queries": config.queries,
            "control": config.control, "audit": config.audit,
        }  # fmt: skip
        self._limit, self._linger = message_bytes + HEADROOM_BYTES, linger_seconds
        self._limits: dict[str, int] | None = None
        self._dropped, self._plain = 0, False
        self._inflight = Inflight(config.max_inflight_bytes)
        self._epoch: Epoch | None = None
        self._hurry = hurry
        self._making = threading.Lock()

    @property
    def inflight_bytes(self) -> int:
        """Bytes taken by `send` and not acknowledged yet."""
        return self._inflight.bytes

    def warm_up(self) -> None:
        """Connects the producer to its topics, which the first answers would wait for."""
        for topic in (self._topics["answers"], self._topics["dead-letters"]):
            try:
                self._producer().producer.partitions_for(topic)
            except KafkaError as error:  # the first answer will say what is wrong
                log.info("topic not known yet", extra={"topic": topic, "error": repr(error)})

    def send(
        self, channel: Channel, value: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Takes one record; blocks while too many bytes are not acknowledged.

        Raises:
            DeliveryError: Kafka is away for longer than the delivery time-out.
            Refused: the record is larger than `message_bytes` (and 64 KiB for headers), or than its topic
                takes; nothing was sent. Never for a dead letter.
        """
        topic = self._topics[channel]
        if channel != "dead-letters":
            self.emit_to(topic, value, key, headers)
            return
        self._producer()  # knows the limits
        letter = fitted((value, key, list(headers)), self._room(topic))
        if self._plain:
            letter = least((value, key, list(headers)))
        try:
            self.emit_to(topic, *letter)
        except Refused as refused:  # a topic that takes next to nothing must not end the service
            self._dropped += 1
            log.error(
                "dead letter dropped: its topic takes not even coordinates",
                extra={"topic": topic, "dropped": self._dropped, "error": refused.reason},
            )

    def emit_to(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> Sent:
        """As `send`, to any topic and partition; what is returned knows the record's place in the log."""
        size = encoded_bytes(value, key, headers)
        if size > self._limit:  # needs no Kafka to be refused
            raise self._oversize(topic, size)
        epoch = self._producer()
        if size > self._room(topic):
            raise self._oversize(topic, size)
        # Every record is acknowledged or fails within the time-out, so waiting longer means a defect.
        if not self._inflight.take(size, self._timeout + CLOSE_SECONDS):
            raise DeliveryError(f"no room for a record: {self.inflight_bytes} bytes are not acknowledged")
        try:
            future = self._handed(
                epoch, topic, value=value, key=key, headers=list(headers), partition=partition
            )
        except TOO_LARGE as error:
            self._inflight.give(size)
            self._lower(topic, size)
            raise self._oversize(topic, size) from error
        except KafkaError as error:
            self._inflight.give(size)
            if epoch.failed:  # said now, not at the next flush: the producer takes nothing any more
                self._discard(epoch)
            if refused(error):
                raise DeliveryError(said(error, WRITE, self._security.username)) from error
            gone = _missing(absent(epoch.producer, [topic]))
            raise DeliveryError(
                gone or f"a record for {topic} was not taken: {error!r}; is Kafka up?"
            ) from error
        except BaseException:
            self._inflight.give(size)
            raise
        epoch.watch(topic, future, size, lambda error: self._learn(topic, size, error))
        return Sent(future, self._security.username)

    def _handed(self, epoch: Epoch, topic: str, **record: Any) -> Any:
        """The client's future of a record. Raises KafkaError, when its topic is not known in time, too."""
        patience = Patience(self._timeout, self._hurry)
        while True:
            try:
                return epoch.producer.send(topic, **record)
            except KafkaTimeoutError:
                if epoch.failed or not patience.left() or absent(epoch.producer, [topic]):
                    raise

    def flush(self, budget_seconds: float) -> None:
        """Returns when every record since the last flush is durable.

        Raises:
            DeliveryError: one was not acknowledged, or not within the budget.
        """
        epoch = self._epoch
        if epoch is None:
            return
        patience, gone = Patience(budget_seconds, self._hurry), ""
        while True:
            left = patience.left()
            try:
                epoch.producer.flush(timeout=min(left, FLUSH_SECONDS))
            except KafkaError as error:
                log.debug("flush failed", extra={"error": repr(error)})
            # The producer's word is not enough: it returns normally when records have expired (T1), and never
            # when it had to split a batch that was too large.
            if epoch.settled(min(left, FLUSH_SECONDS)) or left == 0:
                break
            gone = _missing(absent(epoch.producer, epoch.topics()))
            if gone:  # the client would wait for it until the time-out
                break
        if epoch.pending or epoch.failed:
            self._discard(epoch)
            if refused(epoch.first_error):
                raise DeliveryError(said(epoch.first_error, WRITE, self._security.username))
            raise DeliveryError(
                gone
                or f"{epoch.failed} records failed and {epoch.pending} were not acknowledged within "
                f"{budget_seconds:.0f} s, first error: {epoch.first_error!r}; they must be sent again"
            )

    def close(self) -> None:
        """Sends what is left, for a few seconds. Call `flush` before to be sure."""
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            _end(epoch.producer, CLOSE_SECONDS)

    def _room(self, topic: str) -> int:
        """Largest record that the topic takes from us, as far as we know."""
        return min(self._limit, (self._limits or {}).get(topic, self._limit))

    def _oversize(self, topic: str, size: int) -> Refused:
        return Refused(
            "validate",
            f"a record of {size} bytes for {topic}, expected at most {self._room(topic)}: send less, or a "
            "reference, or raise limits.message_bytes and the topic's max.message.bytes",
        )

    def _learn(self, topic: str, size: int, error: BaseException) -> None:
        """What Kafka has refused once it would refuse for ever."""
        if isinstance(error, TOO_LARGE):
            self._lower(topic, size)
        elif isinstance(error, NOT_TAKEN) and topic == self._topics["dead-letters"]:
            self._plain = True
            log.error("dead letters are not taken, sending least ones", extra={"error": repr(error)})

    def _lower(self, topic: str, size: int) -> None:
        """Kafka does not take so many bytes. Dead letters can be cut: halving soon finds what is taken."""
        limit = size // 2 if topic == self._topics["dead-letters"] else size - 1
        self._limits = {**(self._limits or {}), topic: min(limit, self._room(topic))}
        log.error("a record is too large for its topic", extra={"topic": topic, "bytes": size})

    def _producer(self) -> Epoch:
        with self._making:
            if self._epoch is None:
                self._epoch = Epoch(self._connect(), self._inflight)
            if self._limits is None:
                self._limits = message_limits(self._servers, self._topics.values(), security=self._security)
            return self._epoch

    def _connect(self, **options: Any) -> Any:
        timeout_ms = int(self._timeout * 1000)
        linger_ms = int(self._linger * 1000)
        try:
            return self._made(
                **client_options(self._servers, self._security),
                bootstrap_timeout_ms=timeout_ms, acks="all",
                enable_idempotence=True, max_in_flight_requests_per_connection=5, linger_ms=linger_ms,
                batch_size=128 << 10, max_request_size=self._limit, max_block_ms=min(TOPIC_MS, timeout_ms),
                delivery_timeout_ms=timeout_ms, request_timeout_ms=min(10_000, timeout_ms // 2),
                reconnect_backoff_max_ms=RECONNECT_MS, **options,
            )  # fmt: skip
        except KafkaError as error:
            raise DeliveryError(f"no Kafka at {self._servers}: {error!r}; is it up?") from error
        except ConfigError as error:  # a secret that was there at the start: it may come back
            raise DeliveryError(str(error)) from error

    def _made(self, **options: Any) -> Any:
        return KafkaProducer(**options)

    def _discard(self, epoch: Epoch) -> None:
        """Lets a producer end on its own thread: its batches expire, and count as in flight until then."""
        self._epoch = None
        end_aside(epoch.producer, self._timeout + CLOSE_SECONDS)


def _missing(topics: Sequence[str]) -> str:
    """What is wrong, where topics are not there; "" where they are."""
    if not topics:
        return ""
    return f"the topic {topics[0]} does not exist: create it, or correct kafka.* in the TOML"


def end_aside(producer: Any, budget_seconds: float) -> None:
    """Lets a producer end on a thread of its own."""
    threading.Thread(target=_end, args=(producer, budget_seconds), daemon=True).start()


def _end(producer: Any, budget_seconds: float) -> None:
    try:
        producer.close(timeout=budget_seconds)
    except KafkaError as error:
        log.warning("producer closed with records left", extra={"error": repr(error)})
