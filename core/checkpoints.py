"""What is made durable: boundaries of batches, and checkpoints: what was learned, with its offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from core.records import Partition


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """The boundary of one micro-batch, made durable before its answers leave.

    `offsets` are the rows of the batch: rows of the lane that lie between them and are not named were
    refused. `label_offset` is the position of the label stream when the batch was formed; `label_offsets`
    say, by topic/partition, up to where labels have steered its answers: exactly those below, {} none.
    `gallery` is the version that answers, where it may change while the service runs; else "".

    An entry without `offsets` is no batch: there the lane obeyed the command before `control_offset`. In a
    batch's entry that is the place in the control log from which on the lane obeys.

    `learns` is False where another full batch of the lane waited and `adapt.when_behind` is "skip": the batch
    is answered, and no gradient is taken of it, whoever answers it again.
    """

    topic: str
    partition: int
    lane: str
    seq: int
    offsets: tuple[int, ...]
    state_hash: str
    label_offset: int = 0
    generation: int = 0
    gallery: str = ""
    label_offsets: Mapping[str, int] = field(default_factory=dict)
    control_offset: int = 0
    learns: bool = True


@dataclass(frozen=True, slots=True)
class KeptState:
    """What a lane had learned before batch `seq`, kept so that it can be gone back to."""

    seq: int
    state_hash: str
    tensors: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LaneState:
    """The state of one lane in a checkpoint: tensors by name and a small JSON-able dictionary.

    `control_offset` is where the commands begin that the lane has not obeyed; `kept`, oldest first, are the
    states that a command can go back to.
    """

    lane: str
    next_seq: int
    next_offset: int
    tensors: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]
    state_hash: str
    control_offset: int = 0
    kept: tuple[KeptState, ...] = ()


@dataclass(frozen=True, slots=True)
class LaneRecord:
    """What a checkpoint says of a lane whose state lies beside it, in a record of its own.

    `record` names that by its content, so that it is never another one; all else is as in `LaneState`.
    """

    lane: str
    next_seq: int
    next_offset: int
    state_hash: str
    control_offset: int
    record: str


class LaneStore(Protocol):
    """States of single lanes, for those that are not in memory."""

    def keep(self, partition: Partition, generation: int, states: Sequence[LaneState]) -> list[LaneRecord]:
        """Makes states durable, each beside what is there. Kept until two later checkpoints name them not."""

    def fetch(self, partition: Partition, record: LaneRecord) -> LaneState:
        """A state that was kept. Raises ArtifactError when it is gone or damaged."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One consistent point of a partition: all its lanes and the offset where reading continues."""

    topic: str
    partition: int
    seq: int
    parent_hash: str
    next_offset: int
    lanes: tuple[LaneState, ...]
    identity: str
    """Of base model and configuration, see `core.identity`."""
    label_offsets: Mapping[str, int] = field(default_factory=dict)
    generation: int = 0
    log_id: str = ""
    """Of the log that its offsets count in, see `Source.log_id`."""
    control_offset: int = 0
    """Where the commands begin that the partition has not dealt with."""
    resting: tuple[LaneRecord, ...] = ()
    """Lanes whose states lie beside it; none of `lanes`."""

    @property
    def heads(self) -> list[LaneState | LaneRecord]:
        """All lanes, by name."""
        both: list[LaneState | LaneRecord] = [*self.lanes, *self.resting]
        return sorted(both, key=lambda one: one.lane)

    @property
    def covered(self) -> dict[str, int]:
        """First batch of each lane that it does not cover."""
        return {one.lane: one.next_seq for one in self.heads}

    @property
    def nbytes(self) -> int:
        """Of all tensors in it."""
        return sum(array.nbytes for lane in self.lanes for array in lane.tensors.values())
