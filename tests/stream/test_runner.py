"""The loop: nothing lost, crashes invisible, replay equal, bad input costs one dead letter."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.config import Config
from core.errors import DeliveryError
from core.records import Coordinates, Record
from stream.codec import decode_answer, label
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.report import Report
from stream.runner import run
from stream.states import canonical

TOPIC = "qshift.queries"


def go(
    world: Any, events: list[Any], store: Any = None, sink: Any = None, observers: Any = (), **kw: Any
) -> Any:
    source = MemorySource(events, [TOPIC], step=kw.pop("step", 7))
    store, sink = store or MemoryStore(), sink or MemorySink()
    report = run(source, world.pipeline, world.codec, sink, store, list(observers), world.config, **kw)
    return report, sink, store


def test_every_query_is_answered_once_and_in_order(make_world: Any, watch: Any) -> None:
    world = make_world()
    report, sink, _ = go(world, world.queries(50), observers=[watch])
    keys = [record.key for record in sink.records["answers"]]
    assert keys == [f"{TOPIC}/0/{offset}".encode() for offset in range(50)]
    assert report.queries == 50 and report.dead_letters == 0
    # 16 + 16 + 16 + the last two, which are too few to learn from.
    assert [len(o.batch) for o in watch.outcomes] == [16, 16, 16, 2]
    assert [o.step.updated for o in watch.outcomes] == [True, True, True, False]
    assert watch.outcomes[-1].step.reason == "too-small"
    assert len({o.state_hash for o in watch.outcomes}) == 4


def test_frozen_changes_nothing(make_world: Any, watch: Any) -> None:
    world = make_world(adapt={"method": "frozen"})
    go(world, world.queries(48), observers=[watch])
    assert len({o.state_hash for o in watch.outcomes}) == 1
    for outcome in watch.outcomes:
        np.testing.assert_array_equal(outcome.frozen.codes, outcome.adapted.codes)


def test_the_first_batch_is_answered_by_the_source_parameters(make_world: Any, watch: Any) -> None:
    world = make_world()
    go(world, world.queries(64), observers=[watch])
    first, last = watch.outcomes[0], watch.outcomes[-1]
    np.testing.assert_allclose(first.adapted.features, first.frozen.features, atol=1e-6)
    assert np.abs(last.adapted.features - last.frozen.features).max() > 1e-3


def interrupted(world: Any, events: list[Any], store: Any, sink: Any) -> Report:
    """Restarts after every crash with the same store and sink, as a supervisor would."""
    source = MemorySource(events, [TOPIC], step=7)
    while True:
        try:
            return run(source, world.pipeline, world.codec, sink, store, [], world.config)
        except Crash:
            source.seek((TOPIC, 0), 0)


@pytest.mark.parametrize("seed", range(12))
def test_crashes_are_invisible(make_world: Any, answers_of: Any, seed: int) -> None:
    world = make_world()
    records = world.queries(150)
    expected, sink, _ = go(world, records)
    rng = np.random.default_rng(seed)
    events: list[Any] = list(records)
    for place in sorted(rng.choice(150, size=4, replace=False), reverse=True):
        events.insert(int(place), Crash())
    crashed_sink = MemorySink()
    report = interrupted(world, events, MemoryStore(), crashed_sink)
    assert report.state_sha256 == expected.state_sha256
    assert answers_of(crashed_sink) == answers_of(sink)


def wanting(records: list[Record]) -> list[Record]:
    """Every third query wants odd items, every third two of the first ten; one in seven is refused for it."""
    wants = [{}, {"filter": {"parity": "odd"}}, {"filter": {"n": {"to": 9}}, "top": 2}]
    found = []
    for number, record in enumerate(records):
        want = {"top": 0} if number % 7 == 3 else wants[number % 3]
        found.append(replace(record, value=canonical({**json.loads(record.value or b""), **want})))
    return found


def test_what_queries_want_is_kept_through_crashes(make_world: Any, answers_of: Any) -> None:
    world = make_world()
    records = wanting(world.queries(100))
    report, sink, _ = go(world, records)
    refused = range(3, 100, 7)
    assert report.dead_letters == len(refused) and report.queries == 100 - len(refused)
    said = dict(sink.records["dead-letters"][0].headers)
    assert b"top" in said["x-error-message"] and said["x-source-offset"] == b"3"
    for record in sink.records["answers"]:
        answer = decode_answer(record.value or b"")
        items = [int(name.removeprefix("item-")) for name, _ in answer.results]
        kind = answer.source.offset % 3
        assert len(items) == (10, 10, 2)[kind]
        assert kind != 1 or all(item % 2 for item in items)
        assert kind != 2 or all(item < 10 for item in items)
    events: list[Any] = list(records)
    for place in (77, 50, 31, 9):
        events.insert(place, Crash())
    crashed = MemorySink()
    assert interrupted(world, events, MemoryStore(), crashed).state_sha256 == report.state_sha256
    assert answers_of(crashed) == answers_of(sink)


def test_a_crash_within_a_batch_between_journal_and_cut_is_invisible(
    make_world: Any, answers_of: Any
) -> None:
    class Stumbling(MemoryStore):
        """Dies at every place where a store is called, once each."""

        def __init__(self) -> None:
            super().__init__()
            self.calls, self.die_at = 0, 1

        def _maybe(self) -> None:
            self.calls += 1
            if self.calls == self.die_at:
                self.calls, self.die_at = 0, self.die_at + 3
                raise Crash

        def journal(self, entry: Any) -> None:
            super().journal(entry)
            self._maybe()

        def save(self, checkpoint: Any) -> None:
            self._maybe()
            super().save(checkpoint)
            self._maybe()

    world = make_world()
    records = world.queries(120)
    expected, sink, _ = go(world, records)
    stumbling, crashed_sink = Stumbling(), MemorySink()
    report = interrupted(world, list(records), stumbling, crashed_sink)
    assert stumbling.die_at > 5, "the test did not crash"
    assert report.state_sha256 == expected.state_sha256
    assert answers_of(crashed_sink) == answers_of(sink)


def test_time_out_boundaries_are_repeated_from_the_journal(make_world: Any, answers_of: Any) -> None:
    """A live run forms short batches by time-out; a later run with its journal gives the same bytes."""
    world = make_world(batch={"size": 16, "floor": 4, "linger_seconds": 0.5})
    now = [0.0]

    def clock() -> float:
        now[0] += 0.11
        return now[0]

    live, live_sink, store = go(world, world.queries(90), clock=clock, step=3)
    boundaries = [entry.offsets for entry in store.journalled((TOPIC, 0), {})]
    assert any(len(offsets) < 16 for offsets in boundaries[:-1]), "no batch was formed by time-out"
    again_store = MemoryStore()
    for entry in store.journalled((TOPIC, 0), {}):
        again_store.journal(entry)
    again, again_sink, _ = go(world, world.queries(90), store=again_store, step=90)
    assert again.state_sha256 == live.state_sha256
    assert answers_of(again_sink) == answers_of(live_sink)


def test_without_the_journal_other_boundaries_give_other_states(make_world: Any) -> None:
    world = make_world()
    one, _, _ = go(world, world.queries(90))
    other = make_world(batch={"size": 15, "floor": 8, "linger_seconds": 60.0})
    two, _, _ = go(other, other.queries(90))
    assert one.state_sha256 != two.state_sha256


def test_bad_input_costs_one_dead_letter_each(make_world: Any, watch: Any) -> None:
    world = make_world()
    good = world.queries(40)
    nan = b'{"schema_version":1,"modality":"vector","vector":[' + b",".join([b"NaN"] * 24) + b"]}"
    bad = [
        b"{",
        b"[]",
        b'{"modality":"smell"}',
        b'{"schema_version":1,"modality":"vector","vector":[1]}',
        nan,
        None,
    ]
    events = list(good[:20])
    for number, value in enumerate(bad):
        events.append(Record(Coordinates(TOPIC, 0, 20 + number), value))
    events += [replace(r, at=Coordinates(TOPIC, 0, r.at.offset + len(bad))) for r in good[20:]]
    report, sink, _ = go(world, events, observers=[watch])
    assert report.dead_letters == len(bad) == len(sink.records["dead-letters"])
    assert len(sink.records["answers"]) == 40
    for number, record in enumerate(sink.records["dead-letters"]):
        headers = dict(record.headers)
        assert headers["x-source-offset"] == str(20 + number).encode()
        assert headers["x-error-stage"] in (b"decode", b"validate")
        assert headers["x-error-message"]
    assert len(watch.refusals) == len(bad)


def test_a_bad_label_costs_one_dead_letter_however_many_workers_read_it(make_world: Any, watch: Any) -> None:
    """All workers read all labels; each of the three has one partition of the queries."""
    letters = []
    for partition in range(3):
        world = make_world()
        own = [replace(r, at=replace(r.at, partition=partition)) for r in world.queries(16)]
        labels = [Record(Coordinates("qshift.labels", number, 0), b"{") for number in range(2)]
        report, sink, _ = go(world, [*own, *labels], observers=[watch])
        assert report.dead_letters == len(sink.records["dead-letters"])
        letters += sink.records["dead-letters"]
    places = [dict(letter.headers)["x-source-partition"] for letter in letters]
    assert sorted(places) == [b"0", b"1"] and len(watch.refusals) == 2


def test_labels_reach_the_observers(make_world: Any, watch: Any) -> None:
    world = make_world()
    events: list[Any] = list(world.queries(16))
    events.append(Record(Coordinates("qshift.labels", 0, 0), label(Coordinates(TOPIC, 0, 3), "item-3")))
    go(world, events, observers=[watch])
    assert [(j.query.offset, j.label) for j in watch.judgements] == [(3, "item-3")]


class FailingSink(MemorySink):
    """A broker whose disk is full for the first flushes: what was sent is there, and is not acknowledged."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def flush(self, budget_seconds: float) -> None:
        if self.failures:
            self.failures -= 1
            raise DeliveryError("not acknowledged")


def test_a_failed_delivery_goes_back_to_the_checkpoint(make_world: Any, answers_of: Any) -> None:
    world = make_world()
    expected, sink, _ = go(world, world.queries(100))
    report, failing, _ = go(world, world.queries(100), sink=FailingSink(2), backoff_seconds=(0.01, 0.01))
    assert report.recoveries == 2
    assert report.state_sha256 == expected.state_sha256
    assert answers_of(failing) == answers_of(sink)


def test_stop_ends_after_the_batch_in_hand_with_a_checkpoint(make_world: Any) -> None:
    world = make_world()
    stop, store, sink = threading.Event(), MemoryStore(), MemorySink()

    class Stopper:
        def observe(self, outcome: Any) -> None:
            stop.set()

        def judge(self, judgement: Any) -> None: ...

        def refuse(self, refusal: Any) -> None: ...

    report, _, _ = go(world, world.queries(100), store=store, sink=sink, observers=[Stopper()], stop=stop)
    checkpoint = store.load((TOPIC, 0))
    assert report.batches == 1 and checkpoint is not None and checkpoint.next_offset == 16
    full, _, _ = go(world, world.queries(100))
    rest, _, _ = go(world, world.queries(100), store=store, sink=sink)
    assert rest.state_sha256 == full.state_sha256
    assert len(sink.records["answers"]) == 100


def test_waiting_queries_are_bounded(make_world: Any, watch: Any) -> None:
    world = make_world(limits={"pending_queries": 64})
    report, _, _ = go(world, world.queries(500), observers=[watch], step=50)
    assert report.queries == 500


def test_unknown_keys_in_the_configuration_are_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        Config.model_validate({"adapt": {"metod": "rest"}})


def test_two_runs_give_the_same_bytes(make_world: Any, answers_of: Callable[..., Any]) -> None:
    one = go(make_world(), make_world().queries(80))
    two = go(make_world(), make_world().queries(80), step=80)
    assert one[0].state_sha256 == two[0].state_sha256
    assert answers_of(one[1]) == answers_of(two[1])


def test_no_batch_is_cut_short_while_more_is_waiting_in_the_log(make_world: Any, watch: Any) -> None:
    """A busy worker polls seldom: what is left of a poll is old by then, but not short of company."""

    class Backlog(MemorySource):
        def lag(self) -> Any:
            return {(TOPIC, 0): len(self._events) - self._next}

    world = make_world(batch={"size": 16, "floor": 8, "linger_seconds": 0.5})
    source, now = Backlog(world.queries(96), [TOPIC], step=20), [0.0]

    def clock() -> float:
        now[0] += 0.11
        return now[0]

    run(source, world.pipeline, world.codec, MemorySink(), MemoryStore(), [watch], world.config, clock=clock)
    assert [len(o.batch) for o in watch.outcomes] == [16] * 6
