"""The journal of a partition: which batches count, and whether each lane's follow one another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.checkpoints import JournalEntry
from core.errors import ArtifactError
from core.records import Partition, Record
from stream.history.chain import Chain
from stream.history.findings import Verdict
from stream.states import entry_from_bytes, settled

Key = tuple[str, int]
"""Lane and seq."""


class Batches:
    """The boundaries of one partition; eight bytes a query are held, and some hundred a batch.

    Args:
        whole: whether nothing can be missing before the first entry.
    """

    def __init__(self, partition: Partition, whole: bool, verdict: Verdict) -> None:
        self._at, self._whole, self._verdict = partition, whole, verdict
        self._entries: list[JournalEntry] = []
        self._rows: dict[int, NDArray[np.int64]] = {}
        self._counting: dict[Key, tuple[JournalEntry, NDArray[np.int64]]] = {}
        self._first: dict[str, dict[str, int]] = {}
        """Lane -> hash of a state -> first batch that began from it."""
        self.begins: int | None = None
        """First offset of the queries that is in any batch."""

    def read(self, records: Iterable[Record]) -> None:
        """Takes the records of the journal's partition, in order."""
        for record in records:
            try:
                entry = entry_from_bytes(record.value or b"")
            except ArtifactError as error:
                self._verdict.noticed("unreadable", f"{record.at}: {error}")
                continue
            if (entry.topic, entry.partition) == self._at:
                self._take(entry)
        self._settle()

    def _take(self, entry: JournalEntry) -> None:
        short = replace(entry, offsets=())
        self._rows[id(short)] = np.array(entry.offsets, np.int64)
        self._entries.append(short)

    def find(self, lane: str, seq: int) -> tuple[JournalEntry, NDArray[np.int64]] | None:
        """The boundary that counts, and its offsets."""
        return self._counting.get((lane, seq))

    def later(self, lane: str, seq: int, state: str) -> int | None:
        """The batch that first began from this state, where that is a later one."""
        first = self._first.get(lane, {}).get(state)
        return first if first is not None and first > seq else None

    def hold_against(self, chain: Chain) -> None:
        """Each checkpoint's lanes against the batches that follow: they began from what it holds."""
        for one in chain.accepted():
            for lane, (seq, state) in one.lanes.items():
                found = self.find(lane, seq)
                # Labels that steer are taken in between the two.
                if found is not None and found[0].state_hash != state and not found[0].label_offsets:
                    self._verdict.violated(
                        "broken-chain",
                        f"{self._place()}, lane {lane}: batch {seq} did not begin from the state in {one}",
                    )

    def _settle(self) -> None:
        for entry in settled(self._entries, {}):
            self._counting[entry.lane, entry.seq] = entry, self._rows[id(entry)]
        void = len(self._entries) - len(self._counting)
        for _ in range(void):
            self._verdict.noticed(
                "fenced-write", f"journal of {self._place()}: a boundary that does not count"
            )
        lanes: dict[str, list[int]] = {}
        for lane, seq in self._counting:
            lanes.setdefault(lane, []).append(seq)
        for lane, found in lanes.items():
            self._check(lane, sorted(found))
        self._verdict.batches += len(self._counting)
        firsts = [int(rows[0]) for _, rows in self._counting.values() if len(rows)]
        self.begins = min(firsts, default=None)

    def _check(self, lane: str, seqs: list[int]) -> None:
        expected, last = 0, -1
        if seqs[0] > 0 and not self._whole:
            self._verdict.unknown("batches that the journal no longer holds", seqs[0])
            expected = seqs[0]
        for seq in seqs:
            entry, rows = self._counting[lane, seq]
            self._first.setdefault(lane, {}).setdefault(entry.state_hash, seq)
            if seq != expected:
                self._skip(lane, f"batch {seq} follows batch {expected - 1}")
            if len(rows) and (rows[0] <= last or (np.diff(rows) <= 0).any()):
                self._skip(lane, f"batch {seq} begins at offset {rows[0]}, and {last} was answered before")
            expected, last = seq + 1, max(last, int(rows[-1]) if len(rows) else last)

    def _skip(self, lane: str, words: str) -> None:
        self._verdict.violated("skip", f"journal of {self._place()}, lane {lane}: {words}")

    def _place(self) -> str:
        return f"{self._at[0]}/{self._at[1]}"
