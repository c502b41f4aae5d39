"""Batch boundaries of a live run, from a file of JSON lines."""

from __future__ import annotations

from pathlib import Path

from core.checkpoints import JournalEntry
from core.errors import ArtifactError, ConfigError
from core.readers.lines import lines
from core.readers.places import shown
from stream.states import entry_from_bytes, settled


def read_journal(path: Path) -> list[JournalEntry]:
    """Entries in the order written. Raises ConfigError, with the line that is none."""
    found = []
    for number, line in lines(path):
        try:
            found.append(entry_from_bytes(line))
        except ArtifactError as error:
            raise ConfigError(f"{shown(path)}, line {number}: {error}") from error
    return found


def journal_of(path: Path, topic: str) -> list[JournalEntry]:
    """The entries that count for records of one topic's partition 0, which own queries are.

    Raises:
        ConfigError: a line that is no entry, or none of the topic.
    """
    entries = read_journal(path)
    own = [entry for entry in entries if (entry.topic, entry.partition) == (topic, 0)]
    if not own:
        topics = sorted({f"{entry.topic}/{entry.partition}" for entry in entries})
        raise ConfigError(
            f"{shown(path)} has no boundaries for {topic}/0, where own queries stand, but for "
            f"{shown(', '.join(topics)) or 'nothing'}: kafka.queries of a --config names their topic"
        )
    return settled(own, {})
