"""Lanes of tenants that are put away: same answers, same states, few in memory, whatever happens."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.config import Config
from core.errors import ArtifactError
from core.records import Record
from stream.command_messages import command
from stream.directory import DirectoryStore
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.resting import LIVE_LANES, most_lanes
from stream.runner import run

TOPIC = "qshift.queries"
OF_OLD = "0d312618"
"""The default section before there was a bound: states that were saved then are read now."""
HOSTILE = ["../../etc", "ä" * 128, "a/b\n", "acme:image", "0", "CON", "'; --", "%2e%2e"]


def batch(live: int | None, size: int = 8) -> dict[str, Any]:
    return {
        "size": size, "floor": 4, "linger_seconds": 60.0, "per_tenant_lanes": True, "live_lanes": live,
    }  # fmt: skip


def of_tenants(records: list[Record], tenants: int, seed: int = 5) -> list[Record]:
    """Each query is some tenant's, drawn; some of their names are hostile."""
    drawn = np.random.default_rng(seed).integers(tenants, size=len(records))
    names = [*HOSTILE, *(f"tenant-{n}" for n in range(tenants))][:tenants]
    headers = [(*r.headers, ("x-tenant", names[n].encode())) for r, n in zip(records, drawn, strict=True)]
    return [replace(r, headers=h) for r, h in zip(records, headers, strict=True)]


class Counted(MemoryStore):
    """Knows how many lanes went away and came back."""

    kept = fetched = 0

    def keep(self, *args: Any) -> Any:
        made = super().keep(*args)
        self.kept += len(made)
        return made

    def fetch(self, *args: Any) -> Any:
        self.fetched += 1
        return super().fetch(*args)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Callable[..., DirectoryStore]]:
    """A handle on the folder of that name each time it is called, as after a restart."""
    handles: list[DirectoryStore] = []

    def opened(name: str = "state") -> DirectoryStore:
        handles.append(DirectoryStore(tmp_path / name))
        return handles[-1]

    yield opened
    for handle in handles:
        handle.close()


def go(world: Any, events: list[Any], store: Any = None, step: int = 7, tell: Any = None) -> Any:
    store, sink = store or Counted(), MemorySink()
    source = MemorySource(events, [TOPIC], step)
    # Time stands still: which batches there are must not depend on how fast the machine is.
    more: dict[str, Any] = {"clock": lambda: 0.0} | ({} if tell is None else {"tell": tell})
    while True:
        try:
            report = run(source, world.pipeline, world.codec, sink, store, [], world.config, **more)
            return report, sink, store
        except Crash:
            source.seek((TOPIC, 0), 0)


def said(sink: Any) -> dict[str, list[Any]]:
    """The answers of each lane, in order. In which order lanes are asked is nobody's promise."""
    lanes: dict[str, list[Any]] = {}
    for record in sink.records["answers"]:
        lanes.setdefault(json.loads(record.value)["lane"], []).append((record.key, record.value))
    return lanes


@pytest.mark.parametrize("live", [1, 3, 11])
def test_answers_and_states_are_those_of_lanes_that_stayed(make_world: Any, live: int) -> None:
    plain = make_world(batch=batch(0))
    events = of_tenants(plain.queries(240), 20)
    expected, sink, _ = go(plain, events)
    report, bounded, store = go(make_world(batch=batch(live)), events)
    assert said(bounded) == said(sink)
    assert report.lanes == expected.lanes and len(report.lanes) == 20
    assert store.fetched > 5, "lanes came back"


def test_no_more_than_so_many_are_in_memory(make_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream.resting import Resting

    seen: list[int] = []
    fetch = Resting.fetch

    def counted(self: Any, owned: Any, lane: Any) -> Any:
        session = fetch(self, owned, lane)
        seen.append(sum(one.learned is not None for one in {id(o): o for o in owned.lanes.values()}.values()))
        return session

    monkeypatch.setattr(Resting, "fetch", counted)
    world = make_world(batch=batch(3))
    lanes: list[int] = []
    go(world, of_tenants(world.queries(240), 40), tell=lambda e: lanes.append(len(getattr(e, "lanes", ()))))
    assert max(seen) == 3
    # Queries that wait have a lane, too, without what it has learned.
    assert max(lanes) <= 40


@pytest.mark.parametrize("place", ["memory", "directory"])
@pytest.mark.parametrize("every", [3, 29, 57])
def test_crashes_are_invisible(make_world: Any, folder: Any, place: str, every: int) -> None:
    plain = make_world(batch=batch(0))
    events = of_tenants(plain.queries(240), 12)
    expected, sink, _ = go(plain, events)
    world = make_world(batch=batch(2))
    store: Any = Counted() if place == "memory" else folder()
    crashing: list[Any] = []
    for number, event in enumerate(events):
        crashing += [event, Crash()] if number % every == every - 1 else [event]
    report, crashed, _ = go(world, crashing, store)
    distinct: dict[Any, set[Any]] = {}
    for key, value in (pair for pairs in said(crashed).values() for pair in pairs):
        distinct.setdefault(key, set()).add(value)
    assert {key: {value} for pairs in said(sink).values() for key, value in pairs} == distinct
    assert report.lanes == expected.lanes


def test_a_restart_goes_on_with_what_was_put_away_whatever_the_bound_is_then(
    make_world: Any, folder: Any
) -> None:
    plain = make_world(batch=batch(0))
    events = of_tenants(plain.queries(200), 12)
    lives = [2, 0, 5, 0, 1]
    for number, live in enumerate(lives, 1):
        # One that ends answers all that waits: so does the run that it is held against.
        store = folder("bounded")
        report, sink, _ = go(make_world(batch=batch(live)), events[: 40 * number], store)
        whole, other, _ = go(plain, events[: 40 * number], folder("plain"))
        assert said(sink) == said(other) and report.lanes == whole.lanes


def test_records_that_nobody_needs_are_erased_and_no_name_is_in_a_path(
    make_world: Any, tmp_path: Path, folder: Any
) -> None:
    world = make_world(batch=batch(2))
    store = folder()
    go(world, of_tenants(world.queries(240), 12), store)
    files = [path for path in (tmp_path / "state").glob("*/lanes/*/*") if path.is_file()]
    checkpoint = store.load((TOPIC, 0))
    assert checkpoint is not None and not checkpoint.lanes and len(checkpoint.resting) == 12
    assert {one.record for one in checkpoint.resting} <= {path.name for path in files}
    assert len(files) <= 2 * 12, "those of the two newest checkpoints"
    everything = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert not [name for name in everything if "etc" in name or "ä" in name]
    for path in files:
        assert path.name == hashlib.sha256(path.read_bytes()[40:]).hexdigest()


@pytest.mark.parametrize("harm", ["gone", "flipped", "another"])
def test_a_record_that_is_not_what_its_checkpoint_names_is_refused(
    make_world: Any, tmp_path: Path, folder: Any, harm: str
) -> None:
    world = make_world(batch=batch(2))
    events = of_tenants(world.queries(240), 12)
    go(world, events[:160], folder())
    files = sorted(path for path in (tmp_path / "state").glob("*/lanes/*/*") if path.is_file())
    for path in files:
        if harm == "gone":
            path.unlink()
        elif harm == "flipped":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(bytes(content))
    if harm == "another":
        blobs = [path.read_bytes() for path in files]
        for path, blob in zip(files, [*blobs[1:], blobs[0]], strict=True):
            path.write_bytes(blob)
    words = {"gone": "is gone", "flipped": "is damaged", "another": "is another one"}[harm]
    with pytest.raises(ArtifactError, match=words) as refused:
        go(world, events, folder())
    assert "\n" not in str(refused.value)
    anew = make_world(batch=batch(2), state={"every_batches": 3, "accept_loss": True})
    report, _, _ = go(anew, events, folder())
    assert len(report.lanes) == 12, "on request they begin anew, and go on where they were in the log"


def test_a_lane_that_is_away_obeys_what_was_said_of_all_before_its_next_answer(make_world: Any) -> None:
    """Eager where it is named, late where all are meant: no byte of an answer tells the two apart."""
    plain = make_world(batch=batch(0), checkpoints={"keep": 3, "every_batches": 2})
    events = of_tenants(plain.queries(240), 12)
    orders = {
        60: command("reset", "ann"), 90: command("freeze", "ann", tenant="tenant-0"),
        120: command("checkpoint", "ann"), 150: command("rollback", "ann", lane="0:vector:acme:image"),
        180: command("unfreeze", "ann"), 181: command("w", "ann", weight=0.5),
    }  # fmt: skip
    control: list[Any] = []
    for number, event in enumerate(events):
        if number in orders:
            control.append(Record(replace(event.at, topic="qshift.control", offset=sum(
                n < number for n in orders)), orders[number]))  # fmt: skip
        control.append(event)
    _, sink, _ = go(plain, control, step=1)
    bounded = make_world(batch=batch(2), checkpoints={"keep": 3, "every_batches": 2})
    _, other, store = go(bounded, control, step=1)
    assert said(other) == said(sink)
    assert store.fetched > 5

    def acknowledged(one: Any) -> dict[Any, Any]:
        return {record.key: record.value for record in one.records["audit"]}

    ours, theirs = acknowledged(other), acknowledged(sink)
    lanes = {key: value for key, value in theirs.items() if key in ours}
    assert {key: ours[key] for key in lanes} == lanes, "what was acknowledged was acknowledged alike"
    named = [key for key in theirs if b"/2/" in key or b"qshift.control/0/1/" in key]
    assert named and all(key in ours for key in named if b"qshift.control/0/1/" in key)


def test_strangers_whose_queries_are_refused_leave_nothing_in_memory(make_world: Any) -> None:
    world = make_world(batch=batch(2))
    records = [replace(one, value=b'{"vector": [1]}') for one in of_tenants(world.queries(60), 60)]
    seen: list[int] = []
    report, _, _ = go(world, records, tell=lambda e: seen.append(len(getattr(e, "lanes", ()))))
    assert report.dead_letters == 60 and not report.lanes and max(seen, default=0) <= 1


def test_the_bound_by_default_and_where_there_is_none() -> None:
    def most(**sections: Any) -> int:
        return most_lanes(Config.model_validate(sections))

    assert most() == 0 == most(batch={"live_lanes": 7})
    assert most(batch={"per_tenant_lanes": True}) == LIVE_LANES
    assert most(batch={"per_tenant_lanes": True, "live_lanes": 7}) == 7
    assert most(batch={"per_tenant_lanes": True, "live_lanes": 0}) == 0
    assert most(batch={"per_tenant_lanes": True}, labels={"steer": True}) == 0
    with pytest.raises(ValueError, match="so that none may be put away"):
        Config.model_validate({"batch": {"live_lanes": 7}, "labels": {"steer": True}})


def test_the_bound_is_no_part_of_what_a_state_is_made_by() -> None:
    plain, bounded = (Config.model_validate({"batch": {"live_lanes": n}}) for n in (None, 3))
    assert plain.decisions() == bounded.decisions()
    assert Config().decisions()["batch"] == OF_OLD
