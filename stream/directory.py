"""A state store in a folder of one machine: two checkpoint files and one journal per partition.

    <topic>-<partition>/checkpoint-<generation>-<slot>   slot = seq mod 2, so a bad write never costs both
    <topic>-<partition>/journal.jsonl               one line per batch: 16 hex digits of sha256, space, JSON
    <topic>-<partition>/lanes/<2 digits>/<sha256>   one lane's state, where lanes are kept apart by tenant

Files are written beside their target, synced and renamed; journal lines are appended and synced.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO, FileIO
from pathlib import Path
from urllib.parse import quote

from core.checkpoints import Checkpoint, JournalEntry, LaneRecord, LaneState
from core.errors import ArtifactError, ConfigError, DeliveryError
from core.readers.places import bytes_of, shown
from core.records import Partition
from stream.contradictions import REPAIR
from stream.lane_records import Outdated, recorded, state_of
from stream.states import (
    checkpoint_from_bytes,
    checkpoint_to_bytes,
    entry_from_bytes,
    entry_to_bytes,
    settled,
)

log = logging.getLogger("qshift.directory")
SLOT = re.compile(r"(checkpoint|cut)-(-?[0-9]{1,19})-[01]")
"""`cut` up to version 0.2.1: read as any other, and erased when both slots are written by us."""
PRUNE_LINES = 4096
"""The journal is rewritten when it has grown by so many lines."""


@dataclass(slots=True)
class _Held:
    """What is open and known of one partition."""

    journal: FileIO | None = None
    size: int = 0
    """Bytes of the journal that are known to be durable."""
    lines: int = 0
    """Lines in the journal that the last rewrite did not look at."""
    covered: list[dict[str, int]] = field(default_factory=list)
    """next_seq by lane of the two newest checkpoints saved here, older one first."""
    outdated: Outdated | None = None
    """Records of lanes; None until one is written."""


class DirectoryStore:
    """Checkpoints and journal under one folder, for one writer.

    Args:
        folder: made if it is not there.
        prune_lines: growth of a journal after which a save rewrites it.
    """

    def __init__(self, folder: Path, prune_lines: int = PRUNE_LINES) -> None:
        self._folder, self._prune_lines = folder, prune_lines
        self._held: dict[Partition, _Held] = {}

    @property
    def place(self) -> str:
        return f"the folder {self._folder}"

    def check(self) -> None:
        """Raises ConfigError where the folder cannot be written to: said before a query is answered."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / "can-be-written", b"")
            (self._folder / "can-be-written").unlink()
        except OSError as error:
            raise ConfigError(
                f"the state cannot be written to {shown(self._folder)}: {error.strerror}; name another "
                "state.directory, or make room there"
            ) from error

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes one slot; then forgets what no checkpoint needs any more.

        Raises:
            DeliveryError: the disk did not take it.
        """
        partition = (checkpoint.topic, checkpoint.partition)
        home, held = self._home(partition), self._held.setdefault(partition, _Held())
        blob = checkpoint_to_bytes(checkpoint)
        try:
            home.mkdir(parents=True, exist_ok=True)
            write_whole(home / f"checkpoint-{checkpoint.generation}-{checkpoint.seq % 2}", blob)
        except OSError as error:
            raise DeliveryError(
                f"the checkpoint was not written to {home}: {error.strerror}; is there space?"
            ) from error
        held.covered = [*held.covered, checkpoint.covered][-2:]
        for record in held.outdated.saved(checkpoint) if held.outdated else ():
            self._lane(partition, record).unlink(missing_ok=True)
        if len(held.covered) < 2:
            return
        # Both slots are ours and whole now: older generations and journal lines below them are not needed.
        for path, generation in self._slots(partition):
            if generation < checkpoint.generation or path.name.startswith("cut"):
                path.unlink(missing_ok=True)
        if held.lines >= self._prune_lines:
            try:
                self._prune(partition, held)
            except (OSError, ArtifactError) as error:
                log.warning("the journal was not pruned", extra={"home": str(home), "error": str(error)})

    def load(self, partition: Partition) -> Checkpoint | None:
        self._held.setdefault(partition, _Held()).outdated = None
        paths = [path for path, _ in self._slots(partition)]
        whole: list[Checkpoint] = []
        for path in paths:
            try:
                checkpoint = checkpoint_from_bytes(bytes_of(path))
            except (ArtifactError, ConfigError) as error:
                log.warning("checkpoint skipped", extra={"path": str(path), "error": str(error)})
            else:
                whole.append(checkpoint)
        if paths and not whole:
            raise ArtifactError(
                f"none of the {len(paths)} checkpoints in {self._home(partition)} is whole: restore a "
                "backup, or remove the folder to start from the base model"
            )
        return max(whole, key=lambda checkpoint: (checkpoint.generation, checkpoint.seq), default=None)

    def keep(self, partition: Partition, generation: int, states: Sequence[LaneState]) -> list[LaneRecord]:
        """As promised by the protocol. Raises DeliveryError when the disk did not take them."""
        held = self._held.setdefault(partition, _Held())
        if held.outdated is None:
            held.outdated = Outdated(path.name for path in self._home(partition).glob("lanes/??/*"))
        made = [recorded(partition, generation, state) for state in states]
        for one, blob in made:
            path = self._lane(partition, one.record)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, blob)
            except OSError as error:
                raise DeliveryError(
                    f"the state of a lane was not written to {path.parent}: {error.strerror}; is there space?"
                ) from error
            held.outdated.written(one.record)
        return [one for one, _ in made]

    def fetch(self, partition: Partition, record: LaneRecord) -> LaneState:
        """As promised by the protocol."""
        path = self._lane(partition, record.record)
        try:
            blob = bytes_of(path) if os.path.lexists(path) else None
        except ConfigError as error:
            raise ArtifactError(f"{error}: it is the state of lane {record.lane!r}, restore it") from error
        return state_of(partition, record, blob, self.place)

    def journal(self, entry: JournalEntry) -> None:
        """Appends one line and waits for the disk.

        Raises:
            DeliveryError: the disk did not take it.
        """
        partition = (entry.topic, entry.partition)
        held = self._held.setdefault(partition, _Held())
        try:
            if held.journal is None:
                self._open(partition, held)
            _append(held, entry_line(entry))
        except OSError as error:
            raise DeliveryError(
                f"the journal in {self._home(partition)} was not written: {error.strerror}; is there space?"
            ) from error

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        """As promised by the protocol. Raises ArtifactError when a line before the last is damaged."""
        return settled(self._read(partition)[0], since)

    def close(self) -> None:
        for held in self._held.values():
            _close(held)

    # -- pieces -----------------------------------------------------------------------------------------

    def _home(self, partition: Partition) -> Path:
        return self._folder / f"{quote(partition[0], safe='')}-{partition[1]}"

    def _lane(self, partition: Partition, record: str) -> Path:
        """Named by content: whatever a tenant is called, its name is in no path."""
        return self._home(partition) / "lanes" / record[:2] / record

    def _slots(self, partition: Partition) -> list[tuple[Path, int]]:
        """Files of checkpoints with their generation."""
        named = ((path, SLOT.fullmatch(path.name)) for path in sorted(self._home(partition).glob("c*-[01]")))
        return [(path, int(name[2])) for path, name in named if name]

    def _read(self, partition: Partition) -> tuple[list[JournalEntry], int]:
        """Entries, and the bytes of the file that hold them; a torn last line is left out."""
        path = self._home(partition) / "journal.jsonl"
        if not os.path.lexists(path):  # a broken link is no empty journal
            return [], 0
        try:
            lines = list(BytesIO(bytes_of(path)))  # ends lines at a line feed alone
        except ConfigError as error:
            raise ArtifactError(f"{error}: it is the journal, restore it") from error
        entries, size = [], 0
        for number, line in enumerate(lines):
            entry = line_entry(line)
            if entry is None and number == len(lines) - 1:
                log.warning("torn last line of the journal ignored", extra={"path": str(path)})
                break
            if entry is None:
                raise ArtifactError(
                    f"line {number + 1} of {len(lines)} of {path} does not match its checksum: restore the "
                    f"file; {REPAIR}"
                )
            entries.append(entry)
            size += len(line)
        return entries, size

    def _open(self, partition: Partition, held: _Held) -> None:
        """Opens the journal for appending after its last whole line."""
        home = self._home(partition)
        home.mkdir(parents=True, exist_ok=True)
        entries, held.size = self._read(partition)
        held.lines = len(entries)
        held.journal = FileIO(home / "journal.jsonl", "a")
        held.journal.truncate(held.size)
        _sync_folder(home)

    def _prune(self, partition: Partition, held: _Held) -> None:
        entries, _ = self._read(partition)
        kept = settled(entries, held.covered[0])
        _close(held)
        write_whole(self._home(partition) / "journal.jsonl", b"".join(map(entry_line, kept)))
        held.lines = 0


def _append(held: _Held, line: bytes) -> None:
    """Unbuffered, so that nothing of a failed line can reach the disk later."""
    assert held.journal is not None, "opened by the caller"
    try:
        if held.journal.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(held.journal.fileno())
    except OSError:
        # What was not promised must not be found later: its boundary may be drawn elsewhere by then.
        with suppress(OSError):
            held.journal.truncate(held.size)
        _close(held)
        raise
    held.size += len(line)
    held.lines += 1


def entry_line(entry: JournalEntry) -> bytes:
    """A line of the journal."""
    text = entry_to_bytes(entry)
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


def line_entry(line: bytes) -> JournalEntry | None:
    """None where the line is not whole."""
    try:
        entry = entry_from_bytes(line[17:].removesuffix(b"\n"))
    except ArtifactError:
        return None
    return entry if entry_line(entry) == line else None


def write_whole(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, also after a loss of power."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _close(held: _Held) -> None:
    journal, held.journal = held.journal, None
    if journal is not None:
        try:
            journal.close()
        except OSError:
            log.warning("the journal did not close cleanly")
