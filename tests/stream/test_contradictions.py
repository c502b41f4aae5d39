"""What contradicts itself stops a start with one sentence; on request what cannot be kept is given up."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from core.checkpoints import Checkpoint, JournalEntry
from core.errors import ArtifactError, OffsetGoneError
from core.records import Partition, Record
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run

TOPIC = "qshift.queries"
PLACE = (TOPIC, 0)
LANE = "0:vector"


class Ending(MemorySource):
    """A log whose end is known, as Kafka's is."""

    def __init__(self, records: list[Record], crash_after: int = 0) -> None:
        events: list[Record | Crash] = list(records)
        self._end = len(records)
        super().__init__(
            [*events[:crash_after], Crash(), *events[crash_after:]] if crash_after else events, [TOPIC], 7
        )

    def seek(self, partition: Partition, offset: int) -> None:
        if offset > self._end:
            raise OffsetGoneError(f"{partition[0]} ends at {self._end}")
        super().seek(partition, offset)


def go(world: Any, source: Ending, store: MemoryStore, **kw: Any) -> tuple[Any, MemorySink]:
    sink = MemorySink()
    return run(source, world.pipeline, world.codec, sink, store, [], world.config, **kw), sink


def journal(*entries: JournalEntry) -> MemoryStore:
    store = MemoryStore()
    for entry in entries:
        store.journal(entry)
    return store


@pytest.fixture
def done(make_world: Any) -> tuple[Any, list[JournalEntry]]:
    """A world, and the journal of a run over 96 queries: six batches."""
    world, store = make_world(), MemoryStore()
    go(world, Ending(world.queries(96)), store)
    return world, store.journalled(PLACE, {})


def test_a_journal_that_is_gone_before_the_first_checkpoint(make_world: Any) -> None:
    """Batches were answered, no checkpoint was made, and the journal is lost: the group remembers."""
    world, store = make_world(), MemoryStore()
    source = Ending(world.queries(96), crash_after=40)
    with pytest.raises(Crash):
        go(world, source, store)
    assert len(store.journalled(PLACE, {})) == 2 and store.load(PLACE) is None
    again = Ending(world.queries(96))
    again.commits = source.commits
    with pytest.raises(ArtifactError, match=r"journal of qshift\.queries/0 is gone.*from offset 0 on were"):
        go(world, again, MemoryStore())
    # Where it is there, the crash is invisible.
    again = Ending(world.queries(96))
    again.commits = source.commits
    report, _ = go(world, again, store)
    assert report.queries == 96


def test_a_start_that_repeats_does_not_forget_that_batches_were_answered(make_world: Any) -> None:
    world, store = make_world(), MemoryStore()
    source = Ending(world.queries(96), crash_after=40)
    for _ in range(2):  # the second dies before it has done anything
        with pytest.raises(Crash):
            go(world, source, store)
        commits = source.commits
        source = Ending(world.queries(96), crash_after=7)
        source.commits = commits
    source = Ending(world.queries(96))
    source.commits = commits
    with pytest.raises(ArtifactError, match="is gone"):
        go(world, source, MemoryStore())


def broken(entries: list[JournalEntry]) -> Iterable[tuple[str, list[JournalEntry]]]:
    last = entries[-1]
    yield "has no batch 3 of lane 0:vector, and goes on with 4", [*entries[:3], *entries[4:]]
    yield "has no batch 6 of lane 0:vector, and goes on with 1000", [*entries, replace(last, seq=1000)]
    far = replace(last, seq=6, offsets=(10**9,))
    yield "a batch 6 of lane 0:vector with the query 1000000000, which its log does not have", [*entries, far]
    yield "a batch 6 of lane 0:vector that cannot be", [*entries, replace(last, seq=6, offsets=(3, 4))]
    yield "a batch 6 of lane 0:vector that cannot be", [*entries, replace(last, seq=6, offsets=(97, 96))]


@pytest.mark.parametrize("case", range(5))
def test_a_journal_that_cannot_be_stops_a_start_and_is_given_up_on_request(
    make_world: Any, done: tuple[Any, list[JournalEntry]], case: int
) -> None:
    """An entry that is missing skipped its queries without a word; one far ahead was waited for, for ever."""
    world, entries = done
    words, wrong = list(broken(entries))[case]
    source = Ending(world.queries(96))
    source.commits[PLACE] = (0, "")
    with pytest.raises(ArtifactError) as refused:
        go(world, source, journal(*wrong))
    said = str(refused.value)
    assert words in said and "qshift repair-journal" in said and "\n" not in said
    goes_on(make_world, Ending(world.queries(96)), journal(*wrong), (0, ""))


def goes_on(
    make_world: Any, source: Ending, store: MemoryStore, committed: tuple[int, str], **kw: Any
) -> None:
    """With `accept_loss` every query is answered, and the next start needs it no more."""
    world = make_world(state={"every_batches": 3, "accept_loss": True})
    source.commits[PLACE] = committed
    report, sink = go(world, source, store, **kw)
    assert {record.key for record in sink.records["answers"]} >= {
        f"{TOPIC}/0/{offset}".encode() for offset in range(committed[0], 96)
    }
    strict = make_world()
    after = Ending(strict.queries(112))
    after.commits = source.commits
    again, _ = go(strict, after, store, **kw)
    assert again.queries == 16
    assert report.state_sha256 != again.state_sha256


def test_another_base_is_refused_and_given_up_on_request(make_world: Any) -> None:
    world, store = make_world(), MemoryStore()
    source = Ending(world.queries(48))
    go(world, source, store, base_version="a1b2c3")
    other = Ending(world.queries(96))
    other.commits = source.commits
    with pytest.raises(ArtifactError, match="made with another base model"):
        go(world, other, store, base_version="c4d5e6")
    goes_on(make_world, Ending(world.queries(96)), store, source.commits[PLACE], base_version="c4d5e6")


def test_a_state_that_is_gone_is_given_up_on_request(make_world: Any) -> None:
    world, store = make_world(), MemoryStore()
    source = Ending(world.queries(48))
    go(world, source, store)
    only_journal = journal(*store.journalled(PLACE, {}))
    goes_on(make_world, Ending(world.queries(96)), only_journal, source.commits[PLACE])


class SavedMeanwhile(MemoryStore):
    """Its first reader looks before the partition's last owner has saved, who then commits."""

    looked = False

    def load(self, partition: Partition) -> Checkpoint | None:
        found = super().load(partition) if self.looked else None
        self.looked = True
        return found


def test_a_state_that_was_saved_after_we_looked_is_not_gone(make_world: Any) -> None:
    """`accept_loss` would have given it up."""
    world, store = make_world(), SavedMeanwhile()
    source = Ending(world.queries(48))
    go(world, source, store)
    store.looked, again = False, Ending(world.queries(96))
    again.commits = source.commits
    report, _ = go(world, again, store)
    assert report.queries == 48


def test_what_was_given_up_stays_so_after_a_crash(make_world: Any) -> None:
    """The first thing that is saved is that a new beginning was made."""
    world, store = make_world(), MemoryStore()
    source = Ending(world.queries(48))
    go(world, source, store, base_version="a1b2c3")
    accepting = make_world(state={"every_batches": 3, "accept_loss": True})
    dying = Ending(world.queries(96), crash_after=64)
    dying.commits = source.commits
    with pytest.raises(Crash):
        go(accepting, dying, store, base_version="c4d5e6")
    strict = Ending(world.queries(96))
    strict.commits = dying.commits
    report, _ = go(world, strict, store, base_version="c4d5e6")
    assert report.queries == 48
