"""The loop. One function for the live service, for replay and for tests.

Order within a batch: boundary journalled -> ownership confirmed -> answers sent -> learn -> observers.
Order of a checkpoint: answers flushed -> state saved -> offsets committed. A crash between any two makes
the next run answer some queries again, from the same state and the same boundaries: byte-identical.

Ownership is confirmed after the boundary is durable: whoever takes a partition over does so later than the
confirmation, reads that boundary and repeats it. A worker that slept meanwhile has answered nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import DeliveryError, PartitionsLost, Refused
from core.identity import identity
from core.protocols import Answered, Observer, Operations, Sink, Source, StateStore
from core.types import Judgement, Query, QueryBatch, Record, Refusal
from stream.admission import HELD_MESSAGES, Admission
from stream.contradictions import note
from stream.lanes import Lane
from stream.ownership import Owned, Ownership
from stream.patience import BACKOFF_SECONDS, Backoff
from stream.pipeline import Pipeline
from stream.trouble import Trouble

log = logging.getLogger("qshift.runner")
FLUSH_SECONDS = 60.0
CHECKPOINT_SECONDS = 30.0
"""After so long a checkpoint is made of fewer than `state.every_batches` batches."""
POLL_SECONDS = 0.01
"""Of a poll while records wait for their decoding: the rest of the time is spent waiting for those."""


class Serde(Protocol):
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
    checkpoints: int = 0
    recoveries: int = 0
    state_sha256: str = ""
    lanes: dict[str, str] = field(default_factory=dict)
    unsaved: str = ""
    """Why a stopped run ended without a last checkpoint; the next one continues from the newest."""


class _Loop:
    """The state of a run, and the steps of a turn."""

    def __init__(
        self, source: Source, pipeline: Pipeline, serde: Serde, sink: Sink, store: StateStore,
        observers: Sequence[Observer], config: Config, clock: Callable[[], float],
        on_lanes: Callable[[Sequence[Lane]], None] | None, operations: Operations | None,
        base_version: str, trouble: Trouble, decoders: int,
    ) -> None:  # fmt: skip
        self.source, self.pipeline, self.serde, self.sink, self.store = source, pipeline, serde, sink, store
        self.observers, self.config, self.clock, self.operations = observers, config, clock, operations
        self.admission: Admission[Owned] = Admission(
            pipeline.admit, decoders, HELD_MESSAGES * config.limits.message_bytes
        )
        self.identity, self.trouble, self.report = identity(config, base_version), trouble, Report()
        self.labels: dict[str, int] = {}
        self.ours = Ownership(
            source, store, pipeline, self.identity, clock, self.labels, operations, on_lanes
        )
        self.paused = self.worked = False

    def pause_when_full(self) -> None:
        """The source pauses while as many queries wait as may."""
        waiting = sum(len(lane.pending) for lane in self.ours.lanes())
        full = waiting + len(self.admission) >= self.config.limits.pending_queries or self.admission.full
        if full != self.paused:
            self.paused = full
            self.source.pause(full)

    # -- records ----------------------------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """One record: a query joins its lane, a label goes to the observers, anything else is refused."""
        event = self.serde.decode(record)
        if record.at.topic == self.config.kafka.queries:
            owned = self.ours.owned.get((record.at.topic, record.at.partition))
            if owned is not None:  # else of a partition that is ours no longer
                self.ours.began(owned, record.at.offset)
                if not self.admission.put(owned, record, event, self.decodes(owned, event)):
                    self.take_query(owned, record, event, self.pipeline.admit)
            return
        # A label, good or bad: its place is part of the checkpoint.
        self.labels[f"{record.at.topic}/{record.at.partition}"] = record.at.offset + 1
        if isinstance(event, Judgement):
            self.report.judgements += 1
            for observer in self.observers:
                observer.judge(event)
        elif isinstance(event, Refusal):
            self.refuse(event)

    def lane(self, owned: Owned, query: Query) -> Lane:
        return self.ours.lane(owned, query, self.config.batch.per_tenant_lanes)

    def decodes(self, owned: Owned, event: Query | Judgement | Refusal) -> bool:
        """Whether an event is to be decoded beside the loop: not what the lane's state covers already."""
        if not isinstance(event, Query) or not self.admission.decodes(event):
            return False
        if event.modality not in self.pipeline.encoders:
            return False
        return event.at.offset >= self.lane(owned, event).next_offset

    def take_back(self, wait_seconds: float, stop: threading.Event) -> None:
        """Takes what waited for its decoding, or behind such: within the budget of a turn."""
        for held in self.admission.taken(wait_seconds):
            self.take_query(held.owner, held.record, held.event, held.admit)
            if stop.is_set():
                return

    def take_query(
        self, owned: Owned, record: Record, event: Query | Judgement | Refusal,
        admit: Callable[[Query], Query],
    ) -> None:  # fmt: skip
        owned.position = record.at.offset + 1
        if isinstance(event, Query):
            # What is not served makes no lane: admission refuses it.
            lane = self.lane(owned, event) if event.modality in self.pipeline.encoders else None
            if lane is not None and record.at.offset < lane.next_offset:
                return
            try:
                query = admit(event)
                if lane is not None:
                    lane.add(query, self.clock())
                return
            except Refused as refused:
                event = Refusal(record, refused.stage, type(refused).__name__, refused.reason)
        if isinstance(event, Refusal):
            self.refuse(event)

    def refuse(self, refusal: Refusal) -> None:
        value, key, headers = self.serde.dead_letter(refusal)
        self.sink.send("dead-letters", value, key, headers)
        self.report.dead_letters += 1
        for observer in self.observers:
            observer.refuse(refusal)

    # -- batches ----------------------------------------------------------------------------------------

    def work(self, drain: bool, stop: threading.Event) -> bool:
        """Answers every batch that is due; True if there was one."""
        worked, lag = False, self.source.lag()
        for owned in list(self.ours.owned.values()):
            behind = (not self.paused and lag.get(owned.partition, 0) > 0) or self.admission.ahead(owned)
            for lane in list(owned.lanes.values()):
                while not stop.is_set():
                    due = lane.next_batch(self.clock(), self.config.batch, drain, behind)
                    if due is None:
                        break
                    self.batch(owned, lane, *due)
                    worked = True
        return worked

    def batch(self, owned: Owned, lane: Lane, batch: QueryBatch, planned: bool) -> None:
        if not planned:
            self.store.journal(self.boundary(owned, lane, batch))
        answered = lane.session.answer(batch, repeated=planned)
        if not planned:  # what the journal had planned is answered alike by everybody
            self.ours.confirm(owned)
        with answered.timed("send"):
            self.send(answered)
        outcome = lane.session.learn(answered)
        self.report.queries += len(batch)
        self.report.batches += 1
        for observer in self.observers:
            observer.observe(outcome)
        owned.since_checkpoint += 1
        # In trouble every batch has a checkpoint: what is sent in vain, and again, is one batch at a time.
        if self.trouble or owned.since_checkpoint >= self.config.state.every_batches:
            self.checkpoint(owned)

    def boundary(self, owned: Owned, lane: Lane, batch: QueryBatch) -> JournalEntry:
        label_offset, state = max(self.labels.values(), default=0), lane.session.state_hash()
        return JournalEntry(
            *owned.partition, lane.name, batch.seq, batch.offsets, state, label_offset, self.ours.generation
        )

    def send(self, answered: Answered) -> None:
        generation = ("x-generation", str(self.ours.generation).encode())
        answers = self.serde.answers(answered)
        for query, (value, key, headers) in zip(answered.batch.queries, answers, strict=True):
            try:
                self.sink.send("answers", value, key, [*headers, generation])
            except Refused as refused:  # too large for its topic: it would be for ever
                self.refuse(Refusal(Record(query.at, None), refused.stage, "Refused", refused.reason))

    # -- checkpoints and deliveries ---------------------------------------------------------------------

    def checkpoint(self, owned: Owned) -> None:
        """1 answers flushed, 2 state saved, 3 offsets committed."""
        self.sink.flush(FLUSH_SECONDS)
        ours, source = self.ours, self.source
        checkpoint = owned.checkpoint(self.identity, dict(self.labels), ours.generation, source.log_id())
        self.store.save(checkpoint)
        owned.note = note(checkpoint, self.store.place)
        self.source.commit({owned.partition: checkpoint.next_offset}, owned.note)
        owned.checkpoint_made(checkpoint, self.clock())
        self.trouble.delivered(owned.partition)
        self.report.checkpoints += 1
        if self.operations:
            self.operations.checkpoint(checkpoint.nbytes)

    def checkpoint_idle(self) -> None:
        """What was done stays uncut for a while at most, also where it was to refuse, or fewer batches."""
        for owned in list(self.ours.owned.values()):
            if self.clock() - owned.checkpoint_at >= CHECKPOINT_SECONDS and owned.changed():
                self.checkpoint(owned)

    def failed(self, error: DeliveryError) -> float:
        """After a failed delivery: forget what is in memory; returns the seconds to wait."""
        self.report.recoveries += 1
        if self.operations:
            self.operations.recovered()
        pause = self.trouble.failed(error, self.ours.assigned)
        self.ours.drop()
        return pause

    def rested(self) -> None:
        """What has nothing to deliver owes nothing: all is loaded, read and answered."""
        if self.trouble and not self.ours.moved:
            lag = self.source.lag()
            for partition, owned in self.ours.owned.items():
                if lag.get(partition) == 0 and not owned.waiting() and not self.admission.holds(owned):
                    self.trouble.delivered(partition)

    def finish(self, stopped: bool) -> Report:
        """Makes the last checkpoints. A run that was stopped may end without: all is answered again then."""
        self.report.unsaved = self.trouble.reason if stopped else ""
        try:
            for owned in self.ours.owned.values():
                if owned.changed():
                    self.checkpoint(owned)
            self.sink.flush(FLUSH_SECONDS)
        except (DeliveryError, PartitionsLost) as error:
            if not stopped:
                raise
            self.report.unsaved = str(error)
            log.warning("ended without a last checkpoint", extra={"error": str(error)})
        self.report.lanes = self.state_hashes()
        text = "|".join(f"{name}={value}" for name, value in self.report.lanes.items())
        self.report.state_sha256 = hashlib.sha256(text.encode()).hexdigest()
        return self.report

    def state_hashes(self) -> dict[str, str]:
        """Of all lanes, by name; of those not met since the restart, as they were saved."""
        hashes: dict[str, str] = {}
        for owned in self.ours.owned.values():
            hashes.update({name: lane.session.state_hash() for name, lane in owned.lanes.items()})
            hashes.update({name: state.state_hash for name, state in owned.states.items()})
        return dict(sorted(hashes.items()))


def run(
    source: Source,
    pipeline: Pipeline,
    serde: Serde,
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
        serde: the codec.
        observers: see every outcome, judgement and refusal; they cannot change the path.
        stop: set it to end after the batch in hand, with a checkpoint; nothing is lost.
        operations: told of checkpoints, restores, recoveries and rebalances.
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
    loop = _Loop(
        source, pipeline, serde, sink, store, observers, config, clock, on_lanes, operations,
        base_version, Trouble(Backoff(*backoff_seconds), on_trouble), decoders,
    )  # fmt: skip
    try:
        _turns(loop, stop, poll_seconds)
    finally:
        loop.admission.close()
    return loop.finish(stop.is_set())


def _turns(loop: _Loop, stop: threading.Event, poll_seconds: float) -> None:
    while not stop.is_set():
        try:
            if _turn(loop, stop, poll_seconds):
                return
        except PartitionsLost as error:
            log.warning("partitions dropped", extra={"error": str(error)})
            loop.ours.drop()
        except DeliveryError as error:
            stop.wait(loop.failed(error))


def _turn(loop: _Loop, stop: threading.Event, poll_seconds: float) -> bool:
    """Polls, takes in, works; True when there is nothing more to come."""
    source, admission, ours = loop.source, loop.admission, loop.ours
    # While pictures are decoded the turn waits for them instead, further down.
    records = ours.rebalance(source.poll(POLL_SECONDS if len(admission) else poll_seconds))
    loop.trouble.keep(ours.assigned)
    admission.turn(ours.owned.values())
    for record in records:
        if stop.is_set():
            return True
        loop.take(record)
    loop.take_back(0.0 if loop.worked else poll_seconds, stop)
    loop.worked = loop.work(False, stop)
    loop.pause_when_full()
    if source.exhausted and not records and not loop.worked and not len(admission):
        loop.work(True, stop)
        return True
    loop.checkpoint_idle()
    loop.rested()
    ours.confirm_idle()
    return False
