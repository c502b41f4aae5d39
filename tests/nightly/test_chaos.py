"""Everything that can be done to a worker and to Kafka from outside, one after the other, on the real stack.

`make nightly`. Each test prints its figures: queries lost, queries with differing answers, repeated answers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaError
from traffic import Traffic
from trap import Trap

from core.errors import QshiftError
from stream.broker import Broker
from stream.ports import HOST, free_port
from tests.nightly.counts import Told, count, drawn, say

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

PACE = 60
"""Queries between two events."""
LARGE = {"size": 256, "floor": 4, "linger_seconds": 0.1}
"""Batches by which many records cost little."""
SLEEP_SECONDS = 20.0
"""Longer than the session of 15 s: the group gives the sleeper's partitions away."""


def test_worker_kills(broker: Any, uneven: Any, messages: Any) -> None:
    """R2. Joining, loading, answering, cutting: a kill falls where it falls."""
    kills, each = count("worker_kills"), count("queries_between_kills")
    site, rng, told = uneven(broker), drawn("worker kills", 1), Told("worker kills", kills)
    traffic, worker = Traffic(site, messages), site.worker()
    for turn in range(kills):
        site.wait(lambda: "serving" in worker.output(), 300)  # noqa: B023 (used within the turn)
        before = traffic.answered()
        traffic.send(each)
        if turn % 2:  # at work for certain, however slow the machine is
            site.wait(lambda: traffic.answered() > before, 300)  # noqa: B023 (used within the turn)
        time.sleep(rng.uniform(0.0, 0.6))
        worker.kill()
        traffic.send(PACE // 4, bursts=1)
        worker = site.worker()
        told(turn + 1)
    traffic.settle()
    worker.terminate(120.0)
    repeated = traffic.figures(f"{kills} worker kills")
    assert repeated > 0 or kills < 15, (
        "no kill fell between a checkpoint and the next: the test shows nothing"
    )


def test_verify_log_finds_nothing_in_honest_records(broker: Any, uneven: Any, messages: Any) -> None:
    """Large batches, so that there may be many records, and a kill in the middle of each twentieth."""
    records, kills = count("honest_records"), 20
    site, rng = uneven(broker, batch=LARGE), drawn("honest records", 7)
    told = Told("honest records", records)
    traffic, worker = Traffic(site, messages), site.worker()
    for _ in range(kills):
        site.wait(lambda: "serving" in worker.output(), 300)  # noqa: B023 (used within the turn)
        before = traffic.answered()
        traffic.send(records // kills)
        site.wait(lambda: traffic.answered() > before, 300)  # noqa: B023 (used within the turn)
        time.sleep(rng.uniform(0.0, 0.6))
        worker.kill()
        worker = site.worker()
        told(len(traffic.sent))
    traffic.settle()
    worker.terminate(120.0)
    traffic.figures(f"{kills} worker kills in large batches")


def test_broker_kills(own_broker: Any, uneven: Any, messages: Any) -> None:
    """R3. Kafka dies while it is written to."""
    kills = count("broker_kills")
    site, rng, told = uneven(own_broker), drawn("broker kills", 2), Told("broker kills", kills)
    traffic, worker = Traffic(site, messages), site.worker()
    site.wait(lambda: "serving" in worker.output(), 300)
    for turn in range(kills):
        before = traffic.answered()
        traffic.send(30 * PACE, bursts=1)
        site.wait(lambda: traffic.answered() > before + PACE, 300)  # noqa: B023 (used within the turn)
        own_broker.kill()
        waiting = len(traffic.sent) - traffic.answered()
        say(f"kill {turn + 1}: at most {waiting} queries were without an answer")
        assert waiting > 0, "Kafka was killed too late"
        traffic.lost_touch()
        time.sleep(75.0 if turn == 0 else rng.uniform(0.0, 5.0))  # once longer than any call waits
        own_broker.restart()
        told(turn + 1)
    traffic.settle(300)
    assert len(site.started) == 1, "the worker was started once, and outlived every outage"
    worker.terminate(120.0)
    traffic.figures(f"{kills} broker kills")


@pytest.fixture
def trapped_broker(tmp_path: Path) -> Iterator[tuple[Broker, Trap]]:
    """A broker of the test's own, which announces the trap's address as its own."""
    port = free_port()
    trap = Trap(port)
    announced = {"advertised.listeners": f"PLAINTEXT://{HOST}:{trap.port}"}
    broker = Broker(tmp_path / "trapped", port, parent_bound=True, properties=announced)
    broker.start()
    broker.ready()
    yield broker, trap
    broker.stop()
    trap.close()


def test_broker_kills_inside_a_commit(trapped_broker: Any, uneven: Any, messages: Any) -> None:
    """R3. Aimed: the answers are flushed, the state is saved, its offset is on the way or just arrived."""
    broker, trap = trapped_broker
    kills, rng = count("commit_kills"), drawn("kills inside a commit", 5)
    site, told = uneven(broker), Told("kills inside a commit", kills)
    traffic, worker = Traffic(site, messages), site.worker()
    site.wait(lambda: "serving" in worker.output(), 300)
    for turn in range(kills):
        traffic.send(30 * PACE, bursts=1)
        trap.set(bool(turn % 2), broker.kill)  # not before: what is sent is stored
        site.wait(trap.sprung.is_set, 300)
        traffic.lost_touch()
        time.sleep(rng.uniform(0.0, 5.0))
        broker.restart()
        site.wait(lambda: not broken(traffic), 120)
        told(turn + 1)
    traffic.settle(300)
    said = worker.output().count("offsets not committed")
    worker.terminate(120.0)
    traffic.figures(f"{kills} kills inside a commit, {said} commits without an answer")
    assert said >= kills


def broken(traffic: Traffic) -> bool:
    """Whether Kafka cannot be asked yet."""
    try:
        traffic.answered()
    except (KafkaError, QshiftError):
        traffic.lost_touch()
        return True
    return False


def test_sigterms_in_an_outage(own_broker: Any, uneven: Any, messages: Any) -> None:
    """R12. Exit 0 within 10 s, though nothing can be saved: what was not is repeated alike."""
    stops, rng = count("outage_sigterms"), drawn("SIGTERMs in an outage", 6)
    site, told = uneven(own_broker), Told("SIGTERMs in an outage", stops)
    traffic, took = Traffic(site, messages), list[float]()
    for turn in range(stops):
        worker = site.worker()
        traffic.send(PACE)
        site.wait(lambda: "serving" in worker.output(), 300)  # noqa: B023 (used within the turn)
        before = traffic.answered()
        traffic.send(10 * PACE, bursts=1)
        site.wait(lambda: traffic.answered() > before, 300)  # noqa: B023 (used within the turn)
        own_broker.kill()
        traffic.lost_touch()
        time.sleep(rng.uniform(0.0, 12.0))
        took.append(worker.terminate(60.0))
        own_broker.restart()
        told(turn + 1)
    worker = site.worker()
    traffic.settle()
    worker.terminate(60.0)
    traffic.figures(f"{stops} SIGTERMs in an outage, slowest end {max(took):.1f} s")
    assert max(took) < 10.0


def test_sigterms(broker: Any, uneven: Any, messages: Any) -> None:
    """R12. While it serves, and every fourth time while it loads: exit 0 within 10 s, nothing repeated."""
    stops = count("sigterms")
    site, rng, told = uneven(broker), drawn("SIGTERMs", 3), Told("SIGTERMs", stops)
    traffic, took = Traffic(site, messages), {"serving": list[float](), "loading": list[float]()}
    for turn in range(stops):
        what = "loading" if turn % 4 == 3 else "serving"
        traffic.send(PACE)
        worker = site.worker()
        if what == "loading":
            site.wait(lambda: listening(worker.pid), 60)  # noqa: B023 (used within the turn)
            time.sleep(rng.uniform(0.0, 0.5))
        else:
            site.wait(lambda: "serving" in worker.output(), 300)  # noqa: B023 (used within the turn)
            traffic.send(PACE, bursts=2)
            time.sleep(rng.uniform(0.0, 0.6))
        took[what].append(worker.terminate(10.0))
        told(turn + 1)
    worker = site.worker()
    traffic.settle()
    worker.terminate(10.0)
    slowest = ", ".join(f"{max(found):.1f} s of {len(found)} {what}" for what, found in took.items())
    repeated = traffic.figures(f"{stops} SIGTERMs, slowest end {slowest}")
    assert repeated == 0, "a stop in order leaves nothing to be repeated"


def listening(process: int) -> bool:
    """Whether a process has a handler for SIGTERM: before, it has loaded nothing, and just ends."""
    said = Path(f"/proc/{process}/status").read_text()
    caught = next(line.split()[1] for line in said.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("store", ["changelog", "directory"])
def test_a_worker_sleeps_while_another_takes_over(
    broker: Any, uneven: Any, messages: Any, tmp_path: Path, store: str
) -> None:
    """It wakes in the middle of a backlog, whose end its successor has divided otherwise by then."""
    site = uneven(broker, state={"store": store, "directory": str(tmp_path / "state")})
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
        say(f"sleep {turn + 1}: {traffic.answered()} of {len(traffic.sent)} answered at its end")
    traffic.settle()
    for worker in workers:
        assert worker.code is None, worker.output()
        worker.terminate()
    dropped = sum(worker.output().count("partition") for worker in workers)
    assert dropped > 0, "no partition ever moved: the test shows nothing"
    traffic.figures(f"{len(workers)} sleeps of {SLEEP_SECONDS:.0f} s, state in {store}", states=False)
