"""What must not be papered over when a partition is loaded: a state that does not fit, or that is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from core.checkpoints import Cut, JournalEntry
from core.errors import ArtifactError
from core.identity import difference
from core.types import Partition

ANEW = "name another kafka.state and kafka.journal (or state.directory) to start from the base model"


def cut_hash(cut: Cut) -> str:
    """Identity of a cut: its lanes' hashes and its parent's, so that cuts form a chain."""
    text = "|".join([cut.parent_hash, *(f"{lane.lane}={lane.state_hash}" for lane in cut.lanes)])
    return hashlib.sha256(text.encode()).hexdigest()


def note(cut: Cut, place: str) -> str:
    """What goes beside a committed offset: which cut covers it, and (hashed) where that lies."""
    return f"{cut_hash(cut)[:16]}@{_short(place)}"


def check_fits(cut: Cut, identity: str) -> None:
    """Raises ArtifactError when a cut was made by another base model or configuration."""
    differs = difference(cut.identity, identity)
    if differs:
        raise ArtifactError(
            f"the saved state of {cut.topic}/{cut.partition} was made {differs}: go back to that, or {ANEW}"
        )


def check_same_log(cut: Cut, log_id: str) -> None:
    """Raises ArtifactError when a cut counts in another log of the same name: nothing of it fits here."""
    if cut.log_id and log_id and cut.log_id != log_id:
        raise ArtifactError(
            f"the topic {cut.topic} was made anew since its state was saved: state and journal count in the "
            f"old one; {ANEW}"
        )


def check_never_saved(partition: Partition, committed: tuple[int, str] | None, place: str) -> None:
    """Raises ArtifactError when the group remembers a cut in a place that holds none.

    Another place is a wish, not an accident: whoever names a new one starts from the base model where the
    group stands.
    """
    if committed is not None and committed[1].endswith(f"@{_short(place)}"):
        raise ArtifactError(
            f"the state of {_name(partition)} is gone: the group has committed offset {committed[0]} with a "
            f"cut in {place}, which holds none now: restore it, or {ANEW}"
        )


def check_complete(partition: Partition, entries: Sequence[JournalEntry], place: str) -> None:
    """Raises ArtifactError when, without a cut, the journal does not reach back to a lane's beginning."""
    first: dict[str, int] = {}
    for entry in entries:
        first[entry.lane] = min(entry.seq, first.get(entry.lane, entry.seq))
    for lane, seq in first.items():
        if seq > 0:
            raise ArtifactError(
                f"the state of {_name(partition)} is gone: the journal of lane {lane} begins at batch {seq}, "
                f"and {place} holds no cut of what came before: restore it, or {ANEW}"
            )


def check_reached(partition: Partition, journalled: int | None, start: int, place: str) -> None:
    """Raises ArtifactError when reading begins behind the first query that the journal wants repeated."""
    if journalled is not None and start > journalled:
        raise ArtifactError(
            f"the state of {_name(partition)} is gone: the journal has batches from offset {journalled} on, "
            f"{place} holds no cut that covers them, and reading goes on at {start}: restore it, or {ANEW}"
        )


def _short(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def _name(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
