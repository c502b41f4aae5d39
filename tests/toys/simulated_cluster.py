"""A Kafka cluster in memory that does to its clients whatever a real one may do, drawn from a seed.

Every call of a client is a place where it may die, be put to sleep, be fenced, or fail while its record is
written all the same. One client runs at a time: who goes on is drawn, too, so that a seed is one history.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.config import KafkaConfig
from core.errors import DeliveryError, PartitionsLost
from core.records import Coordinates, Partition, Record
from stream.memory import Crash
from stream.topic_log import Keyed, TopicLog

IDLE_SECONDS = 1.0
"""How long a poll waits on average where nothing comes."""


@dataclass
class Faults:
    """How often, of all calls."""

    crash: float = 0.004
    switch: float = 0.3
    fail: float = 0.03
    """Of what is written: not acknowledged. Nothing, a part or all of it is in the log, or comes later."""


class Client:
    """One worker's place in the group, and its thread's turn."""

    def __init__(self, name: int) -> None:
        self.name, self.turn = name, threading.Semaphore(0)
        self.alive, self.stop = True, threading.Event()
        self.generation, self.assigned = -1, frozenset[Partition]()
        self.error: BaseException | None = None
        self.rested = 0
        """Polls in a row at the end of all that it reads."""


@dataclass
class Cluster:
    """Topics, one group, and the clients that take turns."""

    partitions: int
    rng: np.random.Generator
    kafka: KafkaConfig
    faults: Faults = field(default_factory=Faults)
    topics: dict[Partition, list[Record]] = field(default_factory=lambda: defaultdict(list))
    committed: dict[Partition, tuple[int, str]] = field(default_factory=dict)
    clients: list[Client] = field(default_factory=list)
    members: set[int] = field(default_factory=set)
    generation: int = 0
    limbo: list[tuple[Partition, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]] = field(
        default_factory=list
    )
    """Given up by who sent it, and still on its way."""
    supervisor: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    now: float = 0.0
    calls: int = 0
    removed: dict[Partition, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """What happened, by kind: a simulation without crashes shows nothing."""

    # -- turns ------------------------------------------------------------------------------------------

    def step(self, client: Client) -> None:
        """Every call of a client begins here."""
        self.calls += 1
        self.now += float(self.rng.exponential(0.02))
        if self.limbo and self.rng.random() < 0.1:
            self.seen["late"] += 1
            self.write(*self.limbo.pop(0))
        if self.rng.random() < self.faults.crash:
            self.seen["crash"] += 1
            raise Crash
        if self.rng.random() < self.faults.switch:
            self.give(client)

    def give(self, client: Client) -> None:
        """Somebody else's turn; returns when it is the client's again."""
        self.pick()
        client.turn.acquire()

    def pick(self) -> None:
        """Draws who goes on: a client that lives, or who watches over them."""
        living = [client for client in self.clients if client.alive]
        place = int(self.rng.integers(len(living) + 1)) if self.rng.random() < 0.3 else 0
        if not living or place == len(living):
            self.supervisor.release()
        else:
            living[int(self.rng.integers(len(living)))].turn.release()

    # -- log --------------------------------------------------------------------------------------------

    def write(
        self, place: Partition, key: bytes | None, value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> int:  # fmt: skip
        records = self.topics[place]
        offset = records[-1].at.offset + 1 if records else 0
        records.append(Record(Coordinates(*place, offset), value, key, tuple(headers), int(self.now * 1000)))
        return offset

    def failing(self, sent: Sequence[tuple[Partition, bytes | None, bytes | None, Any]]) -> None:
        """Perhaps a delivery that is not acknowledged, whatever becomes of its records."""
        if self.rng.random() >= self.faults.fail:
            return
        self.seen["fail"] += 1
        done = int(self.rng.integers(len(sent) + 1))
        for record in sent[:done]:
            self.write(*record)
        if self.rng.random() < 0.5:
            self.limbo += sent[done:]
        raise DeliveryError("not acknowledged")

    def end(self, place: Partition) -> int:
        records = self.topics[place]
        return records[-1].at.offset + 1 if records else 0

    def compact(self, topic: str) -> None:
        """Keeps the last record of each key, and where it lies; the newest ones are left alone."""
        for number in range(self.partitions):
            records = self.topics[topic, number]
            old, new = records[:-4], records[-4:]
            last = {record.key: record.at.offset for record in records}
            kept = [r for r in old if last[r.key] == r.at.offset and r.value is not None]
            self.topics[topic, number] = kept + new

    # -- group ------------------------------------------------------------------------------------------

    def join(self, client: Client) -> None:
        """The next poll learns of the new generation."""
        self.members.add(client.name)
        self.generation += 1

    def leave(self, client: Client) -> None:
        if client.name in self.members:
            self.members.discard(client.name)
            self.generation += 1

    def assignment(self, client: Client) -> frozenset[Partition]:
        order = sorted(self.members)
        mine = order.index(client.name)
        numbers = range(self.partitions)
        return frozenset((self.kafka.queries, n) for n in numbers if n % len(order) == mine)

    # -- the supervisor's view ---------------------------------------------------------------------------

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {
            number: (self.removed.get((name, number), 0), self.end((name, number)))
            for name, number in [*self.topics]
            if name == topic
        }

    def at_time(self, topic: str, time_ms: int) -> dict[int, int | None]:
        raise AssertionError("not asked for")

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        return [
            record
            for number, (low, high) in sorted(ranges.items())
            for record in self.topics[topic, number]
            if low <= record.at.offset < high
        ]


class SimulatedSource:
    """The queries and labels of a cluster, as one member of its group polls them."""

    exhausted = False

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self._cluster, self._client = cluster, client
        self._positions: dict[Partition, int] = {}
        self._paused = False

    def poll(self, budget_seconds: float) -> list[Record]:
        cluster, client = self._cluster, self._client
        cluster.step(client)
        missed = client.generation + 1 < cluster.generation
        if client.name not in cluster.members:
            cluster.join(client)
            missed = True
        if (
            missed and client.assigned
        ):  # others may have had them meanwhile: the client is told that they are lost
            client.assigned = frozenset()
            return []
        if client.generation != cluster.generation:
            client.generation = cluster.generation
            if client.assigned and cluster.rng.random() < 0.3:  # taken and given back: one poll without
                client.assigned = frozenset()
                cluster.seen["returned"] += 1
                return []
            self._given()
        elif client.assigned != cluster.assignment(client):
            self._given()
        found = self._begin()
        places = self._beside() + ([] if self._paused else sorted(client.assigned))
        for place in cluster.rng.permutation(len(places)).tolist():
            partition = places[place]
            start, most = self._positions.get(partition, 0), int(cluster.rng.integers(0, 12))
            some = cluster.topics[partition][start : start + most]  # none of these topics is compacted
            if some:
                self._positions[partition] = some[-1].at.offset + 1
                found += some
        at_end = all(self._positions.get(place, 0) == cluster.end(place) for place in places)
        client.rested = client.rested + 1 if at_end and not found and client.assigned else 0
        if not found:
            cluster.now += float(cluster.rng.exponential(IDLE_SECONDS))
        return found

    def _given(self) -> None:
        """What is new is read from where the group stands."""
        cluster, client = self._cluster, self._client
        assigned = cluster.assignment(client)
        for partition in assigned - client.assigned:
            self._positions[partition] = cluster.committed.get(partition, (0, ""))[0]
        client.assigned = assigned

    def _begin(self) -> list[Record]:
        """Before the first query all commands there are."""
        control = self._cluster.kafka.control, 0
        if control in self._positions:
            return []
        self._positions[control] = self._cluster.end(control)
        return [*self._cluster.topics[control]]

    def _beside(self) -> list[Partition]:
        """What everybody reads: labels and commands."""
        topics = self._cluster.kafka.labels, self._cluster.kafka.control
        return sorted(place for place in self._cluster.topics if place[0] in topics)

    def assignment(self) -> frozenset[Partition]:
        return self._client.assigned

    def seek(self, partition: Partition, offset: int) -> None:
        self._positions[partition] = offset

    def pause(self, paused: bool) -> None:
        self._paused = paused

    def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
        self._cluster.step(self._client)
        self._known(offsets)
        self._cluster.committed.update({p: (offset, metadata) for p, offset in offsets.items()})

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        self._cluster.step(self._client)
        self._known(offsets)
        known = {p: self._positions[p] if offset is None else offset for p, offset in offsets.items()}
        self._cluster.committed.update({p: (offset, metadata) for p, offset in known.items()})

    def _known(self, offsets: Mapping[Partition, int | None] | Mapping[Partition, int]) -> None:
        cluster, client = self._cluster, self._client
        if client.name not in cluster.members or client.generation != cluster.generation:
            cluster.seen["fenced"] += 1
            raise PartitionsLost("of another generation")

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        self._cluster.step(self._client)
        return self._cluster.committed.get(partition)

    def lag(self) -> Mapping[Partition, int]:
        return {p: self._cluster.end(p) - self._positions.get(p, 0) for p in self._client.assigned}

    def log_id(self) -> str:
        return "simulated"

    def generation(self) -> int:
        return self._client.generation

    def close(self) -> None:
        """Nothing is held."""


class SimulatedSink:
    """Answers and dead letters on their way: a part of them arrives before anybody asks, or at the end."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self._cluster, self._client = cluster, client
        self._waiting: list[tuple[Partition, bytes | None, bytes | None, Any]] = []

    def send(
        self, channel: str, value: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        kafka = self._cluster.kafka
        topic = {"answers": kafka.answers, "dead-letters": kafka.dead_letters, "audit": kafka.audit}
        self._waiting.append(((topic[channel], 0), key, value, tuple(headers)))
        if self._cluster.rng.random() < 0.2:
            self._arrive(int(self._cluster.rng.integers(len(self._waiting) + 1)))
            self._cluster.step(self._client)

    def flush(self, budget_seconds: float) -> None:
        self._cluster.step(self._client)
        waiting, self._waiting = self._waiting, []
        self._cluster.failing(waiting)
        for record in waiting:
            self._cluster.write(*record)

    def died(self) -> None:
        """What was on its way may arrive."""
        self._arrive(int(self._cluster.rng.integers(len(self._waiting) + 1)))
        self._waiting.clear()

    def _arrive(self, count: int) -> None:
        for record in self._waiting[:count]:
            self._cluster.write(*record)
        del self._waiting[:count]

    def close(self) -> None:
        """Nothing is held."""


class SimulatedTopicLog(TopicLog):
    """State and journal in a simulated cluster."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        super().__init__("nowhere:1", 1.0, 1.0)
        self._cluster, self._client = cluster, client

    def append(self, topic: str, partition: int, keyed: Sequence[Keyed]) -> list[int]:
        self._cluster.step(self._client)
        writer = (("writer", b"%d" % self._client.name),)
        sent = [((topic, partition), key, value, writer) for key, value in keyed]
        self._cluster.failing(sent)
        offsets = [self._cluster.write(*record) for record in sent]
        self._cluster.step(self._client)  # written, and who wrote it may not learn of it
        return offsets

    def read(
        self, topic: str, partition: int, start: int
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        self._cluster.step(self._client)
        for record in [*self._cluster.topics[topic, partition]]:
            if record.at.offset >= start:
                yield record.at.offset, record.key, record.value

    def at(self, topic: str, partition: int, offset: int) -> tuple[int, bytes | None, bytes | None]:
        return next(iter(self.read(topic, partition, offset)), (-1, None, None))

    def close(self) -> None:
        """Nothing is held."""


Work = Callable[[Client, SimulatedSource, SimulatedSink, SimulatedTopicLog], None]


def begin(cluster: Cluster, client: Client, work: Work) -> threading.Thread:
    """A worker in a thread of its own, which waits for its turn."""

    def body() -> None:
        client.turn.acquire()
        sink = SimulatedSink(cluster, client)
        try:
            work(client, SimulatedSource(cluster, client), sink, SimulatedTopicLog(cluster, client))
            cluster.leave(client)
        except Crash:
            sink.died()
        except BaseException as error:  # noqa: BLE001 (the supervisor raises it)
            client.error = error
        client.alive = False
        cluster.pick()

    thread = threading.Thread(target=body, daemon=True)
    cluster.clients.append(client)
    thread.start()
    return thread
