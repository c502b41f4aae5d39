"""What must not be papered over when a partition is loaded: a state that does not fit, or that is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from core.checkpoints import Checkpoint, JournalEntry
from core.errors import ArtifactError
from core.identity import difference
from core.records import Partition

ANEW = "name another kafka.state and kafka.journal (or state.directory) to start from the base model"


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """Identity of a checkpoint: its lanes' hashes and its parent's, so that checkpoints form a chain."""
    text = "|".join(
        [checkpoint.parent_hash, *(f"{lane.lane}={lane.state_hash}" for lane in checkpoint.lanes)]
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


def check_never_saved(partition: Partition, committed: tuple[int, str] | None, place: str) -> None:
    """Raises ArtifactError when the group remembers a checkpoint in a place that holds none.

    Another place is a wish, not an accident: whoever names a new one starts from the base model where the
    group stands.
    """
    if committed is not None and committed[1].endswith(f"@{_short(place)}"):
        raise ArtifactError(
            f"the state of {_name(partition)} is gone: the group has committed offset {committed[0]} with a "
            f"checkpoint in {place}, which holds none now: restore it, or {ANEW}"
        )


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


def _short(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def _name(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
