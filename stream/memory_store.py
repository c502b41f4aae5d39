"""A state store in memory: for replay and tests. Checkpoints go through bytes, as they do everywhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from core.checkpoints import Checkpoint, JournalEntry, LaneRecord, LaneState
from core.records import Partition
from stream.lane_records import Outdated, recorded, state_of
from stream.states import checkpoint_from_bytes, checkpoint_to_bytes, settled


class MemoryStore:
    """Keeps the newest checkpoint of each partition and every journal entry."""

    place = "memory"

    def __init__(self) -> None:
        self._checkpoints: dict[Partition, tuple[tuple[int, int], bytes]] = {}
        self._journal: dict[Partition, list[JournalEntry]] = defaultdict(list)
        self._lanes: dict[tuple[Partition, str], bytes] = {}
        self._outdated: dict[Partition, Outdated] = defaultdict(Outdated)

    def save(self, checkpoint: Checkpoint) -> None:
        """Keeps a copy, unless a higher generation has written."""
        partition, age = (checkpoint.topic, checkpoint.partition), (checkpoint.generation, checkpoint.seq)
        if partition not in self._checkpoints or age >= self._checkpoints[partition][0]:
            self._checkpoints[partition] = (age, checkpoint_to_bytes(checkpoint))
            for record in self._outdated[partition].saved(checkpoint):
                del self._lanes[partition, record]

    def load(self, partition: Partition) -> Checkpoint | None:
        held = self._checkpoints.get(partition)
        return None if held is None else checkpoint_from_bytes(held[1])

    def keep(
        self, partition: Partition, generation: int, states: Sequence[LaneState]
    ) -> list[LaneRecord]:  # fmt: skip
        made = [recorded(partition, generation, state) for state in states]
        for one, blob in made:
            self._lanes[partition, one.record] = blob
            self._outdated[partition].written(one.record)
        return [one for one, _ in made]

    def fetch(self, partition: Partition, record: LaneRecord) -> LaneState:
        return state_of(partition, record, self._lanes.get((partition, record.record)), self.place)

    def journal(self, entry: JournalEntry) -> None:
        self._journal[entry.topic, entry.partition].append(entry)

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        return settled(self._journal[partition], since)

    def close(self) -> None:
        """Nothing is held open."""
