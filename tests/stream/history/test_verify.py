"""The check of the log: silent on honest histories, however crashed, and each planted defect is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.checkpoints import Checkpoint, JournalEntry
from core.config import KafkaConfig
from core.errors import ConfigError
from core.records import Coordinates, Record
from stream.chunks import split
from stream.history.verify import verify
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run
from stream.states import canonical, entry_from_bytes, entry_to_bytes

KAFKA = KafkaConfig()
COUNT = 150


class RecordedStore(MemoryStore):
    """Writes what a changelog would write, too."""

    def __init__(self) -> None:
        super().__init__()
        self.state: list[tuple[bytes, bytes]] = []
        self.entries: list[bytes] = []

    def save(self, checkpoint: Checkpoint) -> None:
        super().save(checkpoint)
        chunks, manifest = split(checkpoint, 0)
        self.state += [*chunks, manifest]

    def journal(self, entry: JournalEntry) -> None:
        super().journal(entry)
        self.entries.append(entry_to_bytes(entry))


class Topics:
    """The five topics of a service, one partition each, as lists that a test may alter."""

    def __init__(self, queries: list[Record], sink: MemorySink, store: RecordedStore) -> None:
        self.of: dict[str, list[Record]] = {
            KAFKA.queries: queries,
            KAFKA.answers: [_in(KAFKA.answers, r) for r in sink.records["answers"]],
            KAFKA.dead_letters: [_in(KAFKA.dead_letters, r) for r in sink.records["dead-letters"]],
            KAFKA.journal: [_at(KAFKA.journal, n, v) for n, v in enumerate(store.entries)],
            KAFKA.state: [_at(KAFKA.state, n, v, k) for n, (k, v) in enumerate(store.state)],
        }

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        records = self.of.get(topic)
        if records is None:
            return {}
        return {0: (records[0].at.offset, records[-1].at.offset + 1) if records else (0, 0)}

    def at_time(self, topic: str, time_ms: int) -> dict[int, int | None]:
        raise AssertionError("not asked for")

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        low, high = ranges[0]
        return [record for record in self.of[topic] if low <= record.at.offset < high]


def _at(topic: str, offset: int, value: bytes | None, key: bytes | None = None, **more: Any) -> Record:
    return Record(Coordinates(topic, 0, offset), value, key, **more)


def _in(topic: str, record: Record) -> Record:
    return replace(record, at=Coordinates(topic, 0, record.at.offset))


def history(make_world: Callable[..., Any], crashes: int = 0, seed: int = 0) -> Topics:
    """What a real engine writes about 150 queries, three of them refused, however often it dies."""
    world = make_world(state={"every_batches": 2})
    records = [replace(r, value=b"{}") if r.at.offset % 50 == 7 else r for r in world.queries(COUNT)]
    events: list[Record | Crash] = list(records)
    for place in sorted(np.random.default_rng(seed).choice(COUNT, crashes, False).tolist(), reverse=True):
        events.insert(place, Crash())
    source, sink, store = MemorySource(events, [KAFKA.queries], step=7), MemorySink(), RecordedStore()
    while True:
        try:
            run(source, world.pipeline, world.codec, sink, store, [], world.config)
            return Topics(records, sink, store)
        except Crash:
            source.seek((KAFKA.queries, 0), 0)


@pytest.fixture
def topics(make_world: Callable[..., Any]) -> Topics:
    return history(make_world)


def found(topics: Topics) -> dict[str, int]:
    verdict = verify(topics, KAFKA)
    assert verdict.status == (1 if verdict.violations else 3 if verdict.undecided else 0)
    return dict(verdict.violations)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_found_in_honest_histories(make_world: Any, seed: int) -> None:
    verdict = verify(history(make_world, crashes=seed, seed=seed), KAFKA)
    assert verdict.status == 0, verdict.document()
    assert (verdict.queries, verdict.dead_letters >= 3) == (COUNT, True)
    assert verdict.answers - verdict.repeated == COUNT - 3
    assert verdict.batches == 10 and verdict.checkpoints > 4


def test_a_lost_query(topics: Topics) -> None:
    del topics.of[KAFKA.answers][40]
    assert found(topics) == {"lost": 1}


def test_a_lost_dead_letter(topics: Topics) -> None:
    del topics.of[KAFKA.dead_letters][1]
    assert found(topics) == {"lost": 1}


def test_a_hole_in_the_log_is_no_loss(topics: Topics) -> None:
    """A transaction's marker takes an offset."""
    answer = topics.of[KAFKA.answers].pop(40)
    offset = int((answer.key or b"").rsplit(b"/", 1)[1])
    topics.of[KAFKA.queries] = [r for r in topics.of[KAFKA.queries] if r.at.offset != offset]
    assert found(topics) == {}


def test_what_no_checkpoint_covers_is_not_lost_yet(topics: Topics) -> None:
    last = topics.of[KAFKA.queries][-1]
    topics.of[KAFKA.queries].append(replace(last, at=replace(last.at, offset=last.at.offset + 1)))
    assert found(topics) == {}


def repeat(topics: Topics, generation: bytes = b"", **changed: Any) -> None:
    answers = topics.of[KAFKA.answers]
    again = answers[20] if not changed else alter(answers[20], **changed)
    headers = (("x-generation", generation),) if generation else answers[20].headers
    answers.append(replace(again, at=replace(again.at, offset=len(answers)), headers=headers))


def alter(answer: Record, **changed: Any) -> Record:
    import json

    return replace(answer, value=canonical({**json.loads(answer.value or b""), **changed}))


def test_duplicates_that_differ(topics: Topics) -> None:
    repeat(topics)
    assert found(topics) == {}
    repeat(topics, query_id="another")
    assert found(topics) == {"duplicate-different": 1}


def test_a_duplicate_of_another_generation_is_counted_apart(topics: Topics) -> None:
    repeat(topics, b"7", query_id="another")
    verdict = verify(topics, KAFKA)
    assert dict(verdict.notices) == {"fenced-duplicate": 1} and verdict.status == 0


def test_a_state_that_nobody_knows(topics: Topics) -> None:
    topics.of[KAFKA.answers][30] = alter(topics.of[KAFKA.answers][30], state="0" * 64)
    assert found(topics) == {"unseen-state": 1}


@pytest.mark.parametrize("changed", [{"batch_seq": 5000}, {"lane": "0:text"}, {"batch_seq": 5}])
def test_a_batch_that_the_journal_does_not_know(topics: Topics, changed: dict[str, Any]) -> None:
    topics.of[KAFKA.answers][30] = alter(topics.of[KAFKA.answers][30], **changed)
    assert found(topics) == {"unseen-state": 1}


def test_a_state_of_the_future(topics: Topics) -> None:
    late = entry_from_bytes(topics.of[KAFKA.journal][6].value or b"")
    topics.of[KAFKA.answers][30] = alter(topics.of[KAFKA.answers][30], state=late.state_hash)
    assert found(topics) == {"time-travel": 1}


def rewritten(topics: Topics, place: int, **changed: Any) -> Record:
    record = topics.of[KAFKA.journal][place]
    entry = replace(entry_from_bytes(record.value or b""), **changed)
    return replace(record, value=entry_to_bytes(entry))


def test_a_batch_that_is_skipped(topics: Topics) -> None:
    journal = topics.of[KAFKA.journal]
    gone = entry_from_bytes(journal[4].value or b"")
    journal[4] = replace(journal[4], value=b"no entry")
    # Its answers went with it, and it had been too small to be learned from.
    verdict = verify(topics, KAFKA)
    assert verdict.violations["skip"] == 1 and verdict.notices["unreadable"] == 1
    assert verdict.violations["unseen-state"] == len(gone.offsets)


def test_batches_that_overlap(topics: Topics) -> None:
    entries = [entry_from_bytes(r.value or b"") for r in topics.of[KAFKA.journal]]
    topics.of[KAFKA.journal][4] = rewritten(topics, 4, offsets=(entries[3].offsets[-1], *entries[4].offsets))
    assert found(topics) == {"skip": 1}


def checkpoints(topics: Topics) -> list[int]:
    return [n for n, r in enumerate(topics.of[KAFKA.state]) if (r.key or b"").endswith(b"/manifest")]


def resaved(topics: Topics, place: int, **changed: Any) -> None:
    """Alters a checkpoint where it was written."""
    from stream.chunks import join

    state = topics.of[KAFKA.state]
    end = checkpoints(topics)[place]
    held = {(r.key or b"").decode(): r.value or b"" for r in state[: end + 1]}
    checkpoint, _ = join(held, (state[end].key or b"").decode())
    chunks, manifest = split(replace(checkpoint, **changed), 0)
    for shift, (key, value) in enumerate(reversed([*chunks, manifest])):
        state[end - shift] = replace(state[end - shift], key=key, value=value)


def test_a_parent_that_is_another(topics: Topics) -> None:
    resaved(topics, 2, parent_hash="0" * 64)
    assert found(topics)["broken-chain"] >= 1 and set(found(topics)) == {"broken-chain"}


def test_a_first_checkpoint_with_a_parent(topics: Topics) -> None:
    resaved(topics, 0, parent_hash="0" * 64)
    assert found(topics)["broken-chain"] >= 1


def appended(
    topics: Topics, place: int, generation: int, state: str = "f" * 64, next_seq: int = -1, **more: Any
) -> None:
    """A second checkpoint beside the one at `place`, with another state."""
    from stream.chunks import join

    written = topics.of[KAFKA.state]
    end = checkpoints(topics)[place]
    held = {(r.key or b"").decode(): r.value or b"" for r in written[: end + 1]}
    checkpoint, _ = join(held, (written[end].key or b"").decode())
    lanes = [
        replace(one, state_hash=state, next_seq=one.next_seq if next_seq < 0 else next_seq)
        for one in checkpoint.lanes
    ]
    chunks, manifest = split(replace(checkpoint, lanes=tuple(lanes), generation=generation, **more), 0)
    for key, value in [*chunks, manifest]:
        written.append(_at(KAFKA.state, written[-1].at.offset + 1, value, key))


def test_a_fork(topics: Topics) -> None:
    appended(topics, -1, generation=0)
    assert found(topics)["fork"] == 1


def test_a_fork_further_on(topics: Topics) -> None:
    """They follow different ones; the lane stands before the same batch in both."""
    appended(topics, -1, generation=0, seq=1000)
    assert found(topics)["fork"] == 1


def test_a_checkpoint_that_was_given_up_and_arrives_is_no_fork(topics: Topics) -> None:
    """Behind the one that was made in its place, which had repeated fewer batches: both are of one line."""
    entry = entry_from_bytes(topics.of[KAFKA.journal][-1].value or b"")
    appended(topics, -1, generation=0, state=entry.state_hash, next_seq=entry.seq)
    verdict = verify(topics, KAFKA)
    assert verdict.status == 0 and dict(verdict.notices) == {"late-write": 1}, verdict.document()


def test_a_writer_that_slept_is_no_fork(topics: Topics) -> None:
    appended(topics, -1, generation=-1)
    verdict = verify(topics, KAFKA)
    assert verdict.status == 0 and verdict.notices["fenced-write"] >= 1


def test_a_batch_that_began_from_another_state_than_the_checkpoint(topics: Topics) -> None:
    entries = [entry_from_bytes(r.value or b"") for r in topics.of[KAFKA.journal]]
    for place, entry in enumerate(entries):
        if entry.seq == 4:  # checkpoints are made every two batches
            topics.of[KAFKA.journal][place] = rewritten(topics, place, state_hash="e" * 64)
    assert found(topics)["broken-chain"] == 1


def test_a_checkpoint_whose_predecessor_was_never_written(topics: Topics) -> None:
    first, second = checkpoints(topics)[1:3]
    for record in topics.of[KAFKA.state][
        first + 1 : second + 1
    ]:  # another place in the log than a checkpoint's
        topics.of[KAFKA.state][record.at.offset] = replace(record, key=b"somebody's", value=b"else")
    assert found(topics) == {"broken-chain": 1}


def test_a_torn_checkpoint_is_noticed(topics: Topics) -> None:
    end = checkpoints(topics)[0]
    topics.of[KAFKA.state][end - 1] = replace(topics.of[KAFKA.state][end - 1], value=b"torn")
    verdict = verify(topics, KAFKA)
    assert verdict.notices["torn"] == 1
    # Nothing is missing in this log, so that the next one cannot have followed another.
    assert dict(verdict.violations) == {"broken-chain": 1}


def test_what_retention_and_compaction_removed_is_said_and_not_held_against(topics: Topics) -> None:
    keep = len(topics.of[KAFKA.answers]) // 2
    stamped = [replace(r, timestamp_ms=1000 + r.at.offset) for r in topics.of[KAFKA.answers]]
    topics.of[KAFKA.answers] = stamped[keep:]
    topics.of[KAFKA.journal] = topics.of[KAFKA.journal][3:]
    topics.of[KAFKA.state] = topics.of[KAFKA.state][-4:]
    verdict = verify(topics, KAFKA)
    assert verdict.status == 3 and not verdict.violations
    said = " ".join(verdict.undecided)
    assert "retention" in said and "journal no longer holds" in said and "compaction" in said


def test_a_topic_or_partition_that_does_not_exist(topics: Topics) -> None:
    with pytest.raises(ConfigError, match="has no partition 3"):
        verify(topics, KAFKA, [3])
    del topics.of[KAFKA.journal]
    with pytest.raises(ConfigError, match="does not exist"):
        verify(topics, KAFKA)
