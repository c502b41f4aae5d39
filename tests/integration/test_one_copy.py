"""With `kafka.transactions` a reader of committed records sees each answer once, whatever is killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from core.records import Record
from stream.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

QUERIES = 640
"""Whole batches of 16."""
KILLS = 5
TOGETHER = {"transactions": True}


@dataclass
class Expected:
    """What an undisturbed run without transactions made of the queries in `topic`."""

    topic: str
    answers: dict[bytes | None, bytes | None]
    state: str


def undisturbed(broker: Broker, make_site: Any, world: Any, messages: Any) -> Expected:
    site = make_site(broker, world)
    site.send(messages(QUERIES)[0])
    worker = site.worker()
    site.wait(lambda: answered(site) == QUERIES)
    worker.terminate()
    return Expected(site.kafka.queries, {r.key: r.value for r in site.answers()}, worker.state())


@pytest.fixture(scope="module")
def expected(broker: Broker, make_site: Any, vector_world: Any, messages: Any) -> Expected:
    return undisturbed(broker, make_site, vector_world, messages)


def answered(site: Any) -> int:
    return len({record.key for record in site.answers()})


def check(site: Any, expected: Expected) -> None:
    """Each answer once, with the bytes and the state of the undisturbed run."""
    answers: list[Record] = site.answers()
    assert Counter(Counter(record.key for record in answers).values()) == {1: QUERIES}
    assert {record.key: record.value for record in answers} == expected.answers
    assert site.started[-1].state() == expected.state
    assert site.dead_letters() == []


def uncommitted(site: Any) -> int:
    """Answers that were written, whether they count or not."""
    part = TopicPartition(site.kafka.answers, 0)
    reader: Any = KafkaConsumer(
        bootstrap_servers=site.servers, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
    )
    reader.assign([part])
    found, end = 0, reader.end_offsets([part])[part]
    while reader.position(part) < end:
        found += sum(map(len, reader.poll(timeout_ms=500).values()))
    reader.close()
    return found


def test_worker_killed_five_times(
    broker: Broker, make_site: Any, vector_world: Any, expected: Expected
) -> None:
    site = make_site(broker, vector_world, queries=expected.topic, kafka=TOGETHER)
    rng = np.random.default_rng(7)
    worker = site.worker()
    for place in (np.arange(KILLS) + 0.5) * 0.9 * QUERIES / KILLS:
        site.wait(lambda place=place: answered(site) >= place)
        time.sleep(rng.uniform(0, 0.2))  # anywhere in a transaction
        worker.kill()
        worker = site.worker()
    site.wait(lambda: answered(site) == QUERIES, 120)
    worker.terminate()
    check(site, expected)
    assert uncommitted(site) > QUERIES, "no kill fell into a transaction: the test shows nothing"


def test_kafka_silent_for_longer_than_the_limits(
    own_broker: Broker, make_site: Any, vector_world: Any, messages: Any, expected: Expected
) -> None:
    limits = {**TOGETHER, "delivery_timeout_seconds": 2.5}
    site = make_site(own_broker, vector_world, queries=expected.topic, kafka=limits)
    site.send(messages(QUERIES)[0])
    worker = site.worker()
    for place in (0.2 * QUERIES, 0.6 * QUERIES):
        site.wait(lambda place=place: answered(site) >= place, 120)
        own_broker.pause()
        time.sleep(8)
        own_broker.resume()
    site.wait(lambda: answered(site) == QUERIES, 240)
    worker.terminate()
    check(site, expected)


def test_a_worker_that_slept_through_its_replacement(
    broker: Broker, make_site: Any, vector_world: Any, expected: Expected
) -> None:
    site = make_site(broker, vector_world, queries=expected.topic, kafka=TOGETHER)
    sleeper = site.worker("one")
    site.wait(lambda: answered(site) >= 0.3 * QUERIES, 120)
    os.kill(sleeper.pid, signal.SIGSTOP)
    before = answered(site)
    assert before < QUERIES
    other = site.worker("two")
    try:
        # The group gives it up after 15 s; what it has open is aborted after a minute at most.
        site.wait(lambda: answered(site) >= before + 32, 180)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    site.wait(lambda: answered(site) == QUERIES, 180)
    time.sleep(3)  # what the sleeper would still write
    sleeper.terminate()
    other.terminate()
    assert Counter(Counter(record.key for record in site.answers()).values()) == {1: QUERIES}
    assert {record.key: record.value for record in site.answers()} == expected.answers
