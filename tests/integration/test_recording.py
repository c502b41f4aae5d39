"""A real recording: a worker's day is read back from Kafka and run again, boundaries, labels and answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import LimitConfig
from core.errors import BrokerError, ConfigError
from qshift.replay.own_run import run_records
from qshift.replay.recorded import recorded
from stream import codec
from stream.broker import Broker
from stream.recording import KafkaLog

pytestmark = pytest.mark.kafka


def test_a_day_is_recorded_and_run_again(
    broker: Broker, vector_world: Path, make_site: Callable[..., Any], messages: Callable[..., Any]
) -> None:
    site = make_site(broker, vector_world)
    values, classes = messages(40)
    at = site.send(values)
    worker = site.worker()
    site.wait(lambda: len(site.answers()) >= 32)
    worker.terminate()
    client = site.client()
    for place, name in zip(at, classes):
        client.label(codec.label(place, name), str(place).encode())
    client.flush()
    client.close()

    found = recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries)
    assert [r.at for r in found.records] == at and [r.value for r in found.records] == [v for v, _ in values]
    assert found.labels == dict(zip(at, classes))
    assert [len(entry.offsets) for entry in found.journal][:2] == [16, 16] and found.notes == ()
    rows = run_records(found.records, found.labels, site.config, ["frozen", "default"], found.journal)
    assert [(row.queries, row.labels) for row in rows] == [(40, 40), (40, 40)]

    part = recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries, "10", "30")
    assert [r.at.offset for r in part.records] == list(range(10, 30)) and len(part.labels) == 20
    assert [entry.offsets for entry in part.journal] == [tuple(range(10, 16)), tuple(range(16, 30))]
    stamp = found.records[20].timestamp_ms
    later = recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries, str(stamp))
    first = next(n for n, record in enumerate(found.records) if record.timestamp_ms >= stamp)
    assert [r.at.offset for r in later.records] == list(range(first, 40))
    with pytest.raises(ConfigError, match="holds offsets 0 to 39"):
        recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries, "2100-01-01")
    with pytest.raises(ConfigError, match="does not exist"):
        recorded(site.servers, site.kafka, LimitConfig(), "no-such-topic")
    with KafkaLog(site.servers) as log:
        assert log.bounds("no-such-topic") == {} and log.at_time("no-such-topic", 1) == {}
        assert log.read(site.kafka.queries, {0: (5, 5)}) == []
        assert log.bounds("no-such-topic") == {}, "looking must not create a topic"
        with pytest.raises(BrokerError, match="cannot be read"):
            log.read(site.kafka.queries, {0: (1000, 1001)})


def test_a_topic_that_does_not_exist_is_asked_for_as_often_as_one_likes(broker: Broker) -> None:
    """The client must not go on asking for it: what is asked meanwhile would fail with that answer."""
    with KafkaLog(broker.bootstrap_servers) as log:
        assert log.bounds("no-such-topic") == {}
        cluster, deadline = log._consumer._cluster, time.monotonic() + 0.5
        while not cluster.metadata_refresh_in_progress and time.monotonic() < deadline:
            pass
        assert log.at_time("no-such-topic", 1) == {}
