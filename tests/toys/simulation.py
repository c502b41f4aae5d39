"""One seeded history of a service: what is sent, who dies, sleeps and comes back; what must hold after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from core.records import Partition, Record
from stream.changelog import ChangelogStore
from stream.history.verify import verify
from stream.journal import Journal
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run
from stream.states import entry_from_bytes, settled
from tests.toys.simulated_cluster import (
    Client,
    Cluster,
    Faults,
    SimulatedSink,
    SimulatedSource,
    SimulatedTopicLog,
    begin,
)

MOST_TURNS, LAST_TURNS = 40_000, 60


class Simulation:
    """A cluster, up to three workers and a supervisor that starts, stops and fences them.

    Args:
        world: pipeline, codec and queries, as `make_world` of the stream tests makes them.
        seed: of all that is drawn.
        tenants: that the queries are of; 0: none says whose it is.
        plain: the world of the run that nothing disturbs; `world` by default.
    """

    def __init__(
        self, world: Any, seed: int, queries: int = 200, partitions: int = 2, tenants: int = 0,
        plain: Any = None,
    ) -> None:  # fmt: skip
        self._world, self._rng = world, np.random.default_rng(seed)
        self._plain = plain or world
        self.cluster = Cluster(partitions, np.random.default_rng([seed, 1]), world.config.kafka)
        world.codec._now_ms = lambda: int(1000 * self.cluster.now)
        self._unsent = world.queries(queries, seed=seed)
        if tenants:
            drawn = self._rng.integers(tenants, size=queries).tolist()
            self._unsent = [
                replace(one, headers=(*one.headers, ("x-tenant", b"tenant-%d" % number)))
                for one, number in zip(self._unsent, drawn, strict=True)
            ]
        self.sent = 0
        self._threads: list[threading.Thread] = []

    def play(self) -> None:
        """Sends all, with faults; then goes on without any until all is answered and all have ended."""
        cluster = self.cluster
        self._start()
        for _ in range(MOST_TURNS):
            cluster.pick()
            cluster.supervisor.acquire()
            self._raise()
            self._expire()
            if self._unsent:
                self._disturb()
            else:
                cluster.faults = Faults(crash=0.0, fail=0.0)
                while cluster.limbo:
                    cluster.write(*cluster.limbo.pop(0))
                if self._settled():
                    break
            if not any(client.alive for client in cluster.clients):
                self._start()
        else:
            raise AssertionError(f"not settled after {MOST_TURNS} turns: {dict(cluster.seen)}")
        self._end()

    def _expire(self) -> None:
        """The group waits a while before it gives a dead member's partitions away."""
        for client in self.cluster.clients:
            if not client.alive and client.name in self.cluster.members and self._rng.random() < 0.3:
                self.cluster.leave(client)

    def _disturb(self) -> None:
        draw, cluster = self._rng.random(), self.cluster
        living = [client for client in cluster.clients if client.alive]
        if draw < 0.4:
            for record in self._unsent[: (count := int(self._rng.integers(1, 20)))]:
                partition = int(self._rng.integers(cluster.partitions))
                cluster.write((cluster.kafka.queries, partition), None, record.value, record.headers)
                self.sent += 1
            del self._unsent[:count]
        elif draw < 0.5 and len(living) < 3:
            self._start()
        elif draw < 0.58 and living:  # a member that is not heard of is dropped; it learns of that later
            cluster.leave(living[int(self._rng.integers(len(living)))])
        elif draw < 0.6 and living:
            living[int(self._rng.integers(len(living)))].stop.set()
            cluster.seen["stop"] += 1
        elif draw < 0.65:
            cluster.compact(cluster.kafka.state)
            cluster.seen["compact"] += 1

    def _start(self) -> None:
        client = Client(len(self.cluster.clients))
        self._threads.append(begin(self.cluster, client, self._work))

    def _work(
        self, client: Client, source: SimulatedSource, sink: SimulatedSink, log: SimulatedTopicLog
    ) -> None:
        world, kafka = self._world, self.cluster.kafka
        store = ChangelogStore("nowhere:1", kafka)
        store._log, store._journal = log, Journal(log, kafka.journal)
        run(
            source, world.pipeline, world.codec, sink, store, [], world.config, client.stop,
            clock=lambda: self.cluster.now, poll_seconds=0.0, backoff_seconds=(0.0, 0.0),
        )  # fmt: skip

    def _settled(self) -> bool:
        kafka = self.cluster.kafka
        found = {r.key for r in self.cluster.topics[kafka.answers, 0]}
        refused = {dict(r.headers)["x-source-offset"] for r in self.cluster.topics[kafka.dead_letters, 0]}
        return len(found) + len(refused) >= self.sent

    def _end(self) -> None:
        """All end. Who lost partitions meanwhile has not saved all: a last worker repeats and saves it."""
        self._stop()
        self._start()
        for _ in range(LAST_TURNS):
            self.cluster.pick()
            self.cluster.supervisor.acquire()
            self._expire()
        self._stop()

    def _stop(self) -> None:
        for client in self.cluster.clients:
            client.stop.set()
        while any(client.alive for client in self.cluster.clients):
            self.cluster.pick()
            self.cluster.supervisor.acquire()
        for thread in self._threads:
            thread.join(10)
        self._raise()

    def _raise(self) -> None:
        for client in self.cluster.clients:
            if client.error is not None:
                raise client.error

    # -- what must hold ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing lost, nothing differing, no finding, and the state of a run that nothing disturbed."""
        cluster, kafka = self.cluster, self.cluster.kafka
        verdict = verify(cluster, kafka)
        assert not verdict.violations, verdict.document()
        answers: dict[bytes, set[bytes]] = {}
        for record in cluster.topics[kafka.answers, 0]:
            answers.setdefault(record.key or b"", set()).add(record.value or b"")
        queries = [r for n in range(cluster.partitions) for r in cluster.topics[kafka.queries, n]]
        assert set(answers) == {str(record.at).encode() for record in queries}
        assert {key for key, values in answers.items() if len(values) > 1} == set()
        expected, states = self._undisturbed(queries)
        assert answers == expected
        assert self._states() == states

    def _undisturbed(self, queries: list[Record]) -> tuple[dict[bytes, set[bytes]], dict[str, str]]:
        """Answers and final states of one worker that obeys the same boundaries."""
        world, kafka, store, sink = self._plain, self.cluster.kafka, MemoryStore(), MemorySink()
        for number in range(self.cluster.partitions):
            place: Partition = (kafka.queries, number)
            entries = [entry_from_bytes(r.value or b"") for r in self.cluster.topics[kafka.journal, number]]
            store._journal[place] = settled(entries, {})
        report = run(
            MemorySource(queries, [kafka.queries]), world.pipeline, world.codec, sink, store, [], world.config
        )
        answers = {r.key or b"": {r.value or b""} for r in sink.records["answers"]}
        return answers, dict(report.lanes)

    def _states(self) -> dict[str, str]:
        """Hash of each lane in the newest checkpoints."""
        store = ChangelogStore("nowhere:1", self.cluster.kafka)
        self.cluster.faults = Faults(0.0, 0.0, 0.0)
        store._log = SimulatedTopicLog(self.cluster, Client(-1))
        found = {}
        for number in range(self.cluster.partitions):
            checkpoint = store.load((self.cluster.kafka.queries, number))
            found.update({lane.lane: lane.state_hash for lane in checkpoint.heads} if checkpoint else {})
        return found


Make = Callable[..., Any]


def simulated(make_world: Make, seed: int, tenants: int = 0, live: int = 0) -> Cluster:
    """Plays and checks one history. Raises AssertionError, or what a worker raised.

    Args:
        tenants: with lanes of their own, of which each worker has `live` in memory.
    """
    rng = np.random.default_rng([seed, 2])
    linger, every = float(rng.choice([0.05, 0.5, 60.0])), int(rng.integers(1, 5))

    def world(most: int) -> Any:
        apart = {"per_tenant_lanes": True, "live_lanes": most} if tenants else {}
        return make_world(
            batch={"size": 16, "floor": 8, "linger_seconds": linger, **apart}, state={"every_batches": every}
        )

    simulation = Simulation(world(live), seed, tenants=tenants, plain=world(0))
    simulation.play()
    simulation.check()
    return simulation.cluster
