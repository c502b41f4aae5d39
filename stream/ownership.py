"""Which partitions are ours, where each continues, and that the group still agrees."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from core.checkpoints import Checkpoint, JournalEntry
from core.commands import Command
from core.errors import ArtifactError, OffsetGoneError
from core.protocols import Source, StateStore
from core.records import Judgement, Partition, Record
from core.types import Modality, Query, QueryBatch
from stream.commands import Commands
from stream.contradictions import (
    begun,
    beyond,
    check_complete,
    check_fits,
    check_journal,
    check_never_saved,
    check_plan,
    check_reached,
    check_same_log,
    note,
    saved,
)
from stream.events import LanesChanged, Rebalanced, Restored, Tell
from stream.label_positions import LabelPositions, earliest, shared
from stream.lanes import Lane, lane_name, modality_of, plan
from stream.loss import accepted
from stream.owned import Owned as Owned
from stream.pipeline import Pipeline
from stream.resting import Resting, most_lanes

log = logging.getLogger("qshift.runner")
CONFIRM_SECONDS = 3.0
"""How often an idle worker makes sure that it still is a member: one that was replaced ends soon."""


class Ownership:
    """The partitions that the source has assigned to us, loaded from their newest checkpoints.

    Args:
        tell: of lanes, restores and rebalances.
        atomic: whether answers, journal and checkpoint are there together or not at all.
    """

    def __init__(
        self, source: Source, store: StateStore, pipeline: Pipeline, identity: str,
        clock: Callable[[], float], tell: Tell, atomic: bool = False,
    ) -> None:  # fmt: skip
        self._source, self._store, self._pipeline, self.identity = source, store, pipeline, identity
        self._atomic = atomic
        self.clock, self.tell = clock, tell
        self.labels = LabelPositions(clock, self._full)
        """Of each label partition; checkpoints restore them."""
        self.commands = Commands(clock, self._full)
        self._steered = pipeline.retrieval.correction is not None
        self.resting = Resting(store, pipeline, most_lanes(pipeline.config), lambda: self.generation)
        self._others = False
        """Whether there are other lanes than were last told of."""
        self.owned: dict[Partition, Owned] = {}
        self.assigned: frozenset[Partition] = frozenset()
        self._first: dict[Partition, int] = {}
        """Where reading began, of partitions that were dropped and may be read again."""
        self._beside: list[Record] = []
        """Labels and commands of the last poll: a turn that failed may not have taken them."""
        self.generation = 0
        self.moved = False
        """Whether the last poll brought partitions that are not read yet."""
        self._confirmed = float("-inf")

    @property
    def base(self) -> str:
        """The beginning of the base model's version."""
        return dict(part.partition("=")[::2] for part in self.identity.split(" "))["base"]

    def lanes(self) -> list[Lane]:
        return [lane for owned in self.owned.values() for lane in owned.lanes.values()]

    def rebalance(self, records: list[Record]) -> list[Record]:
        """Loads what was gained and drops what was lost; returns the records that may be used."""
        assigned = self._source.assignment()
        gained = assigned - set(self.owned)
        for partition in self.assigned - assigned:
            log.info("partition lost", extra={"partition": partition})
            self.owned.pop(partition, None)
            self._first.pop(partition, None)
        self.resting.forget(lambda partition: partition not in assigned)
        if assigned != self.assigned:
            self.tell(Rebalanced())
        self.assigned, self.moved = assigned, bool(gained)
        self._note_firsts(records)
        records = [record for record in self._beside if not self._taken(record)] + records
        queries = self._pipeline.config.kafka.queries
        self._beside = [record for record in records if record.at.topic != queries]
        sought: set[Partition] = set(gained)
        for partition in sorted(gained):
            sought |= self._own(partition)
        # The source may have read from elsewhere than where the state continues: read again from there.
        return [r for r in records if (r.at.topic, r.at.partition) not in sought] if gained else records

    def _taken(self, record: Record) -> bool:
        """Whether a label or command was taken: the log shows it once, unless it is sought."""
        at = record.at
        if at.topic == self._pipeline.config.kafka.control:
            return self.commands.get(at.offset) is not None
        return at.offset < self.labels.read.get(f"{at.topic}/{at.partition}", 0)

    def _note_firsts(self, records: list[Record]) -> None:
        """Where reading begins of partitions of which nothing was taken yet.

        Before any of them is loaded or any record is taken: whatever fails, what was polled must come again.
        """
        fresh = {p for p in self.assigned if p not in self.owned or self.owned[p].first is None}
        for at in (record.at for record in records if fresh):
            partition = (at.topic, at.partition)
            if partition in fresh:
                self._first[partition] = min(at.offset, self._first.get(partition, at.offset))

    def _own(self, partition: Partition) -> set[Partition]:
        """Newest complete checkpoint wins over the group's offset; the journal after it is obeyed.

        Returns:
            Partitions of the labels that are read again from an earlier place.

        Raises:
            ArtifactError: the state does not fit, or there was one and it is gone.
        """
        try:
            return self._continued(partition)
        except ArtifactError as error:
            if not self._pipeline.config.state.accept_loss:
                raise
            log.warning("loss accepted", extra={"partition": partition, "error": str(error)})
        owned, checkpoint, generation = accepted(
            self._source, self._store, partition, self.identity, self._first.get(partition), self.clock()
        )
        self.generation = max(self.generation, generation)
        self.confirm(owned)
        self.owned[partition] = owned
        if owned.first is not None:  # what was given up is not given up again at the next start
            made = self.checkpoint(owned)
            self._store.save(made)
            owned.note = note(made, self._store.place)
            owned.checkpoint_made(made, self.clock())
        return self._seek(owned, checkpoint)

    def _continued(self, partition: Partition) -> set[Partition]:
        began = self.clock()
        checkpoint, committed = saved(self._source, self._store, partition)
        start = checkpoint.next_offset if checkpoint else self._first.get(partition)
        owned = Owned(partition, checkpoint, start, began)
        # A reader ignores checkpoints of a lower generation than one it has seen: never fall behind our own.
        self.generation = max(
            self.generation, self._source.generation(), checkpoint.generation if checkpoint else 0
        )
        if checkpoint is not None:
            check_fits(checkpoint, self.identity)
            check_same_log(checkpoint, self._source.log_id())
            owned.note = note(checkpoint, self._store.place)
        else:
            check_never_saved(partition, committed, self._store.place)
            if committed is not None and committed[1] == begun(self._store.place):
                owned.note = committed[1]
                owned.first = owned.position = committed[0] if owned.first is None else owned.first
        # Before anything of ours is written with the generation that was just read from another's.
        self.confirm(owned)
        self._plan(owned, checkpoint)
        self.owned[partition] = owned
        sought = self._seek(owned, checkpoint)
        if checkpoint:
            self.tell(Restored(self.clock() - began))
        return sought

    def _plan(self, owned: Owned, checkpoint: Checkpoint | None) -> None:
        """What the journal holds behind the checkpoint is to be repeated."""
        since = checkpoint.covered if checkpoint else {}
        entries = self._store.journalled(owned.partition, since)
        if checkpoint is None:
            check_journal(owned.partition, entries, (owned.first, owned.note), self._store.place)
            check_complete(owned.partition, entries, self._store.place)
            owned.journalled = min((entry.offsets[0] for entry in entries if entry.offsets), default=None)
            if owned.first is not None:
                check_reached(owned.partition, owned.journalled, owned.first, self._store.place)
        owned.planned = plan(entries, since)
        states = {one.lane: one for one in checkpoint.heads} if checkpoint else {}
        for lane, planned in owned.planned.items():
            state = states.get(lane)
            ends = (state.next_seq, state.next_offset) if state else (0, 0)
            check_plan(owned.partition, lane, planned, *ends)
        self._check_within(owned)

    def _check_within(self, owned: Owned) -> None:
        """A batch with queries behind the end of the log would be waited for, and never come."""
        entries = (entry for planned in owned.planned.values() for entry in planned)
        last = max(entries, key=_ends, default=None)
        if last is not None and last.offsets and owned.first is not None:
            try:
                self._source.seek(owned.partition, _ends(last))
            except OffsetGoneError as error:
                raise beyond(owned.partition, last, error) from error

    def _seek(self, owned: Owned, checkpoint: Checkpoint | None) -> set[Partition]:
        if owned.first is not None:
            self._source.seek(owned.partition, owned.first)
        starts: dict[str, int] = {}
        if checkpoint:
            starts = self.labels.again(checkpoint.label_offsets, self._steered)
            log.info("state restored", extra={"partition": owned.partition, "offset": checkpoint.next_offset})
        elif self._steered and owned.planned:
            firsts = shared([entries[0].label_offsets for entries in owned.planned.values()])
            starts = self.labels.again(firsts, True)
        sought = {_partition(place): offset for place, offset in starts.items()}
        for place, offset in sought.items():
            self._source.seek(place, offset)
        self._beside = [r for r in self._beside if (r.at.topic, r.at.partition) not in sought]
        return set(sought)

    def began(self, owned: Owned, offset: int) -> None:
        """Reading of a partition begins here, and again when all is lost."""
        if owned.first is None:
            check_reached(owned.partition, owned.journalled, offset, self._store.place)
            owned.first = offset

    def boundary(self, owned: Owned, lane: Lane, batch: QueryBatch) -> JournalEntry:
        """What the journal has to know of a batch before it is answered."""
        if not self._atomic:  # else a journal without a checkpoint is that of a transaction that was aborted
            owned.note = owned.note or begun(self._store.place)  # goes with the confirmation
        label_offset, state = max(self.labels.read.values(), default=0), lane.session.state_hash()
        steering = lane.session.steering
        return JournalEntry(
            *owned.partition, lane.name, batch.seq, batch.offsets, state, label_offset, self.generation,
            gallery=self._pipeline.retrieval.use(lane.session.orders.gallery),
            label_offsets={} if steering is None else dict(steering.offsets), control_offset=lane.obeys,
            learns=lane.session.learns,
        )  # fmt: skip

    def checkpoint(self, owned: Owned) -> Checkpoint:
        """The next checkpoint of a partition."""
        self.resting.keep(owned)
        steered = (lane.learned.steering for lane in owned.lanes.values() if lane.learned)
        labels = earliest([self.labels.read, *(one.unapplied() for one in steered if one is not None)])
        return owned.checkpoint(self.identity, labels, self.generation, self._source.log_id())

    def confirm(self, owned: Owned) -> None:
        """Returns only while the group knows us as the partition's owner."""
        offset = owned.first if owned.saved is None else owned.saved
        self._source.confirm({owned.partition: offset}, owned.note)
        self._confirmed = self.clock()

    def confirm_idle(self) -> None:
        """One partition stands for the worker: it is a member, or it is none."""
        for owned in list(self.owned.values())[:1]:
            if self.clock() - self._confirmed >= CONFIRM_SECONDS:
                self.confirm(owned)

    def drop(self) -> None:
        """Forgets everything in memory; the next poll shows what is ours, and that is loaded again."""
        for partition, owned in self.owned.items():
            if owned.first is not None:
                self._first[partition] = owned.first
        self.owned.clear()
        self.resting.forget(lambda partition: True)
        self.tell(LanesChanged([]))

    def tidy(self) -> None:
        """Ends a turn: forgets lanes that are away and idle, and tells of the others if they have changed."""
        gone = [self.resting.tidy(owned) for owned in self.owned.values()]
        if self._others or any(gone):
            self.tell(LanesChanged(self.lanes()))
        self._others = False

    def lane(self, owned: Owned, query: Query, per_tenant: bool) -> Lane:
        """The lane of a query, restored from its checkpoint when it is met first."""
        return self._met(owned, lane_name(query, per_tenant), query.modality)

    def steer(self, judgement: Judgement) -> None:
        """Hands a label to the lanes of its query's partition: one of them remembers the query, or none."""
        owned = self.owned.get((judgement.query.topic, judgement.query.partition))
        if owned is None or not self._steered:
            return
        self.meet(owned)
        for lane in owned.lanes.values():
            lane.take(judgement)

    def meet(self, owned: Owned) -> None:
        """Restores the lanes that were not met since the restart."""
        for name in sorted({*owned.states, *owned.planned} - set(owned.lanes)):
            if modality_of(name) in self._pipeline.encoders:
                self._met(owned, name, modality_of(name))

    def _full(self) -> bool:
        waiting = sum(len(lane.pending) for lane in self.lanes())
        return waiting >= self._pipeline.config.limits.pending_queries

    def called(self, owned: Owned, command: Command) -> list[Lane]:
        """Lanes that are away and are meant by name, or by their tenant. Of all lanes nobody is called."""
        if not command.lane and not command.tenant:
            return []
        away = [name for name in owned.records if name not in owned.lanes and command.concerns(name)]
        return [self._met(owned, name, modality_of(name)) for name in away]

    def _met(self, owned: Owned, name: str, modality: Modality) -> Lane:
        if name not in owned.lanes:
            record = owned.records.get(name)
            lane = Lane(
                name, owned.partition, None, self.labels.reached, self._pipeline.config.checkpoints,
                # What a lane that was away has not obeyed it obeys now; one that begins has missed nothing.
                record.control_offset if record else owned.control_offset,
                partial(self.resting.fetch, owned),
            )  # fmt: skip
            if record is not None:
                lane.stand_at(record)
            if name in owned.states:
                lane.restore(owned.states.pop(name))
            if not self.resting.most:
                self.resting.fetch(owned, lane)
            lane.planned = owned.planned.pop(name, lane.planned)
            owned.lanes[name] = lane
            self._others = True
        return owned.lanes[name]

    def state_hashes(self) -> dict[str, str]:
        """Of all lanes, by name; of those not met since the restart, as they were saved."""
        hashes: dict[str, str] = {}
        for owned in self.owned.values():
            hashes.update({name: record.state_hash for name, record in owned.records.items()})
            live = {name: lane.learned for name, lane in owned.lanes.items() if lane.learned}
            hashes.update({name: session.state_hash() for name, session in live.items()})
            hashes.update({name: state.state_hash for name, state in owned.states.items()})
        return dict(sorted(hashes.items()))


def _ends(entry: JournalEntry) -> int:
    return entry.offsets[-1] + 1 if entry.offsets else 0


def _partition(place: str) -> Partition:
    topic, _, number = place.rpartition("/")
    return topic, int(number)
