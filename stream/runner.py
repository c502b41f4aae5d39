"""The loop. One function for the live service, for replay and for tests.

Order within a batch: boundary journalled -> ownership confirmed -> answers sent -> learn -> observers.
Order of a checkpoint: answers flushed -> state saved -> offsets committed. A crash between any two makes
the next run answer some queries again, from the same state and the same boundaries: byte-identical. In a
transaction the three are one, and nothing is answered again (`stream.saving`).

Ownership is confirmed after the boundary is durable: whoever takes a partition over does so later than the
confirmation, reads that boundary and repeats it. A worker that slept meanwhile has answered nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from core.config import Config
from core.errors import DeliveryError, PartitionsLost
from core.identity import identity
from core.protocols import Observer, Sink, Source, StateStore
from core.types import QueryBatch
from stream.codec import Codec
from stream.events import Recovered, Tell, nobody
from stream.intake import Intake
from stream.lanes import Lane
from stream.obedience import Obedience
from stream.ownership import Owned, Ownership
from stream.patience import BACKOFF_SECONDS, Backoff
from stream.pipeline import Pipeline
from stream.report import Report
from stream.saving import Saving
from stream.sending import Sending
from stream.transaction import Transaction
from stream.trouble import Trouble

log = logging.getLogger("qshift.runner")
POLL_SECONDS = 0.01
"""Of a poll while records wait for their decoding, which is waited for instead, or right after a batch."""


def run(
    source: Source,
    pipeline: Pipeline,
    codec: Codec,
    sink: Sink,
    store: StateStore,
    observers: Sequence[Observer],
    config: Config,
    stop: threading.Event | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = nobody,
    poll_seconds: float = 0.1,
    decoders: int = 0,
    base_version: str = "",
    backoff_seconds: tuple[float, float] = BACKOFF_SECONDS,
    transaction: Transaction | None = None,
) -> Report:
    """Answers and learns until the source is exhausted or `stop` is set.

    Args:
        observers: see every outcome, judgement and refusal; they cannot change the path.
        stop: set it to end after the batch in hand, with a checkpoint; nothing is lost.
        tell: is told what happens to the run itself.
        decoders: threads that decode pictures beside the loop. With 0 it waits for each: where no log is
            live nothing is kept from its turn, and the order of all that is sent depends on the input alone.
        base_version: of the base model; a state of another one is refused.
        backoff_seconds: first and longest pause after failed deliveries, however long they go on failing.
        transaction: what sink and store write to, where answers, state and offsets are committed together.

    Raises:
        ArtifactError: a saved state does not fit base model or configuration, or is gone.
        NameTaken: another worker of the group has our name.
        OffsetGoneError: the log starts after the offset where a saved state continues.
    """
    stop = stop or threading.Event()
    trouble = Trouble(Backoff(*backoff_seconds), tell, clock)
    ours = Ownership(
        source, store, pipeline, identity(config, base_version), clock, tell, transaction is not None
    )
    intake = Intake(pipeline, codec, sink, observers, config, ours, decoders)
    sending = Sending(codec, sink, intake, lambda: ours.generation)
    obedience = Obedience(ours, store, sending, intake, pipeline.retrieval, config.batch.per_tenant_lanes)
    report = Report()
    saving = Saving(source, sink, store, ours, trouble, report, transaction)
    loop = _Loop(source, sending, saving, store, observers, config, ours, intake, trouble, obedience, report)
    try:
        while not stop.is_set():
            try:
                if loop.turn(stop, poll_seconds):
                    break
            except PartitionsLost as error:
                log.warning("partitions dropped", extra={"error": str(error)})
                saving.drop()
            except DeliveryError as error:
                stop.wait(loop.failed(error))
    finally:
        intake.admission.close()
    return loop.finish(stop.is_set())


class _Loop:
    """The state of a run, and the steps of a turn."""

    def __init__(
        self, source: Source, sending: Sending, saving: Saving, store: StateStore,
        observers: Sequence[Observer], config: Config, ours: Ownership, intake: Intake, trouble: Trouble,
        obedience: Obedience, report: Report,
    ) -> None:  # fmt: skip
        self.source, self.sending, self.saving, self.store = source, sending, saving, store
        self.observers, self.config, self.ours, self.intake = observers, config, ours, intake
        self.trouble, self.obedience = trouble, obedience
        self.report, self.paused, self.worked = report, False, False

    def turn(self, stop: threading.Event, poll_seconds: float) -> bool:
        """Polls, takes in, works; True when there is nothing more to come."""
        source, ours, waiting = self.source, self.ours, self.intake.admission
        patience = min([poll_seconds, *(lane.waits for lane in ours.lanes())])
        budget = min(POLL_SECONDS, patience) if self.worked or len(waiting) else patience
        records = ours.rebalance(source.poll(budget))
        self.trouble.keep(ours.assigned)
        waiting.turn(ours.owned.values())
        for record in records:
            if stop.is_set():
                return True
            self.intake.take(record)
        self.intake.take_back(0.0 if self.worked else patience, stop)
        self.worked = self.work(False, stop)
        if self.intake.full != self.paused:  # the source pauses while as many queries wait as may
            self.paused = not self.paused
            source.pause(self.paused)
        if source.exhausted and not records and not self.worked and not len(waiting):
            self.work(True, stop)
            return True
        self.saving.idle()
        self.rested()
        ours.confirm_idle()
        ours.tidy()
        return False

    # -- batches ----------------------------------------------------------------------------------------

    def work(self, drain: bool, stop: threading.Event) -> bool:
        """Answers every batch that is due; True if there was one."""
        worked, lag = False, self.source.lag()
        for owned in list(self.ours.owned.values()):
            more = not self.paused and lag.get(owned.partition, 0) > 0
            ahead = self.intake.admission.ahead(owned, more)
            for lane in list(owned.lanes.values()):
                while not stop.is_set():
                    self.obedience.obey(owned, lane, drain)
                    due = lane.next_batch(self.ours.clock(), self.config.batch, drain, ahead, owned.position)
                    if due is None:
                        break
                    self.batch(owned, lane, *due)
                    worked = True
            if self.obedience.handled(owned):
                self.saving.checkpoint(owned)
        return worked

    def batch(self, owned: Owned, lane: Lane, batch: QueryBatch, planned: bool) -> None:
        if not planned:
            self.store.journal(self.ours.boundary(owned, lane, batch))
        answered = lane.session.answer(batch, repeated=planned)
        if not planned:  # what the journal had planned is answered alike by everybody
            self.ours.confirm(owned)
        with answered.timed("send"):
            self.sending.answers(answered)
        outcome = lane.session.learn(answered)
        self.report.queries += len(batch)
        self.report.batches += 1
        for observer in self.observers:
            observer.observe(outcome)
        owned.since_checkpoint += 1
        # In trouble every batch has a checkpoint: what is sent in vain, and again, is one batch at a time.
        if self.trouble or owned.since_checkpoint >= self.config.state.every_batches:
            self.saving.checkpoint(owned)

    # -- deliveries -------------------------------------------------------------------------------------

    def failed(self, error: DeliveryError) -> float:
        """After a failed delivery: forget what is in memory; returns the seconds to wait."""
        self.report.recoveries += 1
        self.ours.tell(Recovered())
        pause = self.trouble.failed(error, self.ours.assigned)
        self.saving.drop()
        return pause

    def rested(self) -> None:
        """What has nothing to deliver owes nothing: all is loaded, read and answered."""
        if self.trouble and not self.ours.moved:
            lag = self.source.lag()
            for partition, owned in self.ours.owned.items():
                if lag.get(partition) == 0 and not owned.waiting() and not self.intake.admission.holds(owned):
                    self.trouble.delivered(partition)

    def finish(self, stopped: bool) -> Report:
        """Makes the last checkpoints. A run that was stopped may end without: all is answered again then."""
        report = self.report
        report.unsaved = self.trouble.reason if stopped else ""
        try:
            self.saving.finish()
        except (DeliveryError, PartitionsLost) as error:
            if not stopped:
                raise
            report.unsaved = str(error)
            log.warning("ended without a last checkpoint", extra={"error": str(error)})
        report.dead_letters, report.judgements = self.intake.dead_letters, self.intake.judgements
        report.lanes = self.ours.state_hashes()
        return report
