"""Lanes: ordered sub-streams with their own adapter state, divided into micro-batches.

A lane belongs to one partition and one modality (and one tenant, where asked for). A batch ends when it is
full, when its oldest query has waited for long enough (`stream.company`), or where the journal of an
earlier run says.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from core.checkpoints import JournalEntry, KeptState, LaneRecord, LaneState
from core.commands import Command
from core.config import BatchConfig, CheckpointConfig
from core.records import Judgement, Partition
from core.types import Modality, Query, QueryBatch
from stream.commands import Commands
from stream.company import Ahead, Company
from stream.orders import KeptStates
from stream.session import Session


class Lane:
    """One lane: what it has learned, where it is in the log, and what waits.

    Args:
        reached: whether labels were read up to given positions, or need not be waited for any longer.
        checkpoints: which states are kept.
        since: place in the control log where the lane begins: of what was said before, it does what holds on.
        fetch: brings back what the lane has learned, and notes that it was used, where lanes may be put away;
            without it the session stays.
    """

    def __init__(
        self, name: str, partition: Partition, session: Session | None,
        reached: Callable[[Mapping[str, int], bool], bool] = lambda positions, drain: True,
        checkpoints: CheckpointConfig = CheckpointConfig(), since: int = 0,
        fetch: Callable[[Lane], Session] | None = None,
    ) -> None:  # fmt: skip
        self._reached, self._every, self._since = reached, checkpoints.every_batches, since
        self.kept = KeptStates(checkpoints.keep)
        """States that a command can go back to."""
        self._obeyed = self._looked = 0
        self.name = name
        self.partition = partition
        self.learned = session
        """None while it is put away: who only looks at the lane must not have it fetched."""
        self._fetch = fetch
        self.next_seq = 0
        """First batch number that its state does not cover."""
        self.next_offset = 0
        """First offset that its state does not cover."""
        self.pending: deque[tuple[Query, float]] = deque()
        self.planned: deque[JournalEntry] = deque()
        self._company = Company()
        self.waits = float("inf")
        """Seconds until what waits becomes a batch, when last looked at."""

    @property
    def session(self) -> Session:
        """What it has learned, fetched from the store where it was put away."""
        if self._fetch is not None:
            self._fetch(self)
        assert self.learned is not None, "fetched"
        return self.learned

    @property
    def idle(self) -> bool:
        """Whether nothing waits, neither queries nor batches to repeat."""
        return not self.pending and not self.planned

    def put_away(self) -> None:
        """Forgets what is in the store."""
        self.learned = None
        self.kept.restore(())

    def add(self, query: Query, now: float, config: BatchConfig) -> None:
        """Queues a query, unless the lane's state already covers it."""
        if query.at.offset >= self.next_offset:
            self.pending.append((query, now))
            self._company.came(now, config)

    def take(self, judgement: Judgement) -> None:
        """Holds a label of the partition's queries for the next batch."""
        if self.session.steering is not None:
            offset = judgement.query.offset
            batches = [entry for entry in self.planned if entry.offsets]
            place = bisect_left(batches, offset, key=lambda entry: entry.offsets[-1])
            again = place < len(batches) and offset in batches[place].offsets
            self.session.steering.take(judgement, batches[place].label_offsets if again else None)

    @property
    def obeys(self) -> int:
        """Where the commands begin that the lane has not obeyed."""
        return max(self._obeyed, self._since)

    def obeyed(self, end: int) -> None:
        """The boundary of a command is behind the lane, and so are the commands before `end`."""
        self.next_seq += 1
        self._obeyed = max(self._obeyed, end)

    def due(self, commands: Commands) -> list[Command]:
        """Commands to obey now, in order: what held when the lane began, and what was said since."""
        if self._looked == commands.end:
            return []
        self._looked = commands.end
        held = commands.standing(self.name, self._since)
        return [one for one in held if one.at.offset >= self._obeyed] + commands.of(self.name, self.obeys)

    def keep(self) -> None:
        """Keeps what the lane has learned, to go back to it."""
        tensors, meta = self.session.snapshot()
        held = {name: np.array(array) for name, array in tensors.items()}  # the lane goes on with its own
        state = KeptState(self.next_seq, self.session.state_hash(), held, json.loads(json.dumps(meta)))
        self.kept.keep(state)

    def next_batch(
        self, now: float, config: BatchConfig, drain: bool, ahead: Ahead = Ahead.NOTHING,
        read: int | None = None,
    ) -> tuple[QueryBatch, bool] | None:  # fmt: skip
        """Forms the next batch if one is due; the flag says whether the journal had planned it.

        `ahead` is what is known to come. All of the partition before `read` was taken or refused: a planned
        batch waits for no more than that.
        """
        self.waits = float("inf")
        if self.planned:
            return self._planned_batch(drain, read or 0)
        if not self.pending:
            return None
        self.waits = self._company.until(self.pending[0][1], config, ahead) - now
        if len(self.pending) < config.size and self.waits > 0 and not drain:
            return None
        rows = [self.pending.popleft()[0] for _ in range(min(config.size, len(self.pending)))]
        # Who waits is known here alone: the journal tells whoever repeats the batch.
        self.session.learns = not (self.session.skips and len(self.pending) >= config.size)
        self.session.steer()
        return self._formed(rows), False

    def _planned_batch(self, drain: bool, read: int) -> tuple[QueryBatch, bool] | None:
        wanted, labels = self.planned[0].offsets, self.planned[0].label_offsets
        if not wanted:
            return None
        last = self.pending[-1][0].at.offset if self.pending else -1
        # What was accepted once may be refused now, the last of the batch too: nobody else will show it.
        if read <= wanted[-1] and not (self.pending and (last >= wanted[-1] or drain)):
            return None
        if self.session.steering is not None and not self._reached(labels, drain):
            return None
        entry = self.planned.popleft()
        self.session.gallery, self._obeyed = entry.gallery, max(self._obeyed, entry.control_offset)
        self.session.learns = entry.learns
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
        if self.next_seq and self.next_seq % self._every == 0:
            self.keep()
        batch = QueryBatch(self.name, self.next_seq, rows[0].modality, tuple(rows))
        self.next_seq += 1
        self.next_offset = rows[-1].at.offset + 1
        return batch

    def snapshot(self) -> LaneState:
        session = self.learned or self.session  # to be saved is not to be used
        tensors, meta = session.snapshot()
        return LaneState(
            self.name, self.next_seq, self.next_offset, tensors, meta, session.state_hash(), self.obeys,
            self.kept.states,
        )  # fmt: skip

    def restore(self, state: LaneState) -> None:
        self.stand_at(state)
        self.session.restore(state.tensors, state.meta)
        self.kept.restore(state.kept)

    def stand_at(self, state: LaneState | LaneRecord) -> None:
        """Is in the log where a state ends; what was learned is another matter."""
        self.next_seq, self.next_offset = state.next_seq, state.next_offset
        # Saved before its first boundary it has obeyed nothing, not even what held when it began.
        self._obeyed = state.control_offset if state.next_seq else 0


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
