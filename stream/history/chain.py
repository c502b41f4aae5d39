"""The checkpoints of a partition as they were written, and whether each follows from another.

The state topic is compacted, so that older checkpoints are missing. A checkpoint is held against its
predecessor only where that cannot have been another one that compaction has removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core.errors import ArtifactError
from core.records import Partition, Record
from stream.chunks import OURS, join
from stream.contradictions import checkpoint_hash
from stream.history.findings import Verdict


@dataclass(frozen=True, slots=True)
class Written:
    """One whole checkpoint; `offset` is that of its manifest."""

    offset: int
    generation: int
    seq: int
    parent: str
    hash: str
    next_offset: int
    lanes: Mapping[str, tuple[int, str]]
    """Lane -> (first batch that it does not cover, hash of the state)."""

    def __str__(self) -> str:
        return f"checkpoint {self.seq} of generation {self.generation} (offset {self.offset})"


class Chain:
    """All checkpoints of one partition, in the order of the log."""

    def __init__(self, partition: Partition, verdict: Verdict) -> None:
        self._at, self._verdict = partition, verdict
        self.written: list[Written] = []
        self._by_seq: dict[int, list[Written]] = {}
        self._states: dict[tuple[int, str, int], tuple[str, Written]] = {}
        """(generation, lane, batch) -> what the lane had learned before that, and who says so first."""
        self._holes: list[int] = []
        """Offsets before which some are missing: compaction was here, or a transaction."""

    def read(self, records: Iterable[Record]) -> None:
        """Takes the records of the state topic's partition, in order."""
        held: dict[str, bytes] = {}
        expected = 0
        for record in records:
            offset, name = record.at.offset, (record.key or b"").decode(errors="replace")
            if offset != expected:
                self._holes.append(offset)
            expected = offset + 1
            if record.value is None:
                held.pop(name, None)
            elif name.startswith(f"{self._at[0]}/{self._at[1]}/") and OURS.fullmatch(name):
                held[name] = record.value
                if name.endswith("/manifest"):
                    self._finished(offset, name, held)
        self._verdict.checkpoints += len(self.written)
        self._follow()

    def accepted(self) -> list[Written]:
        """Those that a reader may have gone on from: no newer generation has written what they cover."""
        kept: list[Written] = []
        lowest: dict[int, int] = {}
        for one in self.written:
            lowest[one.generation] = min(one.seq, lowest.get(one.generation, one.seq))
        for one in self.written:
            if not any(g > one.generation and seq <= one.seq for g, seq in lowest.items()):
                kept.append(one)
        return kept

    @property
    def covered(self) -> int:
        """First offset of the queries that no checkpoint covers; 0 where there is none."""
        newest = max(self.written, key=lambda one: (one.generation, one.seq), default=None)
        return 0 if newest is None else newest.next_offset

    def _finished(self, offset: int, name: str, held: Mapping[str, bytes]) -> None:
        try:
            found, _ = join(held, name)
        except ArtifactError as error:
            self._verdict.noticed("torn", f"{self._place()} offset {offset}: {error}")
            return
        lanes = {lane.lane: (lane.next_seq, lane.state_hash) for lane in found.heads}
        self.written.append(Written(
            offset, found.generation, found.seq, found.parent_hash, checkpoint_hash(found),
            found.next_offset, lanes,
        ))  # fmt: skip

    def _follow(self) -> None:
        newest = -1
        for one in self.written:
            if one.generation < newest:
                self._verdict.noticed(
                    "fenced-write", f"{self._place()}: {one} comes after one of generation {newest}"
                )
            else:
                self._one_parent(one)
            newest = max(newest, one.generation)
            self._one_line(one)
            self._one_successor(one)
            self._by_seq.setdefault(one.seq, []).append(one)

    def _one_line(self, one: Written) -> None:
        """A generation is one writer's, and what a lane has learned before a batch is one state."""
        forks = []
        for lane, (seq, state) in one.lanes.items():
            held, other = self._states.setdefault((one.generation, lane, seq), (state, one))
            if held != state:
                forks.append(f"{other} and {one} hold different states of lane {lane} before batch {seq}")
        if forks:
            self._verdict.violated("fork", f"{self._place()}: {forks[0]}")

    def _one_successor(self, one: Written) -> None:
        for other in self._by_seq.get(one.seq, ()):
            if other.parent != one.parent or other.lanes == one.lanes:
                continue
            words = f"{self._place()}: {one} and {other} follow the same one and differ"
            if other.generation == one.generation:
                self._verdict.noticed("late-write", words)
            elif other.generation < one.generation:  # the other way round is counted above
                self._verdict.noticed("fenced-write", words)

    def _one_parent(self, one: Written) -> None:
        known = [c for c in self._by_seq.get(one.seq - 1, ()) if c.generation <= one.generation]
        own = [c for c in known if c.generation == one.generation]
        if one.seq == 0:
            broken = bool(one.parent)
        elif any(c.hash == one.parent for c in known):
            return
        elif own or not self._hole(known[0].offset if known else -1, one.offset):
            broken = True
        else:
            self._verdict.unknown("checkpoints whose predecessor compaction has removed")
            return
        if broken:
            words = f"{one} does not follow checkpoint {one.seq - 1}" if one.seq else f"{one} follows another"
            self._verdict.violated("broken-chain", f"{self._place()}: {words}")

    def _hole(self, after: int, until: int) -> bool:
        return any(after < offset <= until for offset in self._holes)

    def _place(self) -> str:
        return f"state of {self._at[0]}/{self._at[1]}"
