"""How long a query waits for company: lone ones briefly, all others as if there were no such thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from core.batching import BatchConfig
from core.config import Config
from core.records import Record
from stream.company import PATIENCE, Ahead, Company
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run

TOPIC = "qshift.queries"
LINGER, LONE, POLL = 0.25, 0.03, 0.1
BATCH = {"size": 16, "floor": 8, "linger_seconds": LINGER, "lone_seconds": LONE}


class Timed(MemorySource):
    """Each record comes at its second; a poll waits for the next one, and time is what was waited."""

    def __init__(self, records: Sequence[Record], seconds: Sequence[float]) -> None:
        super().__init__(records, [TOPIC])
        self.seconds, self.now = list(seconds), 0.0

    def poll(self, budget_seconds: float) -> list[Record]:
        coming = next((at for at in self.seconds[self._next :]), np.inf)
        self.now = max(self.now, min(coming, self.now + budget_seconds))
        self._step = sum(at <= self.now for at in self.seconds[self._next :])
        return super().poll(budget_seconds)

    def clock(self) -> float:
        return self.now


class Answers(MemorySink):
    """Knows how long each query has waited for its answer."""

    def __init__(self, source: Timed) -> None:
        super().__init__()
        self.source, self.waited = source, []

    def send(self, channel: Any, value: bytes, key: bytes | None, headers: Any = ()) -> None:
        super().send(channel, value, key, headers)
        if key is not None and channel == "answers":
            offset = int(key.decode().rpartition("/")[2])
            self.waited.append(self.source.now - self.source.seconds[offset])


class Busy(MemoryStore):
    """A batch takes its time, from its boundary to its answers."""

    def __init__(self, source: Timed, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.source, self.of, self.sizes = source, seconds, []

    def journal(self, entry: Any) -> None:
        super().journal(entry)
        self.sizes.append(len(entry.offsets))
        self.source.now += self.of(len(entry.offsets))


def go(
    make_world: Any, seconds: Sequence[float], takes: Callable[[int], float] = lambda rows: 0.0, **batch: Any
) -> tuple[Busy, Answers]:
    world = make_world(batch={**BATCH, **batch}, adapt={"method": "frozen"})
    source = Timed(world.queries(len(seconds)), seconds)
    store, sink = Busy(source, takes), Answers(source)
    run(
        source,
        world.pipeline,
        world.codec,
        sink,
        store,
        [],
        world.config,
        clock=source.clock,
        poll_seconds=POLL,
    )
    return store, sink


def test_a_lone_query_waits_for_nobody(make_world: Any) -> None:
    store, sink = go(make_world, [float(n) for n in range(12)])
    assert store.sizes == [1] * 12
    assert sink.waited[0] == pytest.approx(LINGER)  # nothing is known yet
    assert sink.waited[3:-1] == [pytest.approx(LONE)] * 8  # to the point: no poll sleeps any longer


def test_after_a_crowd_the_third_one_is_lone_again(make_world: Any) -> None:
    seconds = [float(n) for n in range(6)] + [6 + n / 1000 for n in range(64)] + [7.0, 8.0, 9.0, 10.0, 11.0]
    store, sink = go(make_world, seconds)
    assert store.sizes == [1] * 6 + [16] * 4 + [1] * 5
    assert sink.waited[70:-1] == [pytest.approx(w) for w in (LINGER, LINGER, LONE, LONE)]


@pytest.mark.parametrize("apart", [0.01, 0.04, 0.1])
def test_queries_that_come_steadily_wait_as_before(make_world: Any, apart: float) -> None:
    seconds = [apart * n for n in range(60)]
    now, before = (go(make_world, seconds, lone_seconds=lone) for lone in (LONE, LINGER))
    assert now[0].sizes == before[0].sizes and now[1].waited == before[1].waited
    assert max(now[0].sizes) == min(16, 1 + int(LINGER / apart + 1e-9))


def test_crowds_with_pauses_between_them_stay_whole(make_world: Any) -> None:
    """Also where their queries are farther apart than a lone one waits."""
    seconds = [5.0 * crowd + 0.04 * n for crowd in range(6) for n in range(4)]
    store, _ = go(make_world, seconds)
    assert store.sizes == [4] * 6


@pytest.mark.parametrize("rate", [20, 60, 100])
def test_a_busy_worker_forms_no_smaller_batches(make_world: Any, rate: int) -> None:
    """Queries at random, and batches that take what they take: 60 ms and 3 ms a query."""
    seconds = np.cumsum(np.random.default_rng(rate).exponential(1 / rate, 300)).tolist()
    sizes = [
        np.mean(go(make_world, seconds, lambda rows: 0.06 + 0.003 * rows, lone_seconds=lone)[0].sizes)
        for lone in (LONE, LINGER)
    ]
    assert sizes[0] > 0.97 * sizes[1]


def test_boundaries_of_lone_queries_are_repeated_from_the_journal(make_world: Any, answers_of: Any) -> None:
    seconds = [0.7 * n for n in range(10)] + [7 + 0.05 * n for n in range(40)]
    store, sink = go(make_world, seconds)
    assert 1 in store.sizes and 6 in store.sizes
    again, planned = MemorySink(), MemoryStore()
    for entry in store.journalled((TOPIC, 0), {}):
        planned.journal(entry)
    world = make_world(adapt={"method": "frozen"})  # waits for a minute, and for nothing that is planned
    run(
        MemorySource(world.queries(50), [TOPIC]),
        world.pipeline,
        world.codec,
        again,
        planned,
        [],
        world.config,
    )
    assert answers_of(again) == answers_of(sink)


def test_what_is_known_to_come_is_waited_for() -> None:
    config, lone = BatchConfig(linger_seconds=LINGER, lone_seconds=LONE), Company()
    for second in range(5):
        lone.came(float(second), config)
    ends = {ahead: lone.until(4.0, config, ahead) - 4 for ahead in Ahead}
    assert ends == {
        Ahead.NOTHING: pytest.approx(LONE),
        Ahead.DECODING: pytest.approx(LINGER),
        Ahead.READY: pytest.approx(LINGER * PATIENCE),
    }


def test_the_time_of_lone_queries_is_no_part_of_what_a_state_fits() -> None:
    """Boundaries are in the journal; what was saved before there was a setting goes on."""
    assert Config().decisions() == Config(batch=BatchConfig(lone_seconds=0)).decisions()
    assert Config().decisions() != Config(batch=BatchConfig(linger_seconds=1)).decisions()
