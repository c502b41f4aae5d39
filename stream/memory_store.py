"""A state store in memory: for replay and tests. Cuts go through bytes, as they do everywhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from core.checkpoints import Cut, JournalEntry
from core.types import Partition
from stream.states import cut_from_bytes, cut_to_bytes, settled


class MemoryStore:
    """Keeps the newest cut of each partition and every journal entry."""

    place = "memory"

    def __init__(self) -> None:
        self._cuts: dict[Partition, tuple[tuple[int, int], bytes]] = {}
        self._journal: dict[Partition, list[JournalEntry]] = defaultdict(list)

    def save(self, cut: Cut) -> None:
        """Keeps a copy, unless a higher generation has written."""
        partition, age = (cut.topic, cut.partition), (cut.generation, cut.seq)
        if partition not in self._cuts or age >= self._cuts[partition][0]:
            self._cuts[partition] = (age, cut_to_bytes(cut))

    def load(self, partition: Partition) -> Cut | None:
        held = self._cuts.get(partition)
        return None if held is None else cut_from_bytes(held[1])

    def journal(self, entry: JournalEntry) -> None:
        self._journal[entry.topic, entry.partition].append(entry)

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        return settled(self._journal[partition], since)

    def close(self) -> None:
        """Nothing is held open."""
