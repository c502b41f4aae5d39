"""Lanes that are put away: only so many have in memory what they have learned, whoever asks.

What a lane has learned is made durable in a record of its own, from its last batch on, and its session is
dropped; its next batch fetches it again, bit for bit. That happens between two batches and changes no byte
of any answer. The record counts once a checkpoint names it: whoever starts from an older checkpoint has an
older record, and repeats what the journal has in between.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from core.checkpoints import LaneRecord, LaneState, LaneStore
from core.config import Config
from core.errors import ArtifactError
from core.records import Partition
from stream.lanes import Lane, modality_of
from stream.owned import Owned
from stream.pipeline import Pipeline
from stream.session import Session

log = logging.getLogger("qshift.runner")
LIVE_LANES = 1000
"""In memory unless said otherwise: half a gigabyte where a lane has half a megabyte."""


def most_lanes(config: Config) -> int:
    """How many lanes may have what they have learned in memory; 0: no bound.

    A label that steers is held against every lane of its partition, so that none of them may be away.
    """
    if not config.batch.per_tenant_lanes:
        return 0
    if config.batch.live_lanes is None:
        return 0 if config.labels.steer else LIVE_LANES
    return config.batch.live_lanes


class Resting:
    """Who is in memory, least recently used first.

    Args:
        most: lanes; 0: no bound, and all are written into checkpoints.
        generation: of the group.
    """

    def __init__(
        self, store: LaneStore, pipeline: Pipeline, most: int, generation: Callable[[], int]
    ) -> None:  # fmt: skip
        self._store, self._pipeline, self.most, self._generation = store, pipeline, most, generation
        self._awake: OrderedDict[tuple[Partition, str], tuple[Owned, Lane]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._awake)

    def fetch(self, owned: Owned, lane: Lane) -> Session:
        """What a lane has learned. Makes room for it first, if it was away.

        Raises:
            ArtifactError: its record is gone or damaged, and no loss is accepted.
            DeliveryError: the store could not be written to or read.
        """
        key = (owned.partition, lane.name)
        if lane.learned is not None:
            if self.most:
                self._awake.move_to_end(key)
            return lane.learned
        while len(self._awake) >= self.most > 0:
            self._put_away(*next(iter(self._awake.values())))
        record = owned.records.get(lane.name)
        session = Session(self._pipeline, modality_of(lane.name))
        state = None if record is None else self._state(owned.partition, record)
        if state is not None:
            session.restore(state.tensors, state.meta)
            lane.kept.restore(state.kept)
        lane.learned = session
        if self.most:
            self._awake[key] = owned, lane
        return session

    def _state(self, partition: Partition, record: LaneRecord) -> LaneState | None:
        try:
            return self._store.fetch(partition, record)
        except ArtifactError as error:
            if not self._pipeline.config.state.accept_loss:
                raise
            log.warning("loss accepted", extra={"lane": record.lane, "error": str(error)})
            return None

    def _put_away(self, owned: Owned, lane: Lane) -> None:
        if not owned.recorded(lane):
            self._keep(owned, [lane])
        lane.put_away()
        del self._awake[owned.partition, lane.name]

    def keep(self, owned: Owned) -> None:
        """Makes durable what a partition's lanes have learned, as far as it is not yet."""
        if not self.most:
            return
        states, owned.states = list(owned.states.values()), {}  # of a checkpoint that held them itself
        made = self._store.keep(owned.partition, self._generation(), states)
        owned.records.update({one.lane: one for one in made})
        changed = [lane for lane in owned.lanes.values() if lane.learned and not owned.recorded(lane)]
        self._keep(owned, changed)

    def _keep(self, owned: Owned, lanes: list[Lane]) -> None:
        states = [lane.snapshot() for lane in lanes]
        made = self._store.keep(owned.partition, self._generation(), states)
        owned.records.update({one.lane: one for one in made})

    def forget(self, gone: Callable[[Partition], bool]) -> None:
        """Drops lanes of partitions that are ours no longer, or are to be loaded again."""
        for key in [key for key in self._awake if gone(key[0])]:
            del self._awake[key]

    def tidy(self, owned: Owned) -> bool:
        """Forgets lanes that are away and have nothing to do; whether there were any."""
        idle = [lane.name for lane in owned.lanes.values() if lane.learned is None and lane.idle]
        for name in idle:
            del owned.lanes[name]
        return bool(idle)
