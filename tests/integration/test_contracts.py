"""Source and sink on Kafka: the contracts of every source and of every sink."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.config import KafkaConfig
from core.protocols import Channel
from core.records import Record
from stream.broker import Broker
from stream.client import read_all
from stream.cluster import ensure_topics
from stream.kafka import KafkaSource
from stream.sink import KafkaSink

pytestmark = pytest.mark.kafka
BATTERY = ("KafkaSource", "KafkaSink")


def _contract(name: str, fixture: str) -> dict[str, Any]:
    """The tests of a battery, to run on the fixture of that name below."""
    path = Path(__file__).parents[1] / "contracts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"contract_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = {one: test for one, test in vars(module).items() if one.startswith("test_")}
    found = {one: test for one, test in tests.items() if fixture in test.__annotations__}
    assert len(found) >= 5, "the battery has lost its tests"
    return found


globals().update(_contract("test_sources", "source_of"))
globals().update(_contract("test_sinks", "sink_of"))


@pytest.fixture
def config(broker: Broker, topics: Callable[[str], str]) -> KafkaConfig:
    """Topics of its own, made: of one partition each, a dead letter of up to a megabyte."""
    kinds = ("queries", "answers", "labels", "dead_letters", "control", "audit")
    names = {name: topics(name) for name in ("group", *kinds)}
    made = KafkaConfig(**names, delivery_timeout_seconds=10)
    ensure_topics(broker.bootstrap_servers, {names[kind]: (1, {}) for kind in kinds})
    return made


@pytest.fixture
def source_of(broker: Broker, config: KafkaConfig) -> Iterator[Callable[..., tuple[KafkaSource, str]]]:
    opened: list[KafkaSource] = []

    def opener(written: Any) -> tuple[KafkaSource, str]:
        sink = KafkaSink(broker.bootstrap_servers, config)
        for value, key, headers in written:
            sink.emit_to(config.queries, value, key, list(headers), partition=0)
        sink.flush(20)
        sink.close()
        opened.append(KafkaSource(broker.bootstrap_servers, config))
        return opened[-1], config.queries

    yield opener
    for source in opened:
        source.close()


@pytest.fixture
def sink_of(
    broker: Broker, config: KafkaConfig
) -> Iterator[tuple[KafkaSink, Callable[[Channel], list[Record]]]]:
    names = {
        "queries": config.queries, "answers": config.answers, "labels": config.labels,
        "dead-letters": config.dead_letters, "control": config.control, "audit": config.audit,
    }  # fmt: skip
    sink = KafkaSink(broker.bootstrap_servers, config)
    yield sink, lambda channel: read_all(broker.bootstrap_servers, names[channel])
    sink.close()
