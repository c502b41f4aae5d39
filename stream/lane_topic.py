"""Records of single lanes in the state topic, beside the checkpoints that name them.

Keys are `topic/partition/lane/record/chunk`, and a record's name is a digest of its content: no tenant's name
is in a key, and a key is never written twice with different bytes. Of each record only its place is held.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from core.checkpoints import Checkpoint, LaneRecord, LaneState
from core.records import Partition
from stream.chunks import CHUNK_BYTES
from stream.lane_records import Outdated, recorded, state_of
from stream.topic_log import Keyed, TopicLog

LANE = re.compile(r"(.+)/([0-9]{1,10})/lane/([0-9a-f]{64})/([0-9]{1,6})", re.DOTALL)
"""Keys of lanes: topic and partition of the queries, record, chunk."""
ERASED = 1000
"""Keys that are erased and acknowledged at once."""

Places = dict[str, list[int]]
"""Record -> offsets of its chunks."""


class LaneTopic:
    """Writes and reads the records of lanes.

    Args:
        log: of the topics.
        topic: of the state.
    """

    def __init__(self, log: Callable[[], TopicLog], topic: str) -> None:
        self._log, self._topic = log, topic
        self._places: dict[Partition, Places] = {}
        self._outdated: dict[Partition, Outdated] = {}

    def forget(self, partition: Partition) -> None:
        """The topic is read anew: nothing is known of it."""
        self._places[partition], self._outdated[partition] = {}, Outdated()

    def met(self, partition: Partition, key: str, offset: int, there: bool) -> bool:
        """Notes a record of the topic, or that one was erased; False where it is none of a lane."""
        found = LANE.fullmatch(key)
        if found is None:
            return False
        if (found[1], int(found[2])) == partition:
            self._note(partition, found[3], int(found[4]), offset if there else None)
        return True

    def _note(self, partition: Partition, record: str, chunk: int, offset: int | None) -> None:
        """Of a record that was written twice either copy will do; of one that lacks a chunk none is known."""
        places = self._places.setdefault(partition, {})
        if offset is None:
            places.pop(record, None)
            return
        held = places.setdefault(record, [])
        if chunk <= len(held):
            places[record] = [*held[:chunk], offset, *held[chunk + 1 :]]
        self._outdated.setdefault(partition, Outdated()).written(record)

    def keep(self, partition: Partition, generation: int, states: Sequence[LaneState]) -> list[LaneRecord]:
        """Sends the states and waits for the acknowledgement. Raises DeliveryError."""
        made, keyed, names = [], [], []
        for state in states:
            one, blob = recorded(partition, generation, state)
            made.append(one)
            for chunk, at in enumerate(range(0, len(blob), CHUNK_BYTES)):
                keyed.append((_key(partition, one.record, chunk), blob[at : at + CHUNK_BYTES]))
                names.append((one.record, chunk))
        for (record, chunk), offset in zip(names, self._append(partition, keyed), strict=True):
            # An attempt that was repeated may be acknowledged without its place (-1): then we look for it.
            self._note(partition, record, chunk, offset if offset >= 0 else None)
            self._outdated.setdefault(partition, Outdated()).written(record)
        return made

    def fetch(self, partition: Partition, record: LaneRecord) -> LaneState:
        """Reads one record where it lies. Raises ArtifactError, DeliveryError."""
        blob = self._read(partition, record.record)
        if blob is None:
            self._look(partition)
            blob = self._read(partition, record.record)
        return state_of(partition, record, blob, f"the topic {self._topic}")

    def saved(self, checkpoint: Checkpoint) -> None:
        """Erases what no checkpoint needs any more."""
        partition = (checkpoint.topic, checkpoint.partition)
        old = self._outdated.setdefault(partition, Outdated()).saved(checkpoint)
        places = self._places.setdefault(partition, {})
        keyed: list[Keyed] = [
            (_key(partition, record, chunk), None)
            for record in old
            for chunk in range(len(places.pop(record, [0])))
        ]
        for at in range(0, len(keyed), ERASED):
            self._append(partition, keyed[at : at + ERASED])

    def _append(self, partition: Partition, keyed: Sequence[Keyed]) -> list[int]:
        return self._log().append(self._topic, partition[1], keyed) if keyed else []

    def _read(self, partition: Partition, record: str) -> bytes | None:
        chunks = []
        for number, offset in enumerate(self._places.get(partition, {}).get(record, [])):
            found, key, value = self._log().at(self._topic, partition[1], offset)
            if found != offset or key != _key(partition, record, number) or value is None:
                return None
            chunks.append(value)
        return b"".join(chunks) if chunks else None

    def _look(self, partition: Partition) -> None:
        """Notes where all records lie; what may be erased stays as it was."""
        self._places[partition] = {}
        for offset, key, value in self._log().read(self._topic, partition[1], 0):
            self.met(partition, (key or b"").decode(errors="replace"), offset, value is not None)


def _key(partition: Partition, record: str, chunk: int) -> bytes:
    return f"{partition[0]}/{partition[1]}/lane/{record}/{chunk}".encode()
