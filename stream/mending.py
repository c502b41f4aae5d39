"""What of a damaged journal can be used: which entries stand, which are rebuilt, which are given up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby

from core.checkpoints import JournalEntry
from core.errors import ArtifactError
from core.records import Partition
from stream.states import entry_from_bytes, settled


@dataclass(slots=True)
class Mended:
    """Of one partition of the queries: its entries in order, and what was said of the others."""

    partition: Partition
    entries: list[JournalEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def mended(partition: Partition, records: Iterable[tuple[str, bytes | None]], end: int | None) -> Mended:
    """Reads a journal and keeps of each lane what follows without a gap.

    A single missing batch is rebuilt: its queries are those of its lane between its neighbours, so that all
    offsets between them name it exactly (a lane passes over offsets that are none of its own). Its gallery
    and the labels that steered it are taken to be those of the batch behind it. Where two or more are missing
    nobody knows where one ended; they and what follows are given up: their queries come in new batches.

    Args:
        records: where each lies, in words, and its bytes, in the order written.
        end: of the log of the queries; None where it is not known.
    """
    made, read = Mended(partition), []
    for where, value in records:
        try:
            entry = entry_from_bytes(value or b"")
        except ArtifactError as error:
            made.notes.append(f"{where}: {error}: taken out")
            continue
        if (entry.topic, entry.partition) != partition:
            made.notes.append(
                f"{where}: of {entry.topic}/{entry.partition}, not of this partition: taken out"
            )
        else:
            read.append(entry)
    counted = {id(entry): number for number, entry in enumerate(read)}
    order: list[tuple[float, JournalEntry]] = []
    by_lane = sorted(settled(read, {}), key=lambda entry: (entry.lane, entry.seq))
    for lane, batches in groupby(by_lane, lambda entry: entry.lane):
        kept = _in_a_row(lane, list(batches), end, made.notes)
        for entry, behind in zip(kept, [*kept[1:], None], strict=True):
            place: float | None = counted.get(id(entry))
            # What is rebuilt stands before the batch behind it.
            order.append((counted[id(behind)] - 0.5 if place is None else place, entry))
    made.entries = [
        entry for _, entry in sorted(order, key=lambda pair: (pair[0], pair[1].lane, pair[1].seq))
    ]
    return made


def _in_a_row(
    lane: str, batches: list[JournalEntry], end: int | None, notes: list[str]
) -> list[JournalEntry]:
    kept: list[JournalEntry] = []
    first = 0
    for entry in batches:
        missing = entry.seq - kept[-1].seq - 1 if kept else 0
        if not entry.offsets and entry.control_offset and not missing:  # where a command was obeyed
            kept.append(entry)
            continue
        ascending = list(entry.offsets) == sorted(set(entry.offsets))
        possible = entry.offsets and ascending and entry.offsets[0] >= first + missing
        if not possible or missing > 1 or (end is not None and entry.offsets[-1] >= end):
            why = "does not follow what stands before it"
            if possible and missing <= 1:
                why = f"has the query {entry.offsets[-1]}, its log ends at {end}"
            notes.append(f"lane {lane}: batch {entry.seq} {why}: it and what follows are given up")
            break
        if missing:
            between = tuple(range(first, entry.offsets[0]))
            kept.append(replace(entry, seq=entry.seq - 1, offsets=between, state_hash=""))
            notes.append(f"lane {lane}: batch {entry.seq - 1} is missing: rebuilt from its neighbours")
        kept.append(entry)
        first = entry.offsets[-1] + 1
    return kept
