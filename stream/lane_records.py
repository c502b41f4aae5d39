"""The state of one lane as a record of its own, and which records nobody needs any more.

A record is a checkpoint of one lane in the bytes of all checkpoints. It is named by what it holds: a worker
that was replaced, and does not know it yet, can write beside the records of its successor and never over
them. Only a checkpoint makes a record count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from core.checkpoints import Checkpoint, LaneRecord, LaneState
from core.errors import ArtifactError
from core.records import Partition
from stream.states import DIGEST, checkpoint_from_bytes, checkpoint_to_bytes


def recorded(partition: Partition, generation: int, state: LaneState) -> tuple[LaneRecord, bytes]:
    """The record of a state, and what a checkpoint says of it.

    Args:
        generation: of the group; two of them never share a record, so that neither erases the other's.
    """
    alone = Checkpoint(
        *partition, state.next_seq, "", state.next_offset, (state,), "", generation=generation
    )  # fmt: skip
    blob = checkpoint_to_bytes(alone)
    said = LaneRecord(
        state.lane, state.next_seq, state.next_offset, state.state_hash, state.control_offset,
        blob[DIGEST].hex(),
    )  # fmt: skip
    return said, blob


def state_of(partition: Partition, record: LaneRecord, blob: bytes | None, place: str) -> LaneState:
    """The state in a record.

    Args:
        blob: None where there is no such record.
        place: where it lies, in words.

    Raises:
        ArtifactError: it is gone, or is not what the checkpoint names.
    """
    where = f"the state of lane {record.lane!r} of {partition[0]}/{partition[1]} in {place}"
    again = "restore it, or `qshift serve --accept-loss` begins the lane anew"
    if blob is None:
        raise ArtifactError(f"{where} is gone (record {record.record[:16]}): {again}")
    try:
        (state,) = checkpoint_from_bytes(blob).lanes
    except (ArtifactError, ValueError) as error:
        raise ArtifactError(f"{where} is damaged: {error}: {again}") from error
    if blob[DIGEST].hex() != record.record or state.lane != record.lane:
        raise ArtifactError(f"{where} is another one than its checkpoint names: {again}")
    return state


class Outdated:
    """Which records of a partition neither of its two newest checkpoints names.

    Args:
        known: records that were there before.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = set(known)
        self._before: Collection[str] | None = None

    def written(self, record: str) -> None:
        """One more is there."""
        self._known.add(record)

    def saved(self, checkpoint: Checkpoint) -> list[str]:
        """A checkpoint is durable: what may be erased. The first of a run erases nothing."""
        now = {one.record for one in checkpoint.resting}
        before, self._before = self._before, now
        if before is None:
            return []
        old = sorted(self._known.difference(now, before))
        self._known.difference_update(old)
        return old
