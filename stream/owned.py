"""One assigned partition: its lanes, and how far they are."""

from __future__ import annotations

from collections import deque

from core.checkpoints import Checkpoint, JournalEntry, LaneRecord
from core.records import Partition
from stream.contradictions import checkpoint_hash
from stream.lanes import Lane, covered


class Owned:
    """One assigned partition: its lanes, and how far they are.

    Args:
        checkpoint: the newest one, or None.
        start: the offset where reading continues, None where the log decides.
        now: seconds.
    """

    def __init__(
        self, partition: Partition, checkpoint: Checkpoint | None, start: int | None, now: float
    ) -> None:
        self.partition = partition
        self.lanes: dict[str, Lane] = {}
        self.first = self.position = start
        self.checkpoint_seq = checkpoint.seq + 1 if checkpoint else 0
        self.parent = checkpoint_hash(checkpoint) if checkpoint else ""
        self.since_checkpoint = 0
        self.checkpoint_at = now
        """Seconds, when the last checkpoint was made or loaded."""
        self.saved = checkpoint.next_offset if checkpoint else None
        self.note = ""
        """Metadata of the last commit."""
        self.journalled: int | None = None
        """Without a checkpoint: the first offset that the journal wants repeated."""
        self.states = {state.lane: state for state in checkpoint.lanes} if checkpoint else {}
        self.records: dict[str, LaneRecord] = (
            {record.lane: record for record in checkpoint.resting} if checkpoint else {}
        )
        """The newest record of each lane that has one; `recorded` says whether it is all that was learned."""
        self.planned: dict[str, deque[JournalEntry]] = {}
        self.control_offset = checkpoint.control_offset if checkpoint else 0
        """Where the commands begin that not all lanes have obeyed."""

    def recorded(self, lane: Lane) -> bool:
        """Whether a lane's record holds all that it has learned."""
        record = self.records.get(lane.name)
        return record is not None and record.next_seq == lane.next_seq

    def waiting(self) -> bool:
        """Whether there are queries or planned batches that are not answered yet."""
        lanes = any(lane.pending or lane.planned for lane in self.lanes.values())
        return lanes or bool(self.planned)

    def changed(self) -> bool:
        """Whether a checkpoint would save anything new.

        Refused records count, too: they are done with. Where nothing was read, the place in the log is not
        known, and a checkpoint at 0 would be refused once retention has removed the log's beginning.
        """
        if self.position is None:
            return False
        return bool(self.since_checkpoint) or covered(self.lanes.values(), self.position) != self.saved

    def checkpoint(
        self, identity: str, label_offsets: dict[str, int], generation: int, log_id: str
    ) -> Checkpoint:
        """The next checkpoint. Lanes not met since the restart keep the state they were saved with.

        Of a lane whose record holds all that it has learned it says no more than which one that is.
        """
        whole = [lane for lane in self.lanes.values() if lane.learned and not self.recorded(lane)]
        states = [lane.snapshot() for lane in whole] + list(self.states.values())
        resting = sorted(self.records.keys() - {state.lane for state in states})
        position = covered(self.lanes.values(), self.position or 0)
        lanes = tuple(sorted(states, key=lambda state: state.lane))
        return Checkpoint(
            *self.partition, self.checkpoint_seq, self.parent, position, lanes, identity, label_offsets,
            generation, log_id, self.control_offset, tuple(self.records[name] for name in resting),
        )  # fmt: skip

    def checkpoint_made(self, checkpoint: Checkpoint, now: float) -> None:
        """Goes on from a durable checkpoint."""
        self.checkpoint_at = now
        self.checkpoint_seq, self.parent = checkpoint.seq + 1, checkpoint_hash(checkpoint)
        self.since_checkpoint = 0
        self.saved = checkpoint.next_offset
