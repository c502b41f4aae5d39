"""What the client makes of transactions when Kafka is slow: whoever builds on them has to guard against it.

`stream.transaction` does: docs/lab/log.md, 2026-11-30. What fails here was mended in the client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from stream.broker import Broker
from stream.cluster import ensure_topics

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed .socket:ResourceWarning"),
]
DELIVERY_SECONDS = 3.0


@pytest.fixture
def topic(broker: Broker, topics: Callable[[str], str]) -> str:
    name = topics("answers")
    ensure_topics(broker.bootstrap_servers, {name: (1, {})})
    return name


@pytest.fixture
def producer(broker: Broker, topic: str) -> Iterator[Any]:
    """One transaction is open, and a first record is in it."""
    limit_ms = int(1000 * DELIVERY_SECONDS)
    made: Any = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, transactional_id=topic, delivery_timeout_ms=limit_ms,
        request_timeout_ms=limit_ms - 500, max_block_ms=60_000, linger_ms=0, reconnect_backoff_max_ms=500,
    )  # fmt: skip
    made.init_transactions()
    made.begin_transaction()
    made.send(topic, b"0", partition=0).get(60)
    yield made
    made.close(timeout=10)


def committed(broker: Broker, topic: str) -> list[bytes]:
    """What a reader of committed records sees."""
    reader: Any = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, isolation_level="read_committed", group_id=None,
        auto_offset_reset="earliest", enable_auto_commit=False,
    )  # fmt: skip
    reader.assign([TopicPartition(topic, 0)])
    found: list[bytes] = []
    quiet = 0
    while quiet < 3:
        records = [one.value for many in reader.poll(timeout_ms=1000).values() for one in many]
        found, quiet = found + records, 0 if records else quiet + 1
    reader.close()
    return found


def test_a_commit_succeeds_though_all_its_records_have_failed(
    broker: Broker, producer: Any, topic: str
) -> None:
    broker.pause()
    try:
        sent = [producer.send(topic, b"%d" % number, partition=0) for number in range(1, 6)]
        deadline = time.monotonic() + 10 * DELIVERY_SECONDS
        while not all(one.is_done for one in sent) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        broker.resume()
    assert all(one.failed() for one in sent), "expired, and the producer knows it"
    producer.commit_transaction()  # says nothing
    # Those that had reached Kafka's socket are there, or none: nobody can tell which.
    # What was acknowledged before is usually there, too; once it was not: the commit had said nothing either.
    assert committed(broker, topic)[:1] in ([b"0"], [])


def test_a_commit_that_fails_has_committed_all_the_same(broker: Broker, producer: Any, topic: str) -> None:
    """A request that times out is fatal to the producer: it can say neither, nor abort."""
    broker.pause()
    try:
        with pytest.raises(KafkaError):
            producer.commit_transaction()
    finally:
        broker.resume()
    with pytest.raises(KafkaError):
        producer.abort_transaction()
    successor: Any = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=topic)
    successor.init_transactions()  # waits until the fate of the open one is settled
    successor.close()
    assert committed(broker, topic) == [b"0"]
