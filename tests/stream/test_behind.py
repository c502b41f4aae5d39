"""`adapt.when_behind = "skip"`: no full batch waits for gradients of the one before it; replays agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import ArtifactError
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run
from stream.states import entry_from_bytes, entry_to_bytes

TOPIC = "qshift.queries"
CROWD, TRICKLE = 40, 7
"""Records of a poll: two batches of 16 wait at once, or never one behind another."""


def go(world: Any, step: int, store: MemoryStore, observers: Any = ()) -> tuple[Any, MemorySink]:
    sink = MemorySink()
    source = MemorySource(world.queries(120), [TOPIC], step=step)
    return run(source, world.pipeline, world.codec, sink, store, observers, world.config), sink


def entries(store: MemoryStore) -> list[JournalEntry]:
    return store.journalled((TOPIC, 0), {})


def test_no_gradient_is_taken_while_a_full_batch_waits(make_world: Callable[..., Any], watch: Any) -> None:
    world = make_world(adapt={"method": "rest", "when_behind": "skip"})
    store = MemoryStore()
    go(world, CROWD, store, [watch])
    learned = [outcome.step.updated for outcome in watch.outcomes]
    assert learned == [False, True, False, False, True, False, True, True]  # of 40, 48, 40 and the last 8
    skipped = [outcome for outcome in watch.outcomes if not outcome.step.updated]
    assert {(one.step.reason, one.step.backwards, one.forwards) for one in skipped} == {("behind", 0, 2)}
    assert [entry.learns for entry in entries(store)] == learned


@pytest.mark.parametrize("adapt", [{"when_behind": "learn"}, {"when_behind": "skip", "answer_from": "after"}])
def test_others_learn_however_many_wait(make_world: Callable[..., Any], watch: Any, adapt: Any) -> None:
    world = make_world(adapt={"method": "rest", **adapt})
    store = MemoryStore()
    go(world, CROWD, store, [watch])
    assert all(outcome.step.updated for outcome in watch.outcomes)
    assert all(entry.learns for entry in entries(store))


def test_what_was_skipped_is_skipped_again_whoever_waits_then(
    make_world: Callable[..., Any], answers_of: Callable[[MemorySink], dict[bytes, set[bytes]]]
) -> None:
    world = make_world(adapt={"method": "rest", "when_behind": "skip"})
    first = MemoryStore()
    expected, sink = go(world, CROWD, first)
    planned = MemoryStore()
    for entry in entries(first):
        planned.journal(entry_from_bytes(entry_to_bytes(entry)))
    again, other = go(world, TRICKLE, planned)
    assert again.state_sha256 == expected.state_sha256
    assert answers_of(other) == answers_of(sink)
    unplanned, _ = go(world, TRICKLE, MemoryStore())  # nobody waited: all is learned from
    assert unplanned.state_sha256 != expected.state_sha256


def test_only_a_skipped_batch_is_written_otherwise(make_world: Callable[..., Any]) -> None:
    store = MemoryStore()
    go(make_world(adapt={"method": "rest", "when_behind": "skip"}), CROWD, store)
    for entry in entries(store):
        assert (b"learns" in entry_to_bytes(entry)) == (not entry.learns)
        assert entry_from_bytes(entry_to_bytes(entry)) == entry
    value = entry_to_bytes(entries(store)[0])
    for wrong in (b"true", b"0", b'"no"'):
        with pytest.raises(ArtifactError, match="not a journal entry"):
            entry_from_bytes(value.replace(b'"learns":false', b'"learns":' + wrong))


def test_a_running_state_may_change_it() -> None:
    """What the journal says decides; a state and its identity do not depend on the setting."""
    plain, skipping = (
        Config.model_validate({"adapt": {"method": "rest", "when_behind": choice}})
        for choice in ("learn", "skip")
    )
    assert plain.decisions() == skipping.decisions()
