"""A state store in memory: for replay and tests. Checkpoints go through bytes, as they do everywhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from core.checkpoints import Checkpoint, JournalEntry
from core.records import Partition
from stream.states import checkpoint_from_bytes, checkpoint_to_bytes, settled


class MemoryStore:
    """Keeps the newest checkpoint of each partition and every journal entry."""

    place = "memory"

    def __init__(self) -> None:
        self._checkpoints: dict[Partition, tuple[tuple[int, int], bytes]] = {}
        self._journal: dict[Partition, list[JournalEntry]] = defaultdict(list)

    def save(self, checkpoint: Checkpoint) -> None:
        """Keeps a copy, unless a higher generation has written."""
        partition, age = (checkpoint.topic, checkpoint.partition), (checkpoint.generation, checkpoint.seq)
        if partition not in self._checkpoints or age >= self._checkpoints[partition][0]:
            self._checkpoints[partition] = (age, checkpoint_to_bytes(checkpoint))

    def load(self, partition: Partition) -> Checkpoint | None:
        held = self._checkpoints.get(partition)
        return None if held is None else checkpoint_from_bytes(held[1])

    def journal(self, entry: JournalEntry) -> None:
        self._journal[entry.topic, entry.partition].append(entry)

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        return settled(self._journal[partition], since)

    def close(self) -> None:
        """Nothing is held open."""
