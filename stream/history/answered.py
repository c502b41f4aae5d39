"""What became of each query of a partition: answers and dead letters, held against the journal."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from core.errors import Refused
from core.records import Coordinates, Record
from stream.answer import Answer, decode_answer
from stream.history.batches import Batches
from stream.history.findings import Verdict

NO_GENERATION = -2
"""Of answers that do not say theirs; -1 is a group's own."""


class Answered:
    """One partition of the queries, from `start` to before `end`: 13 bytes an offset are held."""

    def __init__(self, start: int, end: int, batches: Batches, verdict: Verdict) -> None:
        self._start, self._batches, self._verdict = start, batches, verdict
        self._digest = np.zeros(end - start, np.uint64)
        self._generation = np.zeros(end - start, np.int32)
        self.done = np.zeros(end - start, bool)
        """Which offsets have an answer or a dead letter."""
        self._answered = np.zeros(end - start, bool)

    def take(self, record: Record, answer: Answer) -> None:
        """Takes one record of the answers."""
        row = answer.source.offset - self._start
        if not 0 <= row < len(self.done):
            self._verdict.unknown("answers to queries that the log no longer holds")
            return
        self._twice(record, answer.source, row)
        self.done[row] = self._answered[row] = True
        if self._batches.begins is None or answer.source.offset < self._batches.begins:
            self._verdict.unknown("answers from before the journal begins")
            return
        self._from_its_batch(answer)

    def refused(self, at: Coordinates) -> None:
        """Takes the coordinates of a dead letter."""
        row = at.offset - self._start
        if 0 <= row < len(self.done):
            self.done[row] = True

    def missing(self, until: int) -> NDArray[np.int64]:
        """Offsets from the journal's first up to before `until` of which nothing became."""
        begins = self._batches.begins
        if begins is None:
            return np.zeros(0, np.int64)
        rows = np.flatnonzero(~self.done[: max(0, until - self._start)]) + self._start
        return rows[rows >= begins]

    def _twice(self, record: Record, at: Coordinates, row: int) -> None:
        """Whether there was another answer that differs."""
        digest = np.uint64(int.from_bytes(hashlib.sha256(record.value or b"").digest()[:8], "big"))
        said = next((v for name, v in record.headers if name == "x-generation"), b"")
        generation = int(said) if said.lstrip(b"-").isdigit() else NO_GENERATION
        if not self._answered[row]:
            self._digest[row], self._generation[row] = digest, generation
            return
        self._verdict.repeated += 1
        if self._digest[row] != digest:
            if self._generation[row] == generation:
                self._verdict.violated("duplicate-different", f"{at}, again at {record.at}")
            else:
                self._verdict.noticed("fenced-duplicate", f"{at}, again at {record.at}")

    def _from_its_batch(self, answer: Answer) -> None:
        at, lane, seq = answer.source, answer.lane, answer.batch_seq
        found = self._batches.find(lane, seq)
        later = self._batches.later(lane, seq, answer.state)
        if found is None:
            words = f"{at}: the journal has no batch {seq} of lane {lane}"
        elif not _holds(found[1], at.offset):
            words = f"{at}: batch {seq} of lane {lane} does not hold it"
        elif found[0].state_hash == answer.state:
            return
        elif later is not None:
            self._verdict.violated(
                "time-travel", f"{at}: batch {seq} of lane {lane} has the state of batch {later}"
            )
            return
        else:
            words = f"{at}: batch {seq} of lane {lane} began from another state than its answer"
        self._verdict.violated("unseen-state", words)


def _holds(rows: NDArray[np.int64], offset: int) -> bool:
    place = int(np.searchsorted(rows, offset))
    return place < len(rows) and int(rows[place]) == offset


def read_answer(record: Record, verdict: Verdict) -> Answer | None:
    """The answer in a record; None, and noticed, where it is none."""
    try:
        return decode_answer(record.value or b"")
    except Refused as refused:
        verdict.noticed("unreadable", f"{record.at}: {refused.reason}")
        return None


def letter_source(record: Record) -> Coordinates | None:
    """Coordinates of the query that a dead letter is about; None where it does not say."""
    said = dict(record.headers)
    partition, offset = said.get("x-source-partition", b""), said.get("x-source-offset", b"")
    if not (partition.isdigit() and offset.isdigit()):
        return None
    return Coordinates(said.get("x-source-topic", b"").decode(errors="replace"), int(partition), int(offset))
