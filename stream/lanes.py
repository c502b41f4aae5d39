"""Lanes: ordered sub-streams with their own adapter state, divided into micro-batches.

A lane belongs to one partition and one modality (and one tenant, where asked for). A batch ends when it is
full, when its oldest query has waited for `linger_seconds` (longer
while more is known to be in the log), or where the journal of an earlier run says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from core.checkpoints import JournalEntry, LaneState
from core.config import BatchConfig
from core.records import Judgement, Partition
from core.types import Modality, Query, QueryBatch
from stream.session import Session

PATIENCE = 40
"""How many times longer a batch may wait while more is known to be in the log."""


class Lane:
    """One lane: what it has learned, where it is in the log, and what waits.

    Args:
        reached: whether labels were read up to given positions, or need not be waited for any longer.
    """

    def __init__(
        self, name: str, partition: Partition, session: Session,
        reached: Callable[[Mapping[str, int], bool], bool] = lambda positions, drain: True,
    ) -> None:  # fmt: skip
        self._reached = reached
        self.name = name
        self.partition = partition
        self.session = session
        self.next_seq = 0
        """First batch number that its state does not cover."""
        self.next_offset = 0
        """First offset that its state does not cover."""
        self.pending: deque[tuple[Query, float]] = deque()
        self.planned: deque[JournalEntry] = deque()

    def add(self, query: Query, now: float) -> None:
        """Queues a query, unless the lane's state already covers it."""
        if query.at.offset >= self.next_offset:
            self.pending.append((query, now))

    def take(self, judgement: Judgement) -> None:
        """Holds a label of the partition's queries for the next batch."""
        if self.session.steering is not None:
            offset = judgement.query.offset
            place = bisect_left(self.planned, offset, key=lambda entry: entry.offsets[-1])
            again = place < len(self.planned) and offset in self.planned[place].offsets
            self.session.steering.take(judgement, self.planned[place].label_offsets if again else None)

    def next_batch(
        self, now: float, config: BatchConfig, drain: bool, behind: bool = False
    ) -> tuple[QueryBatch, bool] | None:
        """Forms the next batch if one is due; the flag says whether the journal had planned it.

        While the source is `behind`, what waits is short of a poll rather than of company: the time-out is
        longer then, or a busy worker would form a small batch after every full one.
        """
        if self.planned:
            return self._planned_batch(drain)
        if not self.pending:
            return None
        patience = config.linger_seconds * (PATIENCE if behind else 1)
        due = drain or now - self.pending[0][1] >= patience
        if len(self.pending) < config.size and not due:
            return None
        rows = [self.pending.popleft()[0] for _ in range(min(config.size, len(self.pending)))]
        self.session.steer()
        return self._formed(rows), False

    def _planned_batch(self, drain: bool) -> tuple[QueryBatch, bool] | None:
        wanted, labels = self.planned[0].offsets, self.planned[0].label_offsets
        if not self.pending or (self.pending[-1][0].at.offset < wanted[-1] and not drain):
            return None
        if self.session.steering is not None and not self._reached(labels, drain):
            return None
        self.session.gallery = self.planned.popleft().gallery
        self.session.steer(labels)
        chosen, rows = set(wanted), []
        while self.pending and self.pending[0][0].at.offset <= wanted[-1]:
            query = self.pending.popleft()[0]
            if query.at.offset in chosen:
                rows.append(query)
        if rows:
            return self._formed(rows), True
        # Everything in it is refused now (limits were changed): the lane goes on behind it.
        self.next_seq, self.next_offset = self.next_seq + 1, wanted[-1] + 1
        return None

    def _formed(self, rows: list[Query]) -> QueryBatch:
        batch = QueryBatch(self.name, self.next_seq, rows[0].modality, tuple(rows))
        self.next_seq += 1
        self.next_offset = rows[-1].at.offset + 1
        return batch

    def snapshot(self) -> LaneState:
        tensors, meta = self.session.snapshot()
        return LaneState(self.name, self.next_seq, self.next_offset, tensors, meta, self.session.state_hash())

    def restore(self, state: LaneState) -> None:
        self.session.restore(state.tensors, state.meta)
        self.next_seq, self.next_offset = state.next_seq, state.next_offset


def lane_name(query: Query, per_tenant: bool) -> str:
    """`partition:modality`, with the tenant where lanes are kept apart."""
    name = f"{query.at.partition}:{query.modality}"
    return f"{name}:{query.tenant}" if per_tenant and query.tenant else name


def modality_of(name: str) -> Modality:
    """The modality in a lane's name."""
    modality: Modality = name.split(":")[1]  # type: ignore[assignment]
    return modality


def covered(lanes: Iterable[Lane], position: int) -> int:
    """First offset of a partition that a restart has to read again."""
    return min((lane.pending[0][0].at.offset for lane in lanes if lane.pending), default=position)


def plan(entries: Iterable[JournalEntry], since: Mapping[str, int]) -> dict[str, deque[JournalEntry]]:
    """Journal entries by lane, in order, from the batch on that a lane's state does not cover."""
    planned: dict[str, deque[JournalEntry]] = {}
    for entry in sorted(entries, key=lambda e: (e.lane, e.seq)):
        if entry.seq >= since.get(entry.lane, 0):
            planned.setdefault(entry.lane, deque()).append(entry)
    return planned
