"""The layout of topics is looked at when the service starts, and what changes under it is noticed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource, KafkaAdminClient

from core.config import Config
from core.errors import ConfigError, OffsetGoneError
from core.records import Record
from stream.broker import Broker
from stream.cluster import ensure_topics
from stream.kafka import KafkaSource
from stream.sink import KafkaSink
from stream.topic_identity import RECOGNISED_SECONDS
from stream.topics import prepared_topics, topic_settings

pytestmark = pytest.mark.kafka
NAMES = ("group", "queries", "answers", "labels", "state", "journal", "dead_letters")


@pytest.fixture
def config(broker: Broker, topics: Callable[[str], str]) -> Config:
    """Topics of its own, not made yet."""
    names = {name: topics(name) for name in NAMES}
    return Config.model_validate({"kafka": {"bootstrap_servers": broker.bootstrap_servers, **names}})


def admin(broker: Broker) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)


def grown(broker: Broker, topic: str, partitions: int) -> None:
    client = admin(broker)
    client.create_partitions({topic: partitions})
    client.close()


def limited(broker: Broker, topic: str, size: int) -> None:
    client = admin(broker)
    client.alter_configs([ConfigResource("topic", topic, {"max.message.bytes": str(size)})])
    client.close()


def send(config: Config, count: int, partition: int = 0) -> None:
    out = KafkaSink(config.kafka.bootstrap_servers, config.kafka)
    for number in range(count):
        out.emit_to(config.kafka.queries, b"%d" % number, partition=partition)
    out.flush(10)
    out.close()


def polled(source: KafkaSource, seconds: float, done: Callable[[list[Record]], bool]) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while not done(records) and time.monotonic() < deadline:
        records += source.poll(0.1)
    return records


def test_queries_that_were_there_decide_for_what_is_made_with_them(broker: Broker, config: Config) -> None:
    ensure_topics(broker.bootstrap_servers, {config.kafka.queries: (3, {})})
    assert prepared_topics(broker.bootstrap_servers, config) == 3
    found = ensure_topics(broker.bootstrap_servers, topic_settings(config.kafka))
    assert found[config.kafka.state] == found[config.kafka.journal] == found[config.kafka.answers] == 3


def test_partitions_without_a_place_for_their_state_are_refused_at_the_start(
    broker: Broker, config: Config
) -> None:
    assert prepared_topics(broker.bootstrap_servers, config) == 1
    grown(broker, config.kafka.queries, 2)
    grown(broker, config.kafka.state, 2)
    with pytest.raises(ConfigError) as refused:
        prepared_topics(broker.bootstrap_servers, config)
    said = str(refused.value)
    assert f"{config.kafka.queries} has 2 partitions" in said and "1 in common" in said
    assert config.kafka.state in said and config.kafka.journal in said and "--partitions 2" in said
    assert "\n" not in said
    state = config.state.model_copy(update={"store": "directory"})
    assert prepared_topics(broker.bootstrap_servers, config.model_copy(update={"state": state})) is None
    grown(broker, config.kafka.journal, 3)
    assert prepared_topics(broker.bootstrap_servers, config) == 2


def test_topics_that_take_too_little_are_said(
    broker: Broker, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    prepared_topics(broker.bootstrap_servers, config)
    limited(broker, config.kafka.answers, 5000)
    with caplog.at_level(logging.WARNING, "qshift.kafka"):
        prepared_topics(broker.bootstrap_servers, config)
    said = [r for r in caplog.records if r.name == "qshift.kafka"]  # the client has warnings of its own
    assert [(r.__dict__["topic"], r.__dict__["bytes"]) for r in said] == [(config.kafka.answers, 5000)]
    for name, least in ((config.kafka.dead_letters, 2048), (config.kafka.state, 904_096)):
        limited(broker, name, least - 1)
        with pytest.raises(ConfigError, match=f"{name} takes messages of {least - 1} bytes, {least} are"):
            prepared_topics(broker.bootstrap_servers, config)
        limited(broker, name, least)
        prepared_topics(broker.bootstrap_servers, config)


def test_partitions_added_while_it_runs_are_said_and_not_read(
    broker: Broker, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    kept = prepared_topics(broker.bootstrap_servers, config)
    source = KafkaSource(broker.bootstrap_servers, config.kafka, kept_partitions=kept, metadata_seconds=0.3)
    try:
        polled(source, 20, lambda _: bool(source.assignment()))
        assert source.unserved == frozenset()
        grown(broker, config.kafka.queries, 2)
        with caplog.at_level(logging.ERROR, "qshift.kafka"):
            polled(source, 20, lambda _: bool(source.unserved))
        assert source.unserved == {(config.kafka.queries, 1)}
        send(config, 5, partition=0)
        send(config, 5, partition=1)
        source.pause(True)
        source.poll(0.1)
        source.pause(False)
        records = polled(source, 10, lambda found: len(found) >= 5) + source.poll(0.5)
        assert {r.at.partition for r in records} == {0} and len(records) == 5
        assert source.assignment() == {(config.kafka.queries, 0)} and set(source.lag()) == source.assignment()
    finally:
        source.close()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "qshift.kafka"]
    assert "has 2 partitions" in said and "--partitions 2" in said
    # With a place for its state the new partition is read from its beginning.
    for name in (config.kafka.state, config.kafka.journal):
        grown(broker, name, 2)
    source = KafkaSource(
        broker.bootstrap_servers, config.kafka,
        kept_partitions=prepared_topics(broker.bootstrap_servers, config),
    )  # fmt: skip
    try:
        records = polled(source, 20, lambda found: len(found) >= 10)
        assert sum(record.at.partition == 1 for record in records) == 5
    finally:
        source.close()


def test_a_topic_made_anew_is_noticed(broker: Broker, config: Config) -> None:
    """Also where the new one has grown beyond our place before we look: its offsets mean something else."""
    prepared_topics(broker.bootstrap_servers, config)
    send(config, 8)
    source = KafkaSource(broker.bootstrap_servers, config.kafka, worker="w")
    try:
        assert len(polled(source, 20, lambda found: len(found) >= 8)) == 8
        client = admin(broker)
        client.delete_topics([config.kafka.queries])
        deadline = time.monotonic() + 10
        while config.kafka.queries in client.list_topics() and time.monotonic() < deadline:
            time.sleep(0.05)
        client.close()
        prepared_topics(broker.bootstrap_servers, config)
        send(config, 20)
        time.sleep(3 * RECOGNISED_SECONDS)  # the client fetches ahead, and all of it is of the new topic
        with pytest.raises(OffsetGoneError, match="made anew") as gone:
            for _ in range(600):
                assert source.poll(0.1) == []
        assert "kafka.state" in str(gone.value)
        again = KafkaSource(broker.bootstrap_servers, config.kafka)
        assert source.log_id() and again.log_id() and again.log_id() != source.log_id()
        again.close()
    finally:
        source.close()


def test_a_place_behind_the_end_means_a_topic_made_anew(broker: Broker, config: Config) -> None:
    prepared_topics(broker.bootstrap_servers, config)
    send(config, 3)
    source = KafkaSource(broker.bootstrap_servers, config.kafka)
    try:
        polled(source, 20, lambda _: bool(source.assignment()))
        with pytest.raises(OffsetGoneError, match=r"offset 9, but its log ends .* at 3: .* made anew"):
            source.seek((config.kafka.queries, 0), 9)
    finally:
        source.close()


@pytest.mark.parametrize("committed", [True, False])
def test_markers_of_transactions_are_no_lag(broker: Broker, config: Config, committed: bool) -> None:
    """The last place of the log is a marker, or records that were taken back and a marker: nothing waits."""
    prepared_topics(broker.bootstrap_servers, config)
    send(config, 3)
    producer: Any = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, transactional_id=config.kafka.queries
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(config.kafka.queries, b"within", partition=0).get(10)
    producer.commit_transaction() if committed else producer.abort_transaction()
    producer.close()
    source = KafkaSource(broker.bootstrap_servers, config.kafka)
    try:
        records = polled(source, 20, lambda found: len(found) >= 3 + committed)
        records += source.poll(0.5)
        assert [r.at.offset for r in records] == list(range(3 + committed))
        assert source.lag() == {(config.kafka.queries, 0): 0}
        send(config, 1)
        assert [r.at.offset for r in polled(source, 10, bool)] == [5]
        assert source.lag() == {(config.kafka.queries, 0): 0}
    finally:
        source.close()
