"""Where reading stands in each partition, and whether what comes is what should come next."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError

from core.errors import BrokerError, OffsetGoneError
from core.records import Coordinates, Partition, Record
from stream.cluster import LOOKUP_SECONDS
from stream.rights import READ, said
from stream.topic_identity import ANEW

log = logging.getLogger("qshift.kafka")


class Positions:
    """The next offset of every partition that was read from.

    Args:
        queries: topic of which no record may be missing. Labels only measure, and commands that are gone
            are missed by whoever is to repeat them.
    """

    def __init__(self, queries: str) -> None:
        self._queries = queries
        self._next: dict[Partition, int] = {}

    def forget(self, partition: Partition) -> None:
        """Of a partition that was taken away: whoever has it next starts elsewhere."""
        self._next.pop(partition, None)

    def seek(self, consumer: Any, partition: Partition, offset: int) -> None:
        """Continues at an offset, or where the log of a label partition begins or ends.

        Raises:
            OffsetGoneError: the log of a query partition starts later, or ends before the offset.
        """
        first, end = _bounds(consumer, partition)
        if first is not None and first > offset:
            self._gone(partition, offset, first)
            offset = first
        if end is not None and end < offset:
            self._gone(partition, offset, end)
            offset = end
        consumer.seek(TopicPartition(*partition), offset)
        self._next[partition] = offset

    def record(self, consumer: Any, raw: Any, returned: bool) -> Record:
        """What the client read, as a value of ours.

        Args:
            returned: its partition was taken and given back: it is read from the group's offset again.

        Raises:
            OffsetGoneError: retention removed records of a query partition that were not read yet.
        """
        partition = (raw.topic, raw.partition)
        expected = self._next.get(partition)
        if expected is not None and raw.offset != expected and not returned:
            self._explain_gap(consumer, partition, expected, raw.offset)
        self._next[partition] = raw.offset + 1
        headers = tuple((name, value if value is not None else b"") for name, value in raw.headers)
        return Record(Coordinates(*partition, raw.offset), raw.value, raw.key, headers, raw.timestamp)

    def _explain_gap(self, consumer: Any, partition: Partition, expected: int, found: int) -> None:
        """A jump is harmless over transaction markers and compacted records, and fatal over lost ones.

        The client resets an offset that is out of range without a word: this is where it is noticed.
        """
        first, _ = _bounds(consumer, partition)
        if found < expected or (first is not None and first > expected):
            self._gone(partition, expected, found)

    def _gone(self, partition: Partition, wanted: int, have: int) -> None:
        name = f"{partition[0]}/{partition[1]}"
        if partition[0] != self._queries:  # to miss old ones is no reason to stand still
            log.warning(
                "labels or commands are missing", extra={"partition": name, "wanted": wanted, "have": have}
            )
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

    def lag(self, consumer: Any, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Records up to the end of the log, from the last answers of the broker, without a request."""
        behind: dict[Partition, int] = {}
        for partition in partitions:
            left = self._left(consumer, partition)
            if left is not None:
                behind[partition] = left
        return behind

    def _left(self, consumer: Any, partition: Partition) -> int | None:
        position, part, end = self._next.get(partition), TopicPartition(*partition), None
        try:
            end = consumer.highwater(part)
            if end is not None and position is not None and end > position:
                # The client also knows what it has stepped over: markers of transactions are no records.
                position = max(position, consumer.position(part, timeout_ms=0) or 0)
        except kafka_errors.IllegalStateError:  # lost since the last poll
            return None
        except KafkaError as error:
            log.debug("position not known", extra={"partition": partition, "error": repr(error)})
        return None if end is None or position is None else max(0, end - position)


def _bounds(consumer: Any, partition: Partition) -> tuple[int | None, int | None]:
    """First offset of the log and the one after its last; (None, None) while Kafka is away."""
    part, timeout_ms = TopicPartition(*partition), int(LOOKUP_SECONDS * 1000)
    try:
        first = consumer.beginning_offsets([part], timeout_ms=timeout_ms)[part]
        return first, consumer.end_offsets([part], timeout_ms=timeout_ms)[part]
    except KafkaError as error:
        if not error.retriable:
            raise BrokerError(f"Kafka cannot be read: {said(error, READ)}") from error
        return None, None
