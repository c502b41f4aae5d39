"""One seeded history of a service: what is sent, who dies, sleeps and comes back."""

from __future__ import annotations

import threading

import numpy as np

from stream.changelog import ChangelogStore
from stream.journal import Journal
from stream.runner import run
from tests.toys.simulated_cluster import (
    Client,
    Cluster,
    Faults,
    SimulatedSink,
    SimulatedSource,
    SimulatedTopicLog,
    begin,
)
from tests.toys.simulated_hands import COMMANDS, Hands
from tests.toys.simulated_promises import Promises
from tests.toys.simulated_world import SimulatedWorld, simulated_world

QUERIES, PARTITIONS, WORKERS = 100, 2, 3
MOST_TURNS, RESTED = 40_000, 3


class Simulation:
    """A cluster, up to three workers and a supervisor that starts, stops and fences them.

    Args:
        seed: of all that is drawn.
        tenants: with lanes of their own, of which each worker has `live` in memory; then nobody commands, as
            a lane that is away obeys when it is asked again.
    """

    def __init__(self, seed: int, tenants: int = 0, live: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.world: SimulatedWorld = simulated_world(
            seed, lambda: int(1000 * self.cluster.now), tenants, live
        )
        self.cluster = Cluster(PARTITIONS, np.random.default_rng([seed, 1]), self.world.config.kafka)
        self.hands = Hands(self.cluster, self.world, self._rng, QUERIES, 0 if tenants else COMMANDS)
        self._threads: list[threading.Thread] = []

    def play(self) -> None:
        """Sends all, with faults; then goes on without any until all is answered and all have ended."""
        cluster = self.cluster
        self._start()
        ended = False
        for _ in range(MOST_TURNS):
            cluster.pick()
            cluster.supervisor.acquire()
            self._raise()
            self._expire()
            if not self.hands.done:
                self._disturb()
            else:
                cluster.faults = Faults(crash=0.0, fail=0.0)
                while cluster.limbo:
                    cluster.write(*cluster.limbo.pop(0))
                if not ended:
                    if not self.world.tenants:
                        self.hands.end()
                    ended = True
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
        if draw < 0.7:
            self.hands.move()
        elif draw < 0.8 and len(living) < WORKERS:
            self._start()
        elif draw < 0.88 and living:  # a member that is not heard of is dropped; it learns of that later
            cluster.leave(living[int(self._rng.integers(len(living)))])
        elif draw < 0.9 and living:
            living[int(self._rng.integers(len(living)))].stop.set()
            cluster.seen["stop"] += 1
        elif draw < 0.95:
            cluster.compact(cluster.kafka.state)
            cluster.seen["compact"] += 1

    def _start(self) -> None:
        client = Client(len(self.cluster.clients))
        self._threads.append(begin(self.cluster, client, self._work))

    def _work(
        self, client: Client, source: SimulatedSource, sink: SimulatedSink, log: SimulatedTopicLog
    ) -> None:
        kafka, engine = self.cluster.kafka, self.world.engine()
        store = ChangelogStore("nowhere:1", kafka)
        store._log, store._journal = log, Journal(log, kafka.journal)
        run(
            source, engine.pipeline, engine.codec, sink, store, [], engine.config, client.stop,
            clock=lambda: self.cluster.now, poll_seconds=0.0, backoff_seconds=(0.0, 0.0),
        )  # fmt: skip

    def _settled(self) -> bool:
        """Whether all queries were answered or refused, and all lanes have obeyed the last command."""
        kafka, topics = self.cluster.kafka, self.cluster.topics
        found = {record.key for record in topics[kafka.answers, 0]}
        refused = {
            (said["x-source-topic"], said["x-source-partition"], said["x-source-offset"])
            for said in (dict(record.headers) for record in topics[kafka.dead_letters, 0])
            if said["x-source-topic"] == kafka.queries.encode()
        }
        answered = len(found) + len(refused) >= self.hands.sent
        return answered and (bool(self.world.tenants) or self._lanes() <= self._obeyed())

    def _lanes(self) -> set[bytes]:
        """Of all that was ever journalled, by the keys alone."""
        journals = [self.cluster.topics[self.cluster.kafka.journal, n] for n in range(PARTITIONS)]
        return {(r.key or b"").rpartition(b"/")[0] for journal in journals for r in journal}

    def _obeyed(self) -> set[bytes]:
        """Lanes that have acknowledged the last command."""
        kafka = self.cluster.kafka
        last = f"{self.cluster.topics[kafka.control, 0][-1].at}/".encode()
        acks = [record.key or b"" for record in self.cluster.topics[kafka.audit, 0]]
        return {key.rpartition(b"/")[2] for key in acks if key.startswith(last)}

    def _end(self) -> None:
        """All end. Who lost partitions meanwhile has not saved all: a last worker repeats and saves it."""
        self._stop()
        self._start()
        last = self.cluster.clients[-1]
        while last.alive and last.rested < RESTED:
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


def simulated(seed: int, tenants: int = 0, live: int = 0) -> Cluster:
    """Plays and checks one history. Raises AssertionError, or what a worker raised."""
    simulation = Simulation(seed, tenants, live)
    simulation.play()
    Promises(simulation.cluster, simulation.world).check()
    return simulation.cluster
