"""Kafka in memory, and clients of it of which one call goes wrong: before it took effect, after, or later.

A producer is what the client's own one is to us, its traps included: a record that expires fails its future
and nothing else (`stream.transaction`), and what failed may have been done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kafka import TopicPartition
from kafka.errors import CommitFailedError, IllegalStateError, KafkaError, KafkaTimeoutError

from core.records import Coordinates, Partition, Record

PRODUCE = ("raised", "lost", "stored", "late")
"""What may become of a record: refused by `send`, never stored, stored and not acknowledged, stored later."""

CALLS = ("before", "after", "silence", "silence after")
"""What may become of a call of a transaction: an error before or after it took effect, or no word of it."""


@dataclass
class Transaction:
    """One of a transactional id."""

    epoch: int
    ended: str = ""
    """"committed" or "aborted"; "": it is open."""
    offsets: dict[Partition, tuple[int, str]] = field(default_factory=dict)
    places: set[Partition] = field(default_factory=set)


@dataclass
class Stored:
    """A record, or (without key and value) the marker that ends a transaction."""

    record: Record
    within: Transaction | None


class ScriptedKafka:
    """Topics, the offsets of one group, and the fault.

    Args:
        nth: the call that goes wrong, from 1; 0: none does.
        kind: how.
    """

    def __init__(self, nth: int = 0, kind: str = "") -> None:
        self.nth, self.kind = nth, kind
        self.calls: list[str] = []
        self.topics: dict[Partition, list[Stored]] = defaultdict(list)
        self.committed: dict[Partition, tuple[int, str]] = {}
        self.open: dict[str, Transaction] = {}
        """Of each transactional id the newest one."""
        self.generation = 1
        self._limbo: list[Callable[[], object]] = []

    def call(self, name: str) -> str:
        """Every call that reaches Kafka begins here; "" or how it goes wrong."""
        while self._limbo:
            self._limbo.pop()()
        self.calls.append(name)
        return self.kind if len(self.calls) == self.nth else ""

    def later(self, arrive: Callable[[], object]) -> None:
        """Done before the call after the next one."""
        self._limbo.append(lambda: self._limbo.insert(0, arrive))

    def store(self, place: Partition, record: Sequence[Any], within: Transaction | None) -> int:
        if within is not None and within.ended:
            raise IllegalStateError("of a transaction that has ended")
        if within is not None:
            within.places.add(place)
        log = self.topics[place]
        log.append(Stored(Record(Coordinates(*place, len(log)), *record), within))
        return len(log) - 1

    def end(self, transactional_id: str, how: str) -> None:
        """Commits or aborts what is open."""
        one = self.open.get(transactional_id)
        if one is None or one.ended:
            return
        one.ended = how
        for place in one.places:
            self.store(place, (None, None, ()), None)
        if how == "committed":
            self.committed.update(one.offsets)

    def stable(self, place: Partition) -> int:
        """Where the first open transaction begins, or the end."""
        log = self.topics[place]
        unended = (n for n, one in enumerate(log) if one.within is not None and not one.within.ended)
        return next(unended, len(log))

    def read(self, topic: str, partition: int = 0, start: int = 0, committed: bool = True) -> list[Record]:
        """What a reader sees, of committed records or of all."""
        log = self.topics[topic, partition]
        end = self.stable((topic, partition)) if committed else len(log)
        aborted = {"aborted"} if committed else set()
        return [
            one.record
            for one in log[start:end]
            if (one.record.key, one.record.value) != (None, None)
            and (one.within is None or one.within.ended not in aborted)
        ]


class Future:
    """Of a record, settled from the beginning."""

    is_done = True

    def __init__(self, stored: Coordinates | None, error: Exception | None = None) -> None:
        self._stored, self._error = stored, error

    def get(self, timeout: float | None = None) -> Any:
        if self._error is not None:
            raise self._error
        return self._stored

    def add_callback(self, told: Callable[[Any], object]) -> None:
        if self._error is None:
            told(self._stored)

    def add_errback(self, told: Callable[[Any], object]) -> None:
        if self._error is not None:
            told(self._error)


class Result:
    """Of a transactional call."""

    def __init__(self, error: Exception | None = None, silent: bool = False) -> None:
        self._error, self._silent = error, silent

    def wait(self, timeout_ms: float | None = None) -> bool:
        if self._error is not None:
            raise self._error
        assert not self._silent or timeout_ms is not None, "waits for ever"
        return not self._silent


class ScriptedProducer:
    """What our sinks and logs use of a producer; its own sender and its own keeper of transactions."""

    def __init__(self, kafka: ScriptedKafka, transactional_id: str | None = None) -> None:
        self.kafka, self.transactional_id = kafka, transactional_id
        self._sender = self._transaction_manager = self
        self._metadata = SimpleNamespace(_last_successful_refresh_ms=float("-inf"))
        self._mine: Transaction | None = None
        self._epoch, self._begun = 0, False
        self._error: Exception | None = None

    def send(
        self, topic: str, value: bytes | None = None, key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (), partition: int | None = None,
    ) -> Future:  # fmt: skip
        self._check(sending=True)
        place, record = (topic, partition or 0), (value, key, tuple(headers))
        fault = self.kafka.call(f"send {topic}")
        if fault == "raised":
            raise KafkaTimeoutError("the topic is not known in time")
        mine = self._mine
        if fault == "stored":
            self.kafka.store(place, record, mine)
        if fault == "late":
            self.kafka.later(lambda: (mine and mine.ended) or self.kafka.store(place, record, mine))
        if fault and fault != "expired" and self.transactional_id is not None:
            self._error = KafkaError("a record has failed")
        if fault:
            return Future(None, KafkaTimeoutError("expired"))
        return Future(Coordinates(*place, self.kafka.store(place, record, mine)))

    def flush(self, timeout: float | None = None) -> None:
        """Says nothing of records that have failed, as the client's."""

    def close(self, timeout: float | None = None) -> None:
        self._error = self._error or IllegalStateError("closed")

    def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def force_close(self) -> None:
        self.close()

    def wakeup(self) -> None:
        """Nothing sleeps."""

    # -- transactions -----------------------------------------------------------------------------------

    def init_transactions(self) -> None:
        fault = self.kafka.call("init")
        if fault != "before":
            self.kafka.end(str(self.transactional_id), "aborted")
            before = self.kafka.open.get(str(self.transactional_id))
            self._epoch = before.epoch + 1 if before else 0
            self.kafka.open[str(self.transactional_id)] = Transaction(self._epoch, ended="aborted")
        if fault:
            raise KafkaTimeoutError("no word of it")

    def begin_transaction(self) -> None:
        self._check()
        assert not self._begun
        self._begun = True
        self._mine = Transaction(self._epoch)
        if self._fenced():
            return  # learned of by the first record
        self.kafka.open[str(self.transactional_id)] = self._mine

    def send_offsets_to_transaction(self, offsets: Any, member: Any) -> Result:
        self._check(sending=True)
        assert self._mine is not None
        fault = self.kafka.call("offsets")
        if member.generation_id != self.kafka.generation:
            self._error = CommitFailedError("of another generation")
            return Result(self._error)
        if fault not in ("before", "silence"):
            for part, one in offsets.items():
                self._mine.offsets[part.topic, part.partition] = (one.offset, one.metadata)
        return self._result(fault)

    def begin_commit(self) -> Result:
        return self._end("committed")

    def begin_abort(self) -> Result:
        return self._end("aborted")

    def _end(self, how: str) -> Result:
        self._check(sending=True)
        fault = self.kafka.call("commit" if how == "committed" else "abort")
        if fault not in ("before", "silence"):
            self.kafka.end(str(self.transactional_id), how)
        self._begun, self._mine = False, None
        return self._result(fault)

    def _result(self, fault: str) -> Result:
        if not fault:
            return Result()
        self._error = KafkaError("a request has timed out")
        silent = fault in ("silence", "silence after")
        return Result(None if silent else self._error, silent)

    def _fenced(self) -> bool:
        newest = self.kafka.open.get(str(self.transactional_id))
        return newest is None or newest.epoch != self._epoch

    def _check(self, sending: bool = False) -> None:
        if self._error is not None:
            raise KafkaError(f"in an error state: {self._error!r}")
        if self.transactional_id is None:
            return
        if sending and not self._begun:
            raise IllegalStateError("no transaction")
        if sending and self._fenced():
            self._error = KafkaError("fenced")
            raise self._error


class ScriptedReader:
    """What `TopicLog` uses of a consumer of one partition."""

    def __init__(self, kafka: ScriptedKafka, at: TopicPartition, committed: bool = True) -> None:
        self._kafka, self._at, self._committed = kafka, at, committed
        self._position = 0

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def end_offsets(self, parts: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        place = (self._at.topic, self._at.partition)
        end = self._kafka.stable(place) if self._committed else len(self._kafka.topics[place])
        return {self._at: end}

    def assignment(self) -> set[TopicPartition]:
        return {self._at}

    def seek(self, at: TopicPartition, offset: int) -> None:
        self._position = offset

    def position(self, at: TopicPartition) -> int:
        return self._position

    def poll(self, timeout_ms: float = 0, max_records: int | None = None) -> dict[TopicPartition, list[Any]]:
        found = list(self._found())[:max_records]
        end = self.end_offsets([self._at])[self._at]
        self._position = found[-1].offset + 1 if max_records and found else max(self._position, end)
        return {self._at: found}

    def _found(self) -> Iterator[Any]:
        for one in self._kafka.read(self._at.topic, self._at.partition, self._position, self._committed):
            yield SimpleNamespace(offset=one.at.offset, key=one.key, value=one.value)

    def resume(self, *parts: TopicPartition) -> None:
        """Nothing is paused."""

    pause = resume

    def close(self) -> None:
        """Nothing is held."""
