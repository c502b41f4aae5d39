"""What must not be papered over when a partition is loaded: a state that does not fit, or that is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

from core.checkpoints import Checkpoint, JournalEntry
from core.errors import ArtifactError, OffsetGoneError
from core.identity import difference
from core.protocols import Source, StateStore
from core.records import Partition

BEGUN = "begun"
REPAIR = "`qshift repair-journal` shows what can be mended, `qshift serve --accept-loss` goes on without it"
ANEW = "name another kafka.state and kafka.journal (or state.directory) to start from the base model"


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """Identity of a checkpoint: its lanes' hashes and its parent's, so that checkpoints form a chain."""
    text = "|".join(
        [checkpoint.parent_hash, *(f"{lane.lane}={lane.state_hash}" for lane in checkpoint.heads)]
    )
    return hashlib.sha256(text.encode()).hexdigest()


def note(checkpoint: Checkpoint, place: str) -> str:
    """What goes beside a committed offset: which checkpoint covers it, and (hashed) where that lies."""
    return f"{checkpoint_hash(checkpoint)[:16]}@{_short(place)}"


def check_fits(checkpoint: Checkpoint, identity: str) -> None:
    """Raises ArtifactError when a checkpoint was made by another base model or configuration."""
    differs = difference(checkpoint.identity, identity)
    if differs:
        raise ArtifactError(
            f"the saved state of {checkpoint.topic}/{checkpoint.partition} was made {differs}: go back to "
            f"that, or {ANEW}"
        )


def check_same_log(checkpoint: Checkpoint, log_id: str) -> None:
    """Raises ArtifactError when a checkpoint counts in another log of the same name."""
    if checkpoint.log_id and log_id and checkpoint.log_id != log_id:
        raise ArtifactError(
            f"the topic {checkpoint.topic} was made anew since its state was saved: state and journal count "
            f"in the old one; {ANEW}"
        )


def saved(
    source: Source, store: StateStore, partition: Partition
) -> tuple[Checkpoint | None, tuple[int, str] | None]:
    """The newest checkpoint; without one also what the group remembers.

    Who had the partition before may have saved since we looked, and may have it again: what the group
    remembers is durable, so a checkpoint that it names is there on a second look, or gone.
    """
    checkpoint, committed = store.load(partition), None
    if checkpoint is None:
        committed = source.committed(partition)
        if committed is not None and _names_checkpoint(committed[1], store.place):
            checkpoint = store.load(partition)
    return checkpoint, committed


def check_never_saved(partition: Partition, committed: tuple[int, str] | None, place: str) -> None:
    """Raises ArtifactError when the group remembers a checkpoint in a place that holds none.

    Another place is a wish, not an accident: whoever names a new one starts from the base model where the
    group stands.
    """
    if committed is not None and _names_checkpoint(committed[1], place):
        raise ArtifactError(
            f"the state of {_name(partition)} is gone: the group has committed offset {committed[0]} with a "
            f"checkpoint in {place}, which holds none now: restore it, or {ANEW}"
        )


def begun(place: str) -> str:
    """What goes beside the offset until the first checkpoint: that batches were journalled there."""
    return f"{BEGUN}@{_short(place)}"


def check_journal(
    partition: Partition, entries: Sequence[JournalEntry], committed: tuple[int | None, str], place: str
) -> None:
    """Without a checkpoint: raises ArtifactError when the group remembers a journal that is empty now.

    Args:
        committed: where the group stands, and what is written beside that.
    """
    if not entries and committed[1] == begun(place):
        raise ArtifactError(
            f"the journal of {_name(partition)} is gone: the group remembers that batches from offset "
            f"{committed[0]} on were answered, before a first checkpoint in {place}: restore it, or {ANEW}"
        )


def check_plan(
    partition: Partition, lane: str, entries: Sequence[JournalEntry], next_seq: int, next_offset: int
) -> None:
    """Raises ArtifactError where the batches to repeat do not follow each other.

    Args:
        entries: of one lane, by seq, from `next_seq` on.
        next_seq, next_offset: where the lane's state ends.
    """
    for number, entry in enumerate(entries, next_seq):
        if entry.seq != number:
            raise ArtifactError(
                f"the journal of {_name(partition)} has no batch {number} of lane {lane}, and goes on with "
                f"{entry.seq}: {REPAIR}"
            )
        if not entry.offsets and entry.control_offset:  # where a command was obeyed
            continue
        if not entry.offsets or entry.offsets[0] < next_offset or not _ascending(entry.offsets):
            raise ArtifactError(
                f"the journal of {_name(partition)} has a batch {number} of lane {lane} that cannot be: its "
                f"offsets are not those behind {next_offset - 1}: {REPAIR}"
            )
        next_offset = entry.offsets[-1] + 1


def beyond(partition: Partition, entry: JournalEntry, error: OffsetGoneError) -> ArtifactError:
    """What is wrong where a batch to repeat has queries that the log does not have."""
    return ArtifactError(
        f"the journal of {_name(partition)} has a batch {entry.seq} of lane {entry.lane} with the query "
        f"{entry.offsets[-1]}, which its log does not have ({error}): {REPAIR}"
    )


def _ascending(offsets: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(offsets))


def check_complete(partition: Partition, entries: Sequence[JournalEntry], place: str) -> None:
    """Without a checkpoint: raises ArtifactError when the journal lacks the beginning of a lane."""
    first: dict[str, int] = {}
    for entry in entries:
        first[entry.lane] = min(entry.seq, first.get(entry.lane, entry.seq))
    for lane, seq in first.items():
        if seq > 0:
            raise ArtifactError(
                f"the state of {_name(partition)} is gone: the journal of lane {lane} begins at batch {seq}, "
                f"and {place} holds no checkpoint of what came before: restore it, or {ANEW}"
            )


def check_reached(partition: Partition, journalled: int | None, start: int, place: str) -> None:
    """Raises ArtifactError when reading begins behind the first query that the journal wants repeated."""
    if journalled is not None and start > journalled:
        raise ArtifactError(
            f"the state of {_name(partition)} is gone: the journal has batches from offset {journalled} on, "
            f"{place} holds no checkpoint that covers them, and reading goes on at {start}: restore it, or "
            f"{ANEW}"
        )


def _names_checkpoint(beside: str, place: str) -> bool:
    return beside.endswith(f"@{_short(place)}") and beside != begun(place)


def _short(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def _name(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
