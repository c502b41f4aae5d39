"""Everything that can be done to a worker and to Kafka from outside, one after the other, on the real stack.

`make nightly`. Each test prints its figures: queries lost, queries with differing answers, repeated answers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration_fixtures import fixtures_of_integration

from stream.history.verify import verify
from stream.recording import KafkaLog
from tests.nightly.counts import count

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]


_integration = fixtures_of_integration()
topics, vector_world = _integration.topics, _integration.vector_world
nursery, make_site, messages = _integration.nursery, _integration.make_site, _integration.messages

WORKER_KILLS, BROKER_KILLS, SIGTERMS = count("worker_kills"), count("broker_kills"), count("sigterms")
PACE = 60
"""Queries between two events."""
SLEEP_SECONDS = 20.0
"""Longer than the session of 15 s: the group gives the sleeper's partitions away."""
LINGER_SECONDS = 0.1
"""Batches are formed by time-out wherever a burst ends: no two workers would draw the same boundaries."""


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One that may be killed."""
    from stream.broker import Broker

    one = Broker(tmp_path_factory.mktemp("chaos") / "data", parent_bound=True)
    one.start()
    one.ready()
    yield one
    one.stop()


class Traffic:
    """Queries that never stop coming, and what became of them."""

    def __init__(self, site: Any, messages: Any) -> None:
        self._site, self._messages, self._seed = site, messages, 0
        self.sent: set[bytes] = set()

    def send(self, count: int, bursts: int = 6) -> None:
        """In uneven bursts, so that batches end where a time-out falls."""
        rng = np.random.default_rng(self._seed)
        for size in np.diff([0, *sorted(rng.integers(1, count, bursts - 1)), count]).tolist():
            if size:
                self._seed += 1
                for at in self._site.send(self._messages(size, seed=self._seed)[0]):
                    self.sent.add(str(at).encode())
                time.sleep(rng.uniform(0.0, 2 * LINGER_SECONDS))

    def answered(self) -> int:
        return len(set(self._site.distinct()) & self.sent)

    def settle(self, seconds: float = 180.0) -> None:
        self._site.wait(lambda: self.answered() == len(self.sent), seconds)

    def figures(self, what: str) -> None:
        """Prints them, and fails unless nothing is lost and nothing differs."""
        answers = self._site.distinct()
        lost = len(self.sent - set(answers))
        differing = sum(len(values) > 1 for values in answers.values())
        repeated = len(self._site.answers()) - len(answers)
        print(f"{what}: {len(self.sent)} queries, {lost} lost, {differing} differing, {repeated} repeated")
        assert (lost, differing) == (0, 0)
        assert set(answers) == self.sent
        assert self._site.dead_letters() == []
        if self._site.config.state.store == "changelog":
            with KafkaLog(self._site.servers) as log:
                verdict = verify(log, self._site.kafka)
            print(f"verify-log: {verdict.document()['read']}, notices {dict(verdict.notices)}")
            assert verdict.status == 0, verdict.document()


@pytest.fixture
def site(broker: Any, make_site: Callable[..., Any], vector_world: Path) -> Any:
    return make_site(
        broker, vector_world, batch={"linger_seconds": LINGER_SECONDS, "floor": 4},
        kafka={"partitions": 2},
    )  # fmt: skip


def test_worker_kills(site: Any, messages: Any) -> None:
    traffic, worker, rng = Traffic(site, messages), site.worker(), np.random.default_rng(1)
    for _ in range(WORKER_KILLS):
        site.wait(lambda: "serving" in worker.output())  # noqa: B023 (used within the turn)
        traffic.send(count("queries_between_kills"))
        time.sleep(rng.uniform(0.0, 0.6))  # joining, loading, answering, cutting
        worker.kill()
        traffic.send(PACE // 4, bursts=1)
        worker = site.worker()
    traffic.settle(180 + WORKER_KILLS)
    worker.terminate()
    traffic.figures(f"{WORKER_KILLS} worker kills")


def test_broker_kills(site: Any, broker: Any, messages: Any) -> None:
    traffic, worker, rng = Traffic(site, messages), site.worker(), np.random.default_rng(2)
    site.wait(lambda: "serving" in worker.output())
    for turn in range(BROKER_KILLS):
        before = len(traffic.sent)
        traffic.send(30 * PACE, bursts=1)
        site.wait(lambda: traffic.answered() > before + PACE)  # noqa: B023 (used within the turn)
        waiting = len(traffic.sent) - traffic.answered()
        broker.kill()
        print(f"kill {turn + 1}: at most {waiting} queries were without an answer")
        assert waiting > 0, "Kafka was killed too late"
        time.sleep(75.0 if turn == 0 else rng.uniform(0.0, 5.0))  # once longer than any call waits
        broker.restart()
    traffic.settle(300)
    assert len(site.started) == 1, "the worker was started once, and outlived every outage"
    worker.terminate()
    traffic.figures(f"{BROKER_KILLS} broker kills")


def test_sigterms(site: Any, messages: Any) -> None:
    traffic, rng, took = Traffic(site, messages), np.random.default_rng(3), []
    for _ in range(SIGTERMS):
        worker = site.worker()
        site.wait(lambda: "serving" in worker.output())  # noqa: B023 (used within the turn)
        traffic.send(PACE)
        time.sleep(rng.uniform(0.0, 0.6))
        took.append(worker.terminate(10.0))
    worker = site.worker()
    traffic.settle()
    worker.terminate()
    print(f"slowest end after SIGTERM: {max(took):.1f} s")
    traffic.figures(f"{SIGTERMS} SIGTERMs")


@pytest.mark.parametrize("store", ["changelog", "directory"])
def test_a_worker_sleeps_while_another_takes_over(
    broker: Any, make_site: Any, vector_world: Path, messages: Any, tmp_path: Path, store: str
) -> None:
    """It wakes in the middle of a backlog, whose end its successor has divided otherwise by then."""
    site = make_site(
        broker, vector_world, batch={"linger_seconds": LINGER_SECONDS, "floor": 4},
        kafka={"partitions": 2}, state={"store": store, "directory": str(tmp_path / "state")},
    )  # fmt: skip
    traffic = Traffic(site, messages)
    workers = [site.worker("one"), site.worker("two")]
    for turn, sleeper in enumerate(workers):
        site.wait(lambda: all("serving" in worker.output() for worker in workers))
        time.sleep(5.0)  # both have joined
        before = traffic.answered()
        traffic.send(12 * PACE + 7, bursts=1)
        site.wait(lambda: traffic.answered() > before)  # noqa: B023 (used within the turn)
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            while time.monotonic() - began < SLEEP_SECONDS:
                traffic.send(PACE // 2, bursts=4)
        finally:
            os.kill(sleeper.pid, signal.SIGCONT)
        traffic.send(2 * PACE, bursts=8)
        print(f"sleep {turn + 1}: {traffic.answered()} of {len(traffic.sent)} answered at its end")
    traffic.settle()
    for worker in workers:
        assert worker.code is None, worker.output()
        worker.terminate()
    dropped = sum(worker.output().count("partition") for worker in workers)
    assert dropped > 0, "no partition ever moved: the test shows nothing"
    traffic.figures(f"{len(workers)} sleeps of {SLEEP_SECONDS:.0f} s, state in {store}")
