"""A batch that the journal plans and of which not all is accepted any more: nothing waits for ever."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from core.records import Coordinates, Record
from stream.command_messages import acknowledgements, command
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.messages import validated
from stream.runner import run

TOPIC = "qshift.queries"


class Live(MemorySource):
    """A log whose end is no end: there a turn is as any other, until so many were made."""

    exhausted = False

    def __init__(self, events: list[Record], stop: threading.Event, turns: int) -> None:
        super().__init__(events, [TOPIC])
        self._stop, self._turns = stop, turns

    def poll(self, budget_seconds: float) -> list[Record]:
        self._turns -= 1
        if not self._turns:
            self._stop.set()
        return super().poll(0.0)


def live(world: Any, events: list[Record], store: MemoryStore) -> MemorySink:
    sink, stop = MemorySink(), threading.Event()
    run(
        Live(events, stop, 12), world.pipeline, world.codec, sink, store, [], world.config, stop,
        clock=lambda: 0.0, poll_seconds=0.0,
    )  # fmt: skip
    return sink


def journalled(world: Any, queries: list[Record]) -> MemoryStore:
    """A store that holds the journal of a run alone."""
    store, again = MemoryStore(), MemoryStore()
    run(MemorySource(queries, [TOPIC]), world.pipeline, world.codec, MemorySink(), store, [], world.config)
    for entry in store.journalled((TOPIC, 0), {}):
        again.journal(entry)
    return again


@pytest.mark.parametrize("refused", [(15,), (3, 14, 15), range(16)])
def test_what_is_refused_now_holds_up_neither_its_batch_nor_a_command(make_world: Any, refused: Any) -> None:
    world = make_world()
    queries = world.queries(16)
    store = journalled(world, queries)
    now = [replace(one, value=b"{") if one.at.offset in refused else one for one in queries]
    freeze = Record(Coordinates("qshift.control", 0, 0), command("freeze", "ann"))
    sink = live(world, [*now, freeze], store)
    answered = {record.key for record in sink.records["answers"]}
    assert answered == {str(one.at).encode() for one in queries if one.at.offset not in refused}
    assert len(sink.records["dead-letters"]) == len(refused)
    (ack,) = [validated(acknowledgements, record.value or b"") for record in sink.records["audit"]]
    assert ack.result == "applied" and ack.lane == "0:vector"


def test_a_batch_waits_while_some_of_it_was_not_read(make_world: Any) -> None:
    world = make_world()
    queries = world.queries(16)
    store = journalled(world, queries)
    assert not live(world, queries[:15], store).records["answers"]
    assert len(live(world, queries, store).records["answers"]) == 16
