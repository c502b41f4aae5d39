"""Commands of an operator: obeyed between two batches, journalled there, acknowledged, repeated."""

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.checkpoints import Checkpoint
from core.errors import ConfigError, DeliveryError, Refused
from core.records import Coordinates, Record
from stream.command_messages import acknowledgements, command
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.messages import validated
from stream.orders import Orders
from stream.runner import run
from stream.session import Session

TOPIC, CONTROL, LANE = "qshift.queries", "qshift.control", "0:vector"
KEPT = {"keep": 3, "every_batches": 2}


def at(events: list[Any], orders: dict[int, bytes]) -> list[Any]:
    """The events, with commands before the query of that number."""
    found: list[Any] = []
    offset = 0
    for number, event in enumerate(events):
        if number in orders:
            found.append(Record(Coordinates(CONTROL, 0, offset), orders[number]))
            offset += 1
        found.append(event)
    return found


def go(world: Any, events: list[Any], store: Any = None, sink: Any = None, watch: Any = None) -> Any:
    """One event a poll: what is formed depends on the order of events alone."""
    store, sink = store or MemoryStore(), sink or MemorySink()
    source = MemorySource(events, [TOPIC], step=1)
    while True:
        try:
            observers = [watch] if watch else []
            report = run(source, world.pipeline, world.codec, sink, store, observers, world.config)
            return report, sink, store
        except Crash:
            source.seek((TOPIC, 0), 0)


def said(action: Any, **more: Any) -> bytes:
    return command(action, "ann", **more)


def acks(sink: Any) -> list[Any]:
    return [validated(acknowledgements, record.value) for record in sink.records["audit"]]


def distinct(sink: Any) -> dict[str, dict[Any, set[Any]]]:
    found: dict[str, dict[Any, set[Any]]] = {}
    for channel in ("answers", "audit"):
        for record in sink.records[channel]:
            found.setdefault(channel, {}).setdefault(record.key, set()).add(record.value)
    return found


def states(sink: Any) -> dict[int, str]:
    """Query -> the state that answered it."""
    read = [json.loads(record.value) for record in sink.records["answers"]]
    return {one["source"]["offset"]: one["state"] for one in read}


def test_freeze_serves_frozen_and_learns_nothing_until_unfreeze(make_world: Any, watch: Any) -> None:
    world = make_world()
    events = at(world.queries(96), {32: said("freeze"), 64: said("unfreeze")})
    _, sink, store = go(world, events, watch=watch)
    reasons = [o.step.reason if not o.step.updated else "" for o in watch.outcomes]
    assert reasons == ["", "", "frozen", "frozen", "", ""]
    for outcome in watch.outcomes[2:4]:
        assert outcome.adapted is outcome.frozen
    assert watch.outcomes[3].state_hash == watch.outcomes[2].state_hash, "nothing was learned"
    assert [(a.action, a.author, a.lane, a.result, a.batch_seq) for a in acks(sink)] == [
        ("freeze", "ann", LANE, "applied", 2),
        ("unfreeze", "ann", LANE, "applied", 5),
    ]
    entries = store.journalled((TOPIC, 0), {})
    assert [(e.seq, e.control_offset) for e in entries if not e.offsets] == [(2, 1), (5, 2)]
    assert acks(sink)[0].state == watch.outcomes[2].state_hash


def test_unfrozen_it_goes_on_as_if_what_was_frozen_had_not_been(make_world: Any) -> None:
    world = make_world()
    records = world.queries(96)
    _, sink, _ = go(world, at(records, {32: said("freeze"), 64: said("unfreeze")}))
    without = [r for r in records if not 32 <= r.at.offset < 64]
    _, other, _ = go(world, without)
    ours, theirs = states(sink), states(other)
    # A batch's draws hang on its coordinates, and those are equal here: so are the states.
    assert ours[64] == theirs[64] and ours[95] == theirs[95]


def test_reset_returns_bitwise_to_the_source_and_can_be_taken_back(make_world: Any) -> None:
    world = make_world(checkpoints=KEPT)
    events = at(world.queries(80), {32: said("reset"), 48: said("rollback")})
    _, sink, _ = go(world, events)
    found = states(sink)
    assert found[32] == found[0] == Session(world.pipeline, "vector").state_hash()
    before = acks(sink)[1].state
    assert before == found[48] != found[0]
    _, plain, _ = go(world, world.queries(80))
    assert before == states(plain)[32], "the state before the reset"


def test_rollback_by_steps_and_by_hash(make_world: Any) -> None:
    world = make_world(checkpoints=KEPT)  # before batch 2, 4, 6
    _, plain, _ = go(world, world.queries(128))
    known = states(plain)
    events = at(world.queries(128), {112: said("rollback", steps=2)})
    _, sink, _ = go(world, events)
    assert acks(sink)[0].state == states(sink)[112] == known[64]
    events = at(world.queries(128), {112: said("rollback", state=known[32][:12])})
    _, sink, _ = go(world, events)
    assert states(sink)[112] == known[32]
    events = at(world.queries(128), {80: said("rollback"), 81: said("rollback")})
    _, sink, _ = go(world, events)
    assert [a.state for a in acks(sink)] == [known[64], known[32]], "twice goes back twice"


def test_a_checkpoint_on_command_is_kept_and_durable(make_world: Any) -> None:
    world = make_world(checkpoints={"keep": 2, "every_batches": 1000}, state={"every_batches": 1000})
    events = at(world.queries(96), {48: said("checkpoint"), 80: said("rollback")})
    report, sink, _ = go(world, events)
    first, second = acks(sink)
    assert first.result == second.result == "applied" and first.state == second.state
    assert report.checkpoints == 3, "one behind each command, and the last"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (said("rollback", steps=9), "no checkpoint 9 back is kept: there are none"),
        (said("rollback", state="00000000"), "no checkpoint 00000000 is kept"),
        (said("freeze", base="00000000"), "meant for the base model 00000000"),
        (said("method", method="tent"), "methods cannot be changed here"),
        (said("swap-gallery", gallery="other"), "holds no version other"),
        (said("freeze", lane="0:image"), "there is no such lane"),
        (said("freeze", lane="image"), "there is no such lane"),
        (said("freeze", tenant="acme"), "not kept apart by tenant"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(make_world: Any, value: bytes, why: str) -> None:
    world = make_world()
    plain, untouched, _ = go(world, world.queries(64))
    report, sink, _ = go(world, at(world.queries(64), {40: value}))
    (ack,) = acks(sink)
    assert ack.result == "refused" and why in ack.reason
    assert states(sink) == states(untouched) and report.state_sha256 == plain.state_sha256
    assert report.dead_letters == 0


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        None,
        b'{"action":"freeze"}',
        b'{"action":"freeze","author":"ann","schema_version":2}',
        b'{"action":"thaw","author":"ann"}',
        b'{"action":"freeze","author":"ann","until":"friday"}',
        b'{"action":"w","author":"ann","weight":-1}',
        b'{"action":"w","author":"ann"}',
        b'{"action":"rollback","author":"ann","steps":0}',
        b'{"action":"freeze","author":"' + b"a" * 20000 + b'"}',
    ],
)
def test_a_bad_command_costs_one_dead_letter_and_one_line(make_world: Any, value: bytes | None) -> None:
    world = make_world()
    _, untouched, _ = go(world, world.queries(48))
    record = Record(Coordinates(CONTROL, 0, 0), value)
    good = Record(Coordinates(CONTROL, 0, 1), said("freeze"))
    queries = world.queries(48)
    report, sink, _ = go(world, [*queries[:20], record, *queries[20:40], good, *queries[40:]])
    assert report.dead_letters == 1 == len(sink.records["dead-letters"])
    headers = dict(sink.records["dead-letters"][0].headers)
    assert headers["x-source-topic"] == CONTROL.encode() and headers["x-error-message"]
    assert [(a.action, a.result) for a in acks(sink)] == [("", "refused"), ("freeze", "applied")]
    assert acks(sink)[0].reason, "says why"
    assert {k: v for k, v in states(sink).items() if k < 32} == {
        k: v for k, v in states(untouched).items() if k < 32
    }


def test_our_own_client_refuses_what_the_service_would() -> None:
    with pytest.raises(Refused, match="weight"):
        said("w", weight=-1.0)
    with pytest.raises(Refused, match="author"):
        command("freeze", "")
    assert b'"weight":null' in said("w", weight=None)


def plan(world: Any) -> list[Any]:
    return at(
        world.queries(160),
        {
            20: said("checkpoint"), 40: said("freeze"), 70: said("unfreeze"), 90: said("rollback"),
            100: b"{", 120: said("reset"), 140: said("rollback", steps=2),
        },
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_crashes_among_commands_are_invisible(make_world: Any, seed: int) -> None:
    world = make_world(checkpoints=KEPT)
    expected, sink, _ = go(world, plan(world))
    rng, events = np.random.default_rng(seed), plan(world)
    for place in sorted(rng.choice(len(events), size=6, replace=False), reverse=True):
        events.insert(int(place), Crash())
    report, crashed, _ = go(world, events)
    assert report.state_sha256 == expected.state_sha256
    assert distinct(crashed) == distinct(sink)


class Once(MemorySource):
    """Shows a command once, as a log does that nobody seeks in."""

    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        self.shown: set[Coordinates] = set()

    def poll(self, budget_seconds: float) -> list[Record]:
        found = [r for r in super().poll(budget_seconds) if r.at not in self.shown]
        self.shown |= {record.at for record in found if record.at.topic == CONTROL}
        return found


class Away(MemoryStore):
    """Cannot be read the first time."""

    away = True

    def load(self, partition: Any) -> Any:
        away, self.away = self.away, False
        if away:
            raise DeliveryError("away")
        return super().load(partition)


def test_a_command_that_came_in_a_turn_that_failed_is_obeyed(make_world: Any) -> None:
    world, sink = make_world(), MemorySink()
    source = Once(at(world.queries(32), {8: said("freeze")}), [TOPIC])
    report = run(
        source, world.pipeline, world.codec, sink, Away(), [], world.config, backoff_seconds=(0.0, 0.0)
    )
    assert report.recoveries == 1
    assert ("freeze", LANE, "applied") in [(a.action, a.lane, a.result) for a in acks(sink)]


class Stumbling(MemoryStore):
    """Dies before and behind everything that is made durable, once, at the place of that number."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.left = place

    def _maybe(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash

    def journal(self, entry: Any) -> None:
        self._maybe()
        super().journal(entry)
        self._maybe()

    def save(self, checkpoint: Any) -> None:
        self._maybe()
        super().save(checkpoint)
        self._maybe()


class StumblingSink(MemorySink):
    """Dies before and behind the sending of an acknowledgement, once."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.left = place

    def send(self, channel: Any, *message: Any) -> None:
        for again in (False, True):
            if channel == "audit":
                self.left -= 1
                if self.left == 0:
                    raise Crash
            if not again:
                super().send(channel, *message)


def test_a_crash_at_every_step_is_invisible(make_world: Any) -> None:
    world = make_world(checkpoints=KEPT)
    orders = {5: said("checkpoint"), 20: said("freeze"), 34: said("unfreeze"), 35: b"{", 50: said("rollback")}
    events = at(world.queries(56), orders)
    expected, sink, _ = go(world, events)
    died = 0
    for place in range(1, 200):
        store, crashed = Stumbling(place), MemorySink()
        report, _, _ = go(world, events, store, crashed)
        assert report.state_sha256 == expected.state_sha256, place
        assert distinct(crashed) == distinct(sink), place
        if store.left > 0:
            break
        died += 1
    assert died > 20, "the test did not crash at every step"
    for place in range(1, 200):
        stumbling = StumblingSink(place)
        report, _, _ = go(world, events, None, stumbling)
        assert report.state_sha256 == expected.state_sha256 and distinct(stumbling) == distinct(sink), place
        if stumbling.left > 0:
            break
    assert place > 10


def test_the_journal_alone_says_where_commands_were_obeyed(make_world: Any) -> None:
    """A replay reads all commands first, and obeys each where the live run did."""
    world = make_world(checkpoints=KEPT)
    live, sink, store = go(world, plan(world))
    again = MemoryStore()
    for entry in store.journalled((TOPIC, 0), {}):
        again.journal(entry)
    events = sorted(plan(world), key=lambda record: (record.at.topic, record.at.offset))
    assert events[0].at.topic == CONTROL
    report, other, _ = go(world, events, again)
    assert report.state_sha256 == live.state_sha256
    assert distinct(other)["answers"] == distinct(sink)["answers"]
    states_of = [(a.action, a.batch_seq, a.state) for a in acks(other) if a.lane]
    assert states_of == [(a.action, a.batch_seq, a.state) for a in acks(sink) if a.lane]


def test_without_the_commands_a_replay_says_that_it_differs(
    make_world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world()
    _, _, store = go(world, at(world.queries(64), {32: said("freeze")}))
    again = MemoryStore()
    for entry in store.journalled((TOPIC, 0), {}):
        again.journal(entry)
    with caplog.at_level(logging.ERROR):
        report, _, _ = go(world, world.queries(64), again)
    assert report.queries == 64 and "commands that an answered batch depends on" in caplog.text


def test_a_lane_to_come_begins_as_was_said_of_all(make_world: Any, watch: Any) -> None:
    world = make_world(batch={"size": 16, "floor": 8, "linger_seconds": 60.0, "per_tenant_lanes": True})
    queries = world.queries(64)
    late = [
        replace(q, headers=(*q.headers, ("x-tenant", b"acme"))) if q.at.offset >= 32 else q for q in queries
    ]
    orders = {8: said("reset"), 9: said("freeze"), 10: said("freeze", lane=f"{LANE}:acme")}
    _, sink, _ = go(world, at(late, orders), watch=watch)
    assert [o.step.reason for o in watch.outcomes] == ["frozen"] * 4
    found = [(a.action, a.lane, a.batch_seq, a.result) for a in acks(sink)]
    assert found == [
        ("reset", LANE, 0, "applied"),
        ("freeze", LANE, 1, "applied"),
        ("freeze", "", 0, "refused"),
        ("freeze", f"{LANE}:acme", 0, "applied"),
    ]


class DiesOfSaving(MemoryStore):
    """Kills the worker when a lane that has done nothing yet is in a checkpoint for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = False

    def save(self, checkpoint: Checkpoint) -> None:
        super().save(checkpoint)
        if not self.dead and 0 in checkpoint.covered.values():
            self.dead = True
            raise Crash


def test_a_lane_that_was_saved_before_its_first_boundary_obeys_what_holds(make_world: Any) -> None:
    """Met in the turn in which another lane's batch made the checkpoint."""
    batch = {"size": 16, "floor": 8, "linger_seconds": 60.0, "per_tenant_lanes": True, "live_lanes": 0}
    world = make_world(batch=batch, state={"every_batches": 1})
    events: list[Any] = [Record(Coordinates(CONTROL, 0, 0), said("freeze")), *world.queries(49)]
    for number in range(33, 50):
        events[number] = replace(events[number], headers=(*events[number].headers, ("x-tenant", b"acme")))
    source, sink, store = MemorySource(events, [TOPIC], step=17), MemorySink(), DiesOfSaving()
    with pytest.raises(Crash):
        run(source, world.pipeline, world.codec, sink, store, [], world.config)
    source.seek((TOPIC, 0), 0)
    run(source, world.pipeline, world.codec, sink, store, [], world.config)
    entries = [e for e in store.journalled((TOPIC, 0), {}) if not e.offsets]
    assert [(e.lane, e.seq, e.control_offset) for e in entries] == [(LANE, 0, 1), (f"{LANE}:acme", 0, 1)]


def test_other_lanes_notice_nothing(make_world: Any) -> None:
    world = make_world(batch={"size": 16, "floor": 8, "linger_seconds": 60.0, "per_tenant_lanes": True})
    queries = [
        replace(q, headers=(*q.headers, ("x-tenant", (b"a", b"b")[q.at.offset % 2])))
        for q in world.queries(96)
    ]
    _, plain, _ = go(world, queries)
    _, sink, _ = go(world, at(queries, {40: said("freeze", tenant="a"), 50: said("reset", lane=f"{LANE}:a")}))
    assert [a.lane for a in acks(sink)] == [f"{LANE}:a"] * 2
    ours, theirs = distinct(sink)["answers"], distinct(plain)["answers"]
    odd = {f"{TOPIC}/0/{offset}".encode() for offset in range(1, 96, 2)}
    assert {key: ours[key] for key in odd} == {key: theirs[key] for key in odd}
    assert ours != theirs


def test_a_partition_without_lanes_answers_all_the_same(make_world: Any) -> None:
    world = make_world()
    bad = Record(Coordinates(TOPIC, 0, 0), b"{")
    _, sink, _ = go(world, at([bad, *world.queries(17)[1:]], {0: said("freeze"), 1: said("reset")}))
    freeze, reset, born = acks(sink)
    assert (freeze.lane, freeze.result) == ("", "applied") and "to come" in freeze.reason
    assert (reset.lane, reset.result) == ("", "applied") and "no lane" in reset.reason
    assert (born.lane, born.action) == (LANE, "freeze")


def test_what_was_set_is_part_of_the_state_and_only_then(make_world: Any) -> None:
    world = make_world()
    session = Session(world.pipeline, "vector")
    untouched = session.state_hash()
    assert "orders" not in session.snapshot()[1]
    session.orders.frozen, session.orders.weight = True, 0.5
    session.changed()
    assert session.state_hash() != untouched
    other = Session(world.pipeline, "vector")
    other.restore(*session.snapshot())
    assert other.orders == session.orders and other.state_hash() == session.state_hash()


def test_a_weight_is_bound_after_all_else(make_world: Any) -> None:
    weights = np.array([0.0, 0.25, 2.0, np.inf])
    assert Orders().bound(weights) is weights
    np.testing.assert_array_equal(Orders(weight=0.5).bound(weights), [0.0, 0.25, 0.5, 0.5])
    np.testing.assert_array_equal(Orders(frozen=True, weight=0.5).bound(weights), np.zeros(4))


def test_another_method_learns_from_the_source(make_world: Any, watch: Any) -> None:
    world = make_world(checkpoints=KEPT)
    frozen = make_world(adapt={"method": "frozen"})

    def other(method: str, modality: Any) -> Any:
        if method != "frozen":
            raise ConfigError(f"method {method!r} is not known")
        return frozen.pipeline.new_adapter(modality), None, 1

    world.pipeline.other = other
    orders = {
        32: said("method", method="frozen"), 33: said("method", method="tnet"), 50: said("reset"),
        64: said("method", method="default"), 96: said("rollback", steps=3),
    }  # fmt: skip
    events = at(world.queries(128), orders)
    report, sink, _ = go(world, events, watch=watch)
    assert [(a.action, a.result) for a in acks(sink)] == [
        ("method", "applied"), ("method", "refused"), ("reset", "applied"), ("method", "applied"),
        ("rollback", "applied"),
    ]  # fmt: skip
    assert [o.step.updated for o in watch.outcomes[2:4]] == [False, False]
    assert all(o.step.updated for o in watch.outcomes[4:])
    found = states(sink)
    assert found[64] == found[0]
    for place in range(10, len(events), 17):
        events.insert(place, Crash())
    again, crashed, _ = go(world, events)
    assert again.state_sha256 == report.state_sha256 and distinct(crashed) == distinct(sink)


def test_kept_states_survive_a_restart_whatever_else_is_gone(make_world: Any) -> None:
    """They are part of the newest checkpoint: nothing else has to be held for them."""
    world = make_world(checkpoints=KEPT)
    records = world.queries(128)
    _, _, store = go(world, records[:96])
    held = store.load((TOPIC, 0))
    only = MemoryStore()
    only.save(held)
    _, sink, _ = go(world, at(records, {100: said("rollback", steps=2)}), only)
    _, plain, _ = go(world, records)
    assert acks(sink)[0].state == states(plain)[32]


def test_fewer_are_kept_where_fewer_are_wanted(make_world: Any) -> None:
    world = make_world(checkpoints=KEPT)
    _, _, store = go(world, world.queries(128))
    (lane,) = store.load((TOPIC, 0)).lanes
    assert [kept.seq for kept in lane.kept] == [2, 4, 6]
    for keep in (0, 1):
        fewer = make_world(checkpoints={"keep": keep, "every_batches": 2})
        copied = MemoryStore()
        copied.save(store.load((TOPIC, 0)))
        more = fewer.queries(144)
        _, _, after = go(fewer, more, copied)
        (lane,) = after.load((TOPIC, 0)).lanes
        assert len(lane.kept) == keep
