"""Commands on a real Kafka: a killed worker repeats them, and so does the recording of the day."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import LimitConfig
from core.records import Record
from qshift.build import engine
from qshift.demo.control import control
from qshift.offline import run_offline
from qshift.replay.recorded import recorded
from qshift.terminal.sheet import console
from stream.broker import Broker
from stream.client import read_all
from stream.command_messages import acknowledgements
from stream.control_client import ControlClient
from stream.messages import validated

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PORTION = 48
KEPT = {"keep": 3, "every_batches": 2}


class Operator:
    """Gives commands as `qshift control` does, and keeps what it prints."""

    def __init__(self, site: Any) -> None:
        self._file = site.file

    def __call__(self, action: Any, value: str | None = None, wait: float = 60.0, lane: str = "") -> int:
        return control(action, value, lane, "", "", "ann", wait, self._file, console())


def audit(site: Any) -> dict[bytes, set[bytes]]:
    found: dict[bytes, set[bytes]] = {}
    for record in read_all(site.servers, site.kafka.audit):
        assert record.key is not None and record.value is not None
        found.setdefault(record.key, set()).add(record.value)
    return found


def obeyed(site: Any) -> list[Any]:
    found = [validated(acknowledgements, value) for values in audit(site).values() for value in values]
    return sorted(found, key=lambda one: one.command.offset)


def test_kills_are_invisible_and_the_recorded_day_gives_the_same_answers(
    broker: Broker, vector_world: Path, make_site: Callable[..., Any], messages: Callable[..., Any]
) -> None:
    site = make_site(broker, vector_world, checkpoints=KEPT)
    values, _ = messages(PORTION * 6)
    order, worker = Operator(site), site.worker()
    plan: list[list[tuple[Any, ...]]] = [
        [], [("freeze",), ("w", "0.5")], [("unfreeze",), ("checkpoint",)], [("rollback", "2")],
        [("method", "tent"), ("method", "nonsense")], [("reset",), ("method", "default")],
    ]  # fmt: skip
    for number, commands in enumerate(plan):
        for one in commands:
            assert order(*one) == (one[-1] == "nonsense")
        if number in (2, 5):  # what was acknowledged is not forgotten
            worker.kill()
            worker = site.worker()
        site.send(values[number * PORTION : (number + 1) * PORTION])
        done = (number + 1) * PORTION
        if number in (1, 3, 4):  # killed wherever it is
            site.wait(lambda done=done: len(site.distinct()) > done - PORTION)
            worker.kill()
            worker = site.worker()
        site.wait(lambda done=done: len(site.distinct()) == done)
    worker.terminate()
    assert not any("commands that an answered batch" in one.output() for one in site.started)
    sent = site.distinct()
    assert {key for key, found in sent.items() if len(found) > 1} == set(), "answered in two ways"
    assert {key for key, found in audit(site).items() if len(found) > 1} == set(), "acknowledged in two ways"
    assert [(one.action, one.result) for one in obeyed(site)] == [
        (one[0], "refused" if one[-1] == "nonsense" else "applied") for commands in plan for one in commands
    ]
    decided = {json.loads(next(iter(found)))["source"]["offset"]: found for found in sent.values()}
    frozen = [json.loads(next(iter(decided[n]))) for n in range(PORTION, 2 * PORTION)]
    assert {answer["weight"] for answer in frozen} == {0.0}

    found = recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries)
    assert sum(not entry.offsets for entry in found.journal) == sum(map(len, plan))
    _, sink = run_offline(engine(site.config), [*found.late, *found.records], [], found.journal)
    assert {record.key: {record.value} for record in sink.records["answers"]} == sent
    assert {one.key: {one.value} for one in sink.records["audit"]} == audit(site)


def test_two_workers_obey_each_in_its_partitions_and_bad_commands_stop_nothing(
    broker: Broker, vector_world: Path, make_site: Callable[..., Any], messages: Callable[..., Any]
) -> None:
    site = make_site(broker, vector_world, kafka={"partitions": 2})
    values, _ = messages(64)
    for number in (0, 1):
        site.worker(f"worker-{number}")
    client = site.client()
    for number, (value, headers) in enumerate(values):
        client._sink.emit_to(site.kafka.queries, value, None, headers, partition=number % 2)
    client.flush()
    client.close()
    site.wait(lambda: len(site.distinct()) == 64)
    order = Operator(site)
    with ControlClient(site.servers, site.kafka) as operator:
        operator.send(b'{"action":"thaw","author":"ann"}')
    assert order("freeze", lane="1:vector") == 0 and order("freeze") == 0
    assert order("unfreeze", lane="1:image") == 1
    found = [(one.action, one.partition, one.lane, one.result) for one in obeyed(site)]
    assert sorted(found) == [
        ("", 0, "", "refused"),
        ("freeze", 0, "0:vector", "applied"),
        ("freeze", 1, "1:vector", "applied"),
        ("freeze", 1, "1:vector", "applied"),
        ("unfreeze", 1, "", "refused"),
    ]
    letters: list[Record] = site.dead_letters()
    assert [dict(one.headers)["x-source-topic"] for one in letters] == [site.kafka.control.encode()]
    for worker in site.started:
        worker.terminate()


def test_without_a_service_the_command_waits_in_the_log(
    broker: Broker, vector_world: Path, make_site: Callable[..., Any], messages: Callable[..., Any]
) -> None:
    site = make_site(broker, vector_world)
    assert Operator(site)("freeze", wait=1.0) == 3
    values, _ = messages(16)
    site.send(values)
    worker = site.worker()
    site.wait(lambda: len(site.distinct()) == 16)
    worker.terminate()
    assert [(one.lane, one.result, one.batch_seq) for one in obeyed(site) if one.lane] == [
        ("0:vector", "applied", 0)
    ]
