"""Crashes of the worker and of Kafka are invisible: nothing lost, duplicates byte-identical, same state."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stream.broker import Broker
from stream.changelog import ChangelogStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

QUERIES = 1600  # whole batches of 16: where a run ends divides none of them
KILLS = 10


@dataclass
class Expected:
    """What an uninterrupted run made of the queries in `topic`."""

    topic: str
    answers: dict[bytes, set[bytes]]
    state: str


@pytest.fixture(scope="module")
def expected(broker: Broker, make_site: Any, vector_world: Any, messages: Any) -> Expected:
    site = make_site(broker, vector_world)
    site.send(messages(QUERIES)[0])
    progress, worker = Progress(site), site.worker()
    site.wait(lambda: progress.answered() == QUERIES)
    progress.close()
    worker.terminate()
    assert worker.counts() == (
        QUERIES,
        0,
        -(-QUERIES // 16 // 3),
    )  # a checkpoint every three batches, one at the end
    assert len(site.answers()) == QUERIES
    return Expected(site.kafka.queries, site.distinct(), worker.state())


class Progress:
    """Counts the queries that have an answer, as the answers arrive."""

    def __init__(self, site: Any) -> None:
        self._client, self._keys = site.client(), set[bytes]()

    def answered(self) -> int:
        self._keys.update(record.key for record in self._client.answers(0.01) if record.key is not None)
        return len(self._keys)

    def close(self) -> None:
        self._client.close()


def saved_state(site: Any) -> str:
    """The state of the newest checkpoint in the changelog topic, hashed as the runner's report is."""
    store = ChangelogStore(site.servers, site.kafka)
    try:
        checkpoint = store.load((site.kafka.queries, 0))
    finally:
        store.close()
    assert checkpoint is not None and checkpoint.next_offset == QUERIES
    text = "|".join(f"{lane.lane}={lane.state_hash}" for lane in checkpoint.lanes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(site: Any, expected: Expected) -> int:
    """Compares all answers and the state with the uninterrupted run; returns the number of duplicates."""
    found = site.distinct()
    assert set(found) == set(expected.answers), "queries were lost"
    assert {key for key, values in found.items() if len(values) > 1} == set(), "duplicates differ"
    assert found == expected.answers
    assert site.started[-1].state() == expected.state == saved_state(site)
    assert site.dead_letters() == []
    return len(site.answers()) - QUERIES


def test_the_uninterrupted_run_learns(expected: Expected) -> None:
    """Else the other tests would compare nothing."""
    assert {len(values) for values in expected.answers.values()} == {1}
    states = {value.split(b'"state":"')[1][:64] for values in expected.answers.values() for value in values}
    assert len(states) == QUERIES // 16


def test_worker_killed_ten_times(
    broker: Broker, make_site: Any, vector_world: Any, expected: Expected
) -> None:
    site = make_site(broker, vector_world, queries=expected.topic)
    rng = np.random.default_rng(7)
    places = (np.arange(KILLS) + rng.uniform(0.2, 0.8, KILLS)) * 0.9 * QUERIES / KILLS
    progress, worker, cut_off = Progress(site), site.worker(), []
    for place in places:
        site.wait(lambda place=place: progress.answered() >= place)
        time.sleep(rng.uniform(0, 0.05))  # anywhere in a batch or a checkpoint
        worker.kill()
        cut_off.append(progress.answered())
        worker = site.worker()
    site.wait(lambda: progress.answered() == QUERIES)
    progress.close()
    worker.terminate()
    # Every kill hit a worker that was at work: something was answered since the last one, and not all.
    assert max(cut_off) < QUERIES and min(np.diff([0, *cut_off])) > 0, cut_off
    duplicates = check(site, expected)
    assert duplicates > 0, "no kill fell between a checkpoint and the next: the test shows nothing"


def test_kafka_killed_twice(
    own_broker: Broker, make_site: Any, vector_world: Any, messages: Any, expected: Expected
) -> None:
    site = make_site(own_broker, vector_world, queries=expected.topic)
    site.send(messages(QUERIES)[0])
    progress, worker = Progress(site), site.worker()
    for place in (0.2 * QUERIES, 0.6 * QUERIES):
        site.wait(lambda place=place: progress.answered() >= place)
        own_broker.kill()
        assert progress.answered() < QUERIES, "Kafka was killed too late"
        own_broker.restart()
    site.wait(lambda: progress.answered() == QUERIES, 120)
    progress.close()
    worker.terminate()
    assert len(site.started) == 1
    check(site, expected)
