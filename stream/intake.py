"""Records -> queries in their lanes, judgements for the observers, dead letters: the first half of a turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from core.config import Config
from core.errors import Refused
from core.protocols import Observer, Sink
from core.records import Judgement, Record, Refusal
from core.types import Query
from stream.admission import HELD_MESSAGES, Admission
from stream.codec import Codec
from stream.lanes import Lane
from stream.owned import Owned
from stream.ownership import Ownership
from stream.pipeline import Pipeline

FIRST = 0
"""Partition of the queries whose owner refuses labels: all workers read all labels, and one owns it."""


class Intake:
    """Takes records in the order of the log; what is refused becomes one dead letter.

    Args:
        decoders: threads that decode pictures beside the loop.
    """

    def __init__(
        self, pipeline: Pipeline, codec: Codec, sink: Sink, observers: Sequence[Observer], config: Config,
        ours: Ownership, decoders: int,
    ) -> None:  # fmt: skip
        self._pipeline, self._codec, self._sink, self._observers = pipeline, codec, sink, observers
        self._config, self._ours = config, ours
        self.admission: Admission[Owned] = Admission(
            pipeline.admit, decoders, HELD_MESSAGES * config.limits.message_bytes
        )
        self.judgements = self.dead_letters = 0

    @property
    def full(self) -> bool:
        """Whether as many queries wait as may."""
        waiting = sum(len(lane.pending) for lane in self._ours.lanes())
        return waiting + len(self.admission) >= self._config.limits.pending_queries or self.admission.full

    def take(self, record: Record) -> None:
        """One record: a query joins its lane, a label goes to it and to the observers, else it is refused."""
        if record.at.topic == self._config.kafka.control:
            self._ours.commands.take(record)
            return
        event = self._codec.decode(record)
        if record.at.topic == self._config.kafka.queries:
            owned = self._ours.owned.get((record.at.topic, record.at.partition))
            if owned is not None:  # else of a partition that is ours no longer
                self._ours.began(owned, record.at.offset)
                if not self.admission.put(owned, record, event, self._decodes(owned, event)):
                    self._take_query(owned, record, event, self._pipeline.admit)
            return
        # A label, good or bad: its place is part of the checkpoint.
        self._ours.labels.note(record.at)
        if isinstance(event, Judgement):
            self.judgements += 1
            self._ours.steer(event)
            for observer in self._observers:
                observer.judge(event)
        elif isinstance(event, Refusal) and (self._config.kafka.queries, FIRST) in self._ours.owned:
            self.refuse(event)

    def take_back(self, wait_seconds: float, stop: threading.Event) -> None:
        """Takes what waited for its decoding, or behind such: within the budget of a turn."""
        for held in self.admission.taken(wait_seconds):
            self._take_query(held.owner, held.record, held.event, held.admit)
            if stop.is_set():
                return

    def refuse(self, refusal: Refusal) -> None:
        """One dead letter."""
        value, key, headers = self._codec.dead_letter(refusal)
        self._sink.send("dead-letters", value, key, headers)
        self.dead_letters += 1
        for observer in self._observers:
            observer.refuse(refusal)

    def _lane(self, owned: Owned, query: Query) -> Lane:
        return self._ours.lane(owned, query, self._config.batch.per_tenant_lanes)

    def _decodes(self, owned: Owned, event: Query | Judgement | Refusal) -> bool:
        """Whether an event is to be decoded beside the loop: not what the lane's state covers already."""
        if not isinstance(event, Query) or not self.admission.decodes(event):
            return False
        if event.modality not in self._pipeline.encoders:
            return False
        return event.at.offset >= self._lane(owned, event).next_offset

    def _take_query(
        self, owned: Owned, record: Record, event: Query | Judgement | Refusal,
        admit: Callable[[Query], Query],
    ) -> None:  # fmt: skip
        owned.position = record.at.offset + 1
        if isinstance(event, Query):
            # What is not served makes no lane: admission refuses it.
            lane = self._lane(owned, event) if event.modality in self._pipeline.encoders else None
            if lane is not None and record.at.offset < lane.next_offset:
                return
            try:
                query = admit(event)
                if lane is not None:
                    lane.add(query, self._ours.clock(), self._config.batch)
                return
            except Refused as refused:
                event = Refusal(record, refused.stage, type(refused).__name__, refused.reason)
        if isinstance(event, Refusal):
            self.refuse(event)
