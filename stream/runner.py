"""The loop. One function for the live service, for replay and for tests.

Order within a batch: boundary journalled -> ownership confirmed -> answers sent -> learn -> observers.
Order of a cut: answers flushed -> state saved -> offsets committed. A crash between any two of these makes
the next run answer some queries again, from the same state and the same boundaries: byte-identical.

Ownership is confirmed after the boundary is durable: whoever takes a partition over does so later than the
confirmation, reads that boundary and repeats it. A worker that slept meanwhile has answered nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.config import Config
from core.errors import DeliveryError, PartitionsLost, Refused
from core.identity import identity
from core.protocols import Answered, Observer, Operations, Sink, Source, StateStore
from core.types import Cut, JournalEntry, Judgement, Partition, Query, QueryBatch, Record, Refusal
from stream.admission import HELD_MESSAGES, Admission
from stream.contradictions import (
    check_complete,
    check_fits,
    check_never_saved,
    check_reached,
    cut_hash,
    note,
)
from stream.lanes import Lane, covered, lane_name, plan
from stream.patience import BACKOFF_SECONDS, Backoff
from stream.pipeline import Pipeline
from stream.session import Session

log = logging.getLogger("qshift.runner")
FLUSH_SECONDS = 60.0
POLL_SECONDS = 0.01
"""Of a poll while records wait for their decoding: the rest of the time is spent waiting for those."""
CONFIRM_SECONDS = 3.0
"""How often an idle worker makes sure that it still is a member: one that was replaced ends soon."""


class Border(Protocol):
    """Bytes <-> values, as the codec does it."""

    def decode(self, record: Record) -> Query | Judgement | Refusal: ...

    def answers(self, answered: Answered) -> list[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
        """(value, key, headers) per query, in batch order."""

    def dead_letter(self, refusal: Refusal) -> tuple[bytes, bytes | None, list[tuple[str, bytes]]]: ...


@dataclass(slots=True)
class Report:
    """What a run did. `state_sha256` covers all lanes, by name."""

    queries: int = 0
    batches: int = 0
    dead_letters: int = 0
    judgements: int = 0
    cuts: int = 0
    recoveries: int = 0
    state_sha256: str = ""
    lanes: dict[str, str] = field(default_factory=dict)
    unsaved: str = ""
    """Why a stopped run ended without a last cut; the next one continues from the newest."""


class _Partition:
    """Everything owned for one assigned partition."""

    def __init__(self, partition: Partition, cut: Cut | None, start: int | None) -> None:
        self.partition = partition
        self.lanes: dict[str, Lane] = {}
        self.first = self.position = start
        self.cut_seq = cut.seq + 1 if cut else 0
        self.parent = cut_hash(cut) if cut else ""
        self.since_cut = 0
        self.saved = cut.next_offset if cut else None
        self.note = ""
        """Metadata of the last commit."""
        self.journalled: int | None = None
        """Without a cut: the first offset that the journal wants repeated."""
        self.states = {state.lane: state for state in cut.lanes} if cut else {}
        self.planned: dict[str, deque[JournalEntry]] = {}

    def waiting(self) -> bool:
        """Whether there are queries or planned batches that are not answered yet."""
        lanes = any(lane.pending or lane.planned for lane in self.lanes.values())
        return lanes or bool(self.planned)


class _Run:
    def __init__(
        self, source: Source, pipeline: Pipeline, border: Border, sink: Sink, store: StateStore,
        observers: Sequence[Observer], config: Config, clock: Callable[[], float],
        on_lanes: Callable[[Sequence[Lane]], None] | None, operations: Operations | None,
        base_version: str, backoff: Backoff, on_trouble: Callable[[bool], None], decoders: int,
    ) -> None:  # fmt: skip
        self.source, self.pipeline, self.border, self.sink, self.store = source, pipeline, border, sink, store
        self.observers, self.config, self.clock = observers, config, clock
        self.on_lanes, self.operations = on_lanes, operations
        self.admission: Admission[_Partition] = Admission(
            pipeline.admit, decoders, HELD_MESSAGES * config.limits.message_bytes
        )
        self.identity, self.backoff, self.on_trouble = identity(config, base_version), backoff, on_trouble
        self.owned: dict[Partition, _Partition] = {}
        self.assigned: frozenset[Partition] = frozenset()
        self.first: dict[Partition, int] = {}
        """Where reading began, of partitions that were dropped and may be read again."""
        self.topics = {config.kafka.queries}
        self.report = Report()
        self.labels: dict[str, int] = {}
        self.paused = False
        self.generation = 0
        self.confirmed = float("-inf")
        self.moved = False
        self.trouble = ""
        """Why deliveries fail, while they do."""
        self.owing: set[Partition] = set()
        """Partitions that have not delivered anything since then."""

    # -- partitions -------------------------------------------------------------------------------------

    def rebalance(self, records: list[Record]) -> list[Record]:
        """Loads what was gained and drops what was lost; returns the records that may be used."""
        assigned = self.source.assignment()
        gained = assigned - set(self.owned)
        for partition in self.assigned - assigned:
            log.info("partition lost", extra={"partition": partition})
            for known in (self.owned, self.first):
                known.pop(partition, None)
            self.owing.discard(partition)
        if assigned != self.assigned and self.operations:
            self.operations.rebalanced()
        self.assigned, self.moved = assigned, bool(gained)
        for partition in gained:  # all of them first: what was polled must come again if one fails
            offsets = [r.at.offset for r in records if (r.at.topic, r.at.partition) == partition]
            offsets += [self.first[partition]] if partition in self.first else []
            if offsets:
                self.first[partition] = min(offsets)
        for partition in sorted(gained):
            self.own(partition)
        # The source may have read from elsewhere than where the state continues: read again from there.
        return [r for r in records if (r.at.topic, r.at.partition) not in gained] if gained else records

    def own(self, partition: Partition) -> None:
        """Newest complete cut wins over the group's offset; the journal after it is obeyed.

        Raises:
            ArtifactError: the state does not fit, or there was one and it is gone.
        """
        began = self.clock()
        cut = self.store.load(partition)
        start = cut.next_offset if cut else self.first.get(partition)
        # A reader ignores cuts of a lower generation than one it has seen: never fall behind our own.
        self.generation = max(self.generation, self.source.generation(), cut.generation if cut else 0)
        owned = _Partition(partition, cut, start)
        since = {lane.lane: lane.next_seq for lane in cut.lanes} if cut else {}
        if cut is not None:
            check_fits(cut, self.identity)
            owned.note = note(cut, self.store.place)
        else:
            check_never_saved(partition, self.source.committed(partition), self.store.place)
        # Before anything of ours is written with the generation that was just read out of another's cut.
        self.confirm(owned)
        entries = self.store.journalled(partition, since)
        if cut is None:
            check_complete(partition, entries, self.store.place)
            owned.journalled = min((entry.offsets[0] for entry in entries if entry.offsets), default=None)
            if start is not None:
                check_reached(partition, owned.journalled, start, self.store.place)
        owned.planned = plan(entries, since)
        self.owned[partition] = owned
        if start is not None:
            self.source.seek(partition, start)
        for name, offset in (cut.label_offsets if cut else {}).items():
            topic, _, number = name.rpartition("/")
            self.source.seek((topic, int(number)), offset)
            self.labels[name] = offset
        if cut:
            log.info("state restored", extra={"partition": partition, "offset": cut.next_offset})
            if self.operations:
                self.operations.restored(self.clock() - began)

    def confirm(self, owned: _Partition) -> None:
        """Returns only while the group knows us as the partition's owner."""
        offset = owned.first if owned.saved is None else owned.saved
        self.source.confirm({owned.partition: offset}, owned.note)
        self.confirmed = self.clock()

    def confirm_idle(self) -> None:
        """One partition stands for the worker: it is a member, or it is none."""
        for owned in list(self.owned.values())[:1]:
            if self.clock() - self.confirmed >= CONFIRM_SECONDS:
                self.confirm(owned)

    def drop(self) -> None:
        """Forgets everything in memory; the next poll shows what is ours, and that is loaded again."""
        for partition, owned in self.owned.items():
            if owned.first is not None:
                self.first[partition] = owned.first
        self.owned.clear()
        self.shown()

    def lane(self, owned: _Partition, query: Query) -> Lane:
        name = lane_name(query, self.config.batch.per_tenant_lanes)
        if name not in owned.lanes:
            lane = Lane(name, owned.partition, Session(self.pipeline, query.modality))
            if name in owned.states:
                lane.restore(owned.states.pop(name))
            lane.planned = owned.planned.pop(name, lane.planned)
            owned.lanes[name] = lane
            self.shown()
        return owned.lanes[name]

    def shown(self) -> None:
        if self.on_lanes is not None:
            self.on_lanes([lane for owned in self.owned.values() for lane in owned.lanes.values()])

    # -- records ----------------------------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """One record: a query joins its lane, a label goes to the observers, anything else is refused."""
        event = self.border.decode(record)
        if record.at.topic in self.topics:
            owned = self.owned.get((record.at.topic, record.at.partition))
            if owned is not None:  # else of a partition that is ours no longer
                if owned.first is None:
                    # Reading begins again here when all is lost, whether or not the record was waited for.
                    check_reached(owned.partition, owned.journalled, record.at.offset, self.store.place)
                    owned.first = record.at.offset
                if not self.admission.put(owned, record, event, self.decodes(owned, event)):
                    self.take_query(owned, record, event, self.pipeline.admit)
            return
        # A label, good or bad: its place is part of the cut.
        self.labels[f"{record.at.topic}/{record.at.partition}"] = record.at.offset + 1
        if isinstance(event, Judgement):
            self.report.judgements += 1
            for observer in self.observers:
                observer.judge(event)
        elif isinstance(event, Refusal):
            self.refuse(event)

    def decodes(self, owned: _Partition, event: Query | Judgement | Refusal) -> bool:
        """Whether an event is to be decoded beside the loop: not what the lane's state covers already."""
        if not isinstance(event, Query) or not self.admission.decodes(event):
            return False
        return event.at.offset >= self.lane(owned, event).next_offset

    def take_back(self, wait_seconds: float, stop: threading.Event) -> None:
        """Takes what waited for its decoding, or behind such: within the budget of a turn."""
        for held in self.admission.taken(wait_seconds):
            self.take_query(held.owner, held.record, held.event, held.admit)
            if stop.is_set():
                return

    def take_query(
        self, owned: _Partition, record: Record, event: Query | Judgement | Refusal,
        admit: Callable[[Query], Query],
    ) -> None:  # fmt: skip
        owned.position = record.at.offset + 1
        if isinstance(event, Query):
            lane = self.lane(owned, event)
            if record.at.offset < lane.next_offset:
                return
            try:
                lane.add(admit(event), self.clock())
                return
            except Refused as refused:
                event = Refusal(record, refused.stage, type(refused).__name__, refused.reason)
        if isinstance(event, Refusal):
            self.refuse(event)

    def refuse(self, refusal: Refusal) -> None:
        value, key, headers = self.border.dead_letter(refusal)
        self.sink.emit("dead-letters", value, key, headers)
        self.report.dead_letters += 1
        for observer in self.observers:
            observer.refuse(refusal)

    # -- batches ----------------------------------------------------------------------------------------

    def work(self, drain: bool, stop: threading.Event) -> bool:
        """Answers every batch that is due; True if there was one."""
        worked, lag = False, self.source.lag()
        for owned in list(self.owned.values()):
            behind = (not self.paused and lag.get(owned.partition, 0) > 0) or self.admission.ahead(owned)
            for lane in list(owned.lanes.values()):
                while not stop.is_set():
                    cut = lane.next_batch(self.clock(), self.config.batch, drain, behind)
                    if cut is None:
                        break
                    self.batch(owned, lane, *cut)
                    worked = True
        return worked

    def batch(self, owned: _Partition, lane: Lane, batch: QueryBatch, planned: bool) -> None:
        if not planned:
            at = max(self.labels.values(), default=0)
            self.store.journal(
                JournalEntry(
                    *owned.partition,
                    lane.name,
                    batch.seq,
                    batch.offsets,
                    lane.session.state_hash(),
                    at,
                    self.generation,
                )
            )
        answered = lane.session.answer(batch, repeated=planned)
        if not planned:  # what the journal had planned is answered alike by everybody
            self.confirm(owned)
        with answered.timed("emit"):
            self.send(answered)
        outcome = lane.session.learn(answered)
        self.report.queries += len(batch)
        self.report.batches += 1
        for observer in self.observers:
            observer.observe(outcome)
        owned.since_cut += 1
        # In trouble every batch is cut: what is sent in vain, and again, is one batch at a time.
        if self.trouble or owned.since_cut >= self.config.state.every_batches:
            self.cut(owned)

    def send(self, answered: Answered) -> None:
        generation = ("x-generation", str(self.generation).encode())
        answers = self.border.answers(answered)
        for query, (value, key, headers) in zip(answered.batch.queries, answers, strict=True):
            try:
                self.sink.emit("answers", value, key, [*headers, generation])
            except Refused as refused:  # too large for its topic: it would be for ever
                self.refuse(Refusal(Record(query.at, None), refused.stage, "Refused", refused.reason))

    def cut(self, owned: _Partition) -> None:
        """1 answers flushed, 2 state saved, 3 offsets committed."""
        self.sink.flush(FLUSH_SECONDS)
        position = covered(owned.lanes.values(), owned.position or 0)
        states = [lane.snapshot() for lane in owned.lanes.values()]
        # Lanes that have not been met since the restart keep the state they were saved with.
        states += list(owned.states.values())
        cut = Cut(
            *owned.partition, owned.cut_seq, owned.parent, position,
            tuple(sorted(states, key=lambda s: s.lane)), self.identity, dict(self.labels),
            self.generation,
        )  # fmt: skip
        self.store.save(cut)
        owned.note = note(cut, self.store.place)
        self.source.commit({owned.partition: position}, owned.note)
        owned.cut_seq, owned.parent, owned.since_cut = cut.seq + 1, cut_hash(cut), 0
        owned.saved = position
        self.delivered(owned.partition)
        self.report.cuts += 1
        if self.operations:
            self.operations.cut(sum(a.nbytes for state in states for a in state.tensors.values()))

    def failed(self, error: DeliveryError) -> float:
        """After a failed delivery: forget what is in memory; returns the seconds to wait."""
        self.report.recoveries += 1
        if self.operations:
            self.operations.recovered()
        self.owing |= self.assigned
        if not self.trouble:
            self.on_trouble(True)
        self.trouble = str(error)
        self.drop()
        pause = self.backoff.next()
        log.warning(
            "delivery failed, continuing from the newest cut", extra={"error": str(error), "pause": pause}
        )
        return pause

    def delivered(self, partition: Partition) -> None:
        """A cut of the partition is durable, or it has nothing to deliver. Trouble ends with the last one."""
        self.owing.discard(partition)
        if self.trouble and not self.owing:
            self.trouble = ""
            self.backoff.reset()
            self.on_trouble(False)

    def rested(self) -> None:
        """What has nothing to deliver owes nothing: all is loaded, read and answered."""
        if self.trouble and not self.moved:
            lag = self.source.lag()
            for partition, owned in self.owned.items():
                if lag.get(partition) == 0 and not owned.waiting() and not self.admission.holds(owned):
                    self.delivered(partition)

    def finish(self, stopped: bool) -> Report:
        """Makes the last cuts. A run that was stopped may end without: all is answered again then."""
        self.report.unsaved = self.trouble if stopped else ""
        try:
            self.cut_all()
            self.sink.flush(FLUSH_SECONDS)
        except (DeliveryError, PartitionsLost) as error:
            if not stopped:
                raise
            self.report.unsaved = str(error)
            log.warning("ended without a last cut", extra={"error": str(error)})
        hashes: dict[str, str] = {}
        for owned in self.owned.values():
            hashes.update({name: lane.session.state_hash() for name, lane in owned.lanes.items()})
            hashes.update({name: state.state_hash for name, state in owned.states.items()})
        self.report.lanes = dict(sorted(hashes.items()))
        text = "|".join(f"{name}={value}" for name, value in self.report.lanes.items())
        self.report.state_sha256 = hashlib.sha256(text.encode()).hexdigest()
        return self.report

    def cut_all(self) -> None:
        for owned in self.owned.values():
            # Refused records count, too: they are done with. Where nothing was read, the place in the log is
            # not known, and a cut at 0 would be refused once retention has removed the log's beginning.
            if owned.position is not None and (
                owned.since_cut or covered(owned.lanes.values(), owned.position) != owned.saved
            ):
                self.cut(owned)


def run(
    source: Source,
    pipeline: Pipeline,
    border: Border,
    sink: Sink,
    store: StateStore,
    observers: Sequence[Observer],
    config: Config,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_lanes: Callable[[Sequence[Lane]], None] | None = None,
    operations: Operations | None = None,
    poll_seconds: float = 0.1,
    decoders: int = 0,
    base_version: str = "",
    backoff_seconds: tuple[float, float] = BACKOFF_SECONDS,
    on_trouble: Callable[[bool], None] = lambda _: None,
) -> Report:
    """Answers and learns until the source is exhausted or `stop` is set.

    Args:
        border: the codec.
        observers: see every outcome, judgement and refusal; they cannot change the path.
        stop: set it to end after the batch in hand, with a cut; nothing is lost.
        operations: told of cuts, restores, recoveries and rebalances.
        on_lanes: called with the live lanes whenever there is a new one, for /state.
        decoders: threads that decode pictures beside the loop. With 0 it waits for each: where no log is
            live nothing is kept from its turn, and the order of all that is sent depends on the input alone.
        base_version: of the base model; a state of another one is refused.
        backoff_seconds: first and longest pause after failed deliveries, however long they go on failing.
        on_trouble: called with True when deliveries begin to fail, with False when they succeed again.

    Raises:
        ArtifactError: a saved state does not fit base model or configuration, or is gone.
        NameTaken: another worker of the group has our name.
        OffsetGoneError: the log starts after the offset where a saved state continues.
    """
    stop = stop or threading.Event()
    state = _Run(
        source, pipeline, border, sink, store, observers, config, clock, on_lanes, operations,
        base_version, Backoff(*backoff_seconds), on_trouble, decoders,
    )  # fmt: skip
    try:
        _loop(state, stop, poll_seconds)
    finally:
        state.admission.close()
    return state.finish(stop.is_set())


def _loop(state: _Run, stop: threading.Event, poll_seconds: float) -> None:
    source, admission, worked = state.source, state.admission, False
    limit = state.config.limits.pending_queries
    while not stop.is_set():
        try:
            # While pictures are decoded the turn waits for them instead, further down.
            records = state.rebalance(source.poll(POLL_SECONDS if len(admission) else poll_seconds))
            admission.turn(state.owned.values())
            for record in records:
                if stop.is_set():
                    return
                state.take(record)
            state.take_back(0.0 if worked else poll_seconds, stop)
            worked = state.work(False, stop)
            waiting = sum(len(lane.pending) for o in state.owned.values() for lane in o.lanes.values())
            full = waiting + len(admission) >= limit or admission.full
            if full != state.paused:
                state.paused = full
                source.pause(full)
            if source.exhausted and not records and not worked and not len(admission):
                state.work(True, stop)
                return
            state.rested()
            state.confirm_idle()
        except PartitionsLost as error:
            log.warning("partitions dropped", extra={"error": str(error)})
            state.drop()
        except DeliveryError as error:
            stop.wait(state.failed(error))
