"""A damaged journal: what stands, what is rebuilt, what is given up; and a service that goes on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import ArtifactError
from stream.directory import DirectoryStore
from stream.memory import MemorySink, MemorySource
from stream.mending import mended
from stream.repair import repair
from stream.runner import run
from stream.states import entry_to_bytes

PLACE = ("qshift.queries", 0)


def batch(seq: int, lane: str = "0:vector", generation: int = 1) -> JournalEntry:
    """Every other offset is of another lane."""
    return JournalEntry(
        *PLACE, lane, seq, tuple(range(8 * seq, 8 * seq + 8, 2)), f"h{seq}", generation=generation
    )


def records(*entries: JournalEntry | bytes | None) -> list[tuple[str, bytes | None]]:
    return [
        (f"journal/0/{at}", entry_to_bytes(one) if isinstance(one, JournalEntry) else one)
        for at, one in enumerate(entries)
    ]


def test_what_is_whole_stays() -> None:
    entries = [batch(0), batch(0, "0:text"), batch(1), batch(2, generation=2)]
    found = mended(PLACE, records(*entries), 1000)
    assert (found.entries, found.notes) == (entries, [])


def test_what_cannot_be_read_is_named_and_taken_out() -> None:
    other = replace(batch(0), partition=3)
    found = mended(PLACE, records(batch(0), b"{}", None, other, batch(1)), 1000)
    assert found.entries == [batch(0), batch(1)]
    assert [note.split(":")[0] for note in found.notes] == ["journal/0/1", "journal/0/2", "journal/0/3"]


def test_one_missing_batch_is_rebuilt_to_take_the_same_queries() -> None:
    found = mended(PLACE, records(batch(0), batch(1), b"damaged", batch(3), batch(4)), 1000)
    assert [entry.seq for entry in found.entries] == [0, 1, 2, 3, 4]
    rebuilt, lost = found.entries[2], batch(2)
    mine = set(range(0, 1000, 2))  # offsets of the lane
    assert [at for at in rebuilt.offsets if at in mine] == list(lost.offsets)
    assert "lane 0:vector: batch 2 is missing: rebuilt" in found.notes[1]


@pytest.mark.parametrize(
    ("behind", "why"),
    [
        ((batch(4), batch(5)), "batch 4 does not follow"),
        ((replace(batch(2), offsets=(1, 2)), batch(3)), "batch 2 does not follow"),
        (
            (replace(batch(2), offsets=(16, 10**9)), batch(3)),
            "batch 2 has the query 1000000000, its log ends at 1000",
        ),
        ((replace(batch(9), seq=10**6),), "batch 1000000 does not follow"),
    ],
)
def test_what_nobody_can_place_is_given_up_with_what_follows(
    behind: tuple[JournalEntry, ...], why: str
) -> None:
    found = mended(PLACE, records(batch(0), batch(1), *behind, batch(0, "0:text")), 1000)
    assert found.entries == [batch(0), batch(1), batch(0, "0:text")]
    assert why in found.notes[0] and "are given up" in found.notes[0]


def test_a_service_goes_on_from_a_mended_folder(make_world: Any, tmp_path: Path, answers_of: Any) -> None:
    """One line of six is damaged: the answers are those of the run before, to the byte."""
    world = make_world(state={"every_batches": 100})
    source = MemorySource(world.queries(96), [PLACE[0]], 7)

    def go(folder: Path, source: MemorySource) -> MemorySink:
        store, sink = DirectoryStore(folder), MemorySink()
        run(source, world.pipeline, world.codec, sink, store, [], world.config)
        store.close()
        return sink

    whole = go(tmp_path / "state", source)
    home = tmp_path / "state" / "qshift.queries-0"
    for path in home.glob("checkpoint-*"):
        path.unlink()
    lines = (home / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"offsets", b"0ffsets")
    (home / "journal.jsonl").write_bytes(b"".join(lines))
    again = MemorySource(world.queries(96), [PLACE[0]], 7)
    with pytest.raises(ArtifactError, match=r"line 3 of 6 .*repair-journal"):
        go(tmp_path / "state", again)
    config = Config.model_validate({"state": {"store": "directory", "directory": str(tmp_path / "state")}})
    (found,) = repair(config, write=False)
    assert len(found.notes) == 2 and "journal.jsonl:3: " in found.notes[0]
    assert (home / "journal.jsonl").read_bytes() == b"".join(lines)
    assert len(next(repair(config, write=True)).entries) == 6
    assert next(repair(config, write=False)).notes == []
    assert answers_of(go(tmp_path / "state", MemorySource(world.queries(96), [PLACE[0]], 7))) == answers_of(
        whole
    )
