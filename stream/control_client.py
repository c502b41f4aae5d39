"""The operator's end of the control topic: a command goes out, what became of it comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self

from kafka.errors import AuthorizationError

from core.config import KafkaConfig
from core.errors import BrokerError, ConfigError, DeliveryError, Refused
from core.records import Coordinates, Record
from stream.client import polled, reader_of
from stream.command_messages import Acknowledgement, acknowledgements
from stream.handshake import introduce
from stream.messages import validated
from stream.rights import READ, said
from stream.sink import KafkaSink

POLL_SECONDS = 0.2


class ControlClient:
    """Sends commands and reads acknowledgements.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.close()

    def send(self, value: bytes, lane: str = "") -> Coordinates:
        """Sends a command and returns its place. Raises DeliveryError when it was not stored."""
        sent = self._sink.emit_to(self._topics.control, value, lane.encode() or None)
        self._sink.flush(self._topics.delivery_timeout_seconds)
        return sent.coordinates()

    def acknowledgements(
        self, command: Coordinates, lane: str, budget_seconds: float
    ) -> Iterator[Acknowledgement]:
        """Acknowledgements of a command as they come, each once; ends when none is wanting.

        Args:
            lane: that it is for, "" for lanes of all partitions.

        Raises:
            DeliveryError: some were not there within the budget.
            BrokerError: we may not read them.
        """
        try:
            audit = reader_of(self._servers, self._topics.security, self._topics.audit)
        except AuthorizationError as error:
            raise BrokerError(said(error, READ, self._topics.security.username)) from error
        try:
            wanting = _Wanting(self._partitions(audit, lane))
            deadline = time.monotonic() + budget_seconds
            while wanting and time.monotonic() < deadline:
                for record in polled(audit, POLL_SECONDS):
                    found = _of(record, command)
                    if found is not None and wanting.new(found, record):
                        yield found
            if wanting:
                raise DeliveryError(
                    f"not acknowledged within {budget_seconds:.0f} s: {wanting}; is the service up? The "
                    "command stands in the log and is obeyed when it is"
                )
        finally:
            audit.close()

    def _partitions(self, consumer: Any, lane: str) -> set[int]:
        numbers = set(consumer.partitions_for_topic(self._topics.queries) or ())
        if not numbers:
            raise ConfigError(
                f"the topic {self._topics.queries} is not there, or we may not Describe it: nobody is known "
                "who could acknowledge"
            )
        named = lane.partition(":")[0]
        if not lane or not named.isdecimal():
            return {0} if lane else numbers
        if int(named) not in numbers:
            raise ConfigError(f"{self._topics.queries} has no partition {named}: there is no lane {lane}")
        return {int(named)}


class _Wanting:
    """Partitions whose lanes have not all acknowledged."""

    def __init__(self, partitions: set[int]) -> None:
        self._lanes: dict[int, set[str]] = {number: set() for number in partitions}
        self._many: dict[int, int] = {}

    def new(self, found: Acknowledgement, record: Record) -> bool:
        """Notes an acknowledgement; whether it is the first of its lane."""
        lanes = self._lanes.setdefault(found.partition, set())
        first = found.lane not in lanes
        lanes.add(found.lane)
        self._many[found.partition] = int(dict(record.headers).get("x-lanes", b"1"))
        return first

    def _left(self) -> list[int]:
        return [n for n, lanes in sorted(self._lanes.items()) if len(lanes) < self._many.get(n, 1)]

    def __bool__(self) -> bool:
        return bool(self._left())

    def __str__(self) -> str:
        return ", ".join(f"partition {number}" for number in self._left())


def _of(record: Record, command: Coordinates) -> Acknowledgement | None:
    """The acknowledgement in a record, if it is of the command."""
    try:
        found = validated(acknowledgements, record.value or b"")
    except Refused:  # of a later version, or nobody's
        return None
    return found if found.command.coordinates() == command else None
