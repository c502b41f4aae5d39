"""Pictures are decoded beside the loop, and taken back in the order of the log.

A record of a few hundred bytes can unpack to the largest picture that is accepted, and a decoder cannot be
interrupted: it may not run in the loop's thread, which has to poll, to form batches and to look at `stop`.
Records of one partition stand in one line. A picture waits in it until a thread has decoded it, and what
stands behind waits too; lines do not wait for each other, and the threads go to the line for which they
have worked least: a client's flood of large pictures costs another's small ones one of them at a time.

What is held at once: as many pictures being decoded as there are threads, each within the caps of pixels and
bytes; of all else the encoded bytes, up to `HELD_MESSAGES` messages, above which polling pauses.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from core.records import Judgement, Record, Refusal
from core.types import Modality, Query
from stream.company import Ahead

Event = Query | Judgement | Refusal
Owner = TypeVar("Owner", bound=Hashable)
PICTURES: frozenset[Modality] = frozenset(("image", "composed", "sequence"))
TURN_SECONDS = 0.5
"""Longest that a turn of the loop admits records before it polls and answers again."""
HELD_MESSAGES = 64
END_SECONDS = 1.0
"""How long the end waits for a picture that is being decoded; its query is read again after a restart."""


@dataclass(slots=True, eq=False)
class Held(Generic[Owner]):
    """A record that stands in its partition's line."""

    owner: Owner
    record: Record
    event: Event
    ready: bool
    """False until it was decoded. What is admitted when it is taken is always ready."""
    admit: Callable[[Query], Query]
    """The query that may enter a batch. Raises what decoding it raised."""


class Admission(Generic[Owner]):
    """Lines of records, one per owner. Used by one thread; decodes in threads of its own.

    Args:
        admit: decodes and checks a query; raises Refused. Pictures come to it in several threads.
        threads: that decode; with 0 nothing ever waits, and the order of everything is that of the records.
        most_bytes: of encoded records held, above which it is `full`.
    """

    def __init__(
        self,
        admit: Callable[[Query], Query],
        threads: int = 0,
        most_bytes: int = HELD_MESSAGES << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admit, self._most_bytes, self._clock = admit, most_bytes, clock
        self._lines: dict[Owner, deque[Held[Owner]]] = {}
        self._encoded: dict[Owner, deque[tuple[Held[Owner], Query]]] = {}  # what no thread has begun with
        self._spent: dict[Owner, float] = {}  # seconds of decoding, of the lines that have such
        self._changed = threading.Condition()
        self._closed = False
        self._until = float("inf")
        self._threads = [
            threading.Thread(target=self._decode, name=f"qshift-decode-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def turn(self, owners: Collection[Owner]) -> None:
        """Begins a turn of the loop: a new budget of seconds, and the lines of other owners are forgotten."""
        if self._threads:
            self._until = self._clock() + TURN_SECONDS
        if self._lines.keys() - owners:
            with self._changed:
                for owner in self._lines.keys() - owners:
                    for known in (self._lines, self._encoded, self._spent):
                        known.pop(owner, None)

    def decodes(self, event: Event) -> bool:
        """Whether an event holds pictures that are not for the loop's thread to decode."""
        return bool(self._threads) and isinstance(event, Query) and event.modality in PICTURES

    def put(self, owner: Owner, record: Record, event: Event, decode: bool) -> bool:
        """Queues a record; False, and nothing done, where it can be admitted at once.

        Args:
            owner: whose line.
            decode: whether the threads are to have it.
        """
        picture = event if decode and isinstance(event, Query) else None
        if picture is None and owner not in self._lines and self._clock() < self._until:
            return False
        held = Held(owner, record, event, picture is None, self._admit)
        with self._changed:
            self._lines.setdefault(owner, deque()).append(held)
            if picture is not None:
                if owner not in self._encoded:
                    # Who comes back has no claim on the time when there was nothing to decode for it.
                    least = min((self._spent[other] for other in self._encoded), default=0.0)
                    self._spent[owner] = max(self._spent.get(owner, 0.0), least)
                    self._encoded[owner] = deque()
                self._encoded[owner].append((held, picture))
                self._changed.notify_all()
        return True

    def taken(self, wait_seconds: float) -> Iterator[Held[Owner]]:
        """What is ready, in order within each line, until the turn's budget is spent.

        Args:
            wait_seconds: how long to wait, in all, for pictures that are being decoded.
        """
        patient = self._clock() + wait_seconds
        while self._lines and not self._closed:
            held = self._pop()
            if held is not None:
                yield held
                if self._clock() >= self._until:
                    return
                continue
            with self._changed:
                left = min(patient, self._until) - self._clock()
                if left <= 0 or not self._changed.wait_for(self._any_ready, left):
                    return

    def ahead(self, owner: Owner, more: bool = False) -> Ahead:
        """What is known to come after the queries that were taken; `more` where the log has more of them."""
        line = self._lines.get(owner)
        if more or (line is not None and line[0].ready):
            return Ahead.READY
        return Ahead.NOTHING if line is None else Ahead.DECODING

    def holds(self, owner: Owner) -> bool:
        """Whether a line has records."""
        return owner in self._lines

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def full(self) -> bool:
        """Whether no more should be polled."""
        held = (len(one.record.value or b"") for line in self._lines.values() for one in line)
        return sum(held) >= self._most_bytes

    def close(self) -> None:
        """Forgets everything. A picture that is being decoded is waited for only briefly."""
        with self._changed:
            self._closed = True
            self._lines.clear()
            self._encoded.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(END_SECONDS)

    def _any_ready(self) -> bool:
        return any(line[0].ready for line in self._lines.values())

    def _pop(self) -> Held[Owner] | None:
        with self._changed:
            for owner, line in self._lines.items():
                if line[0].ready:
                    held = line.popleft()
                    del self._lines[owner]
                    if line:  # behind all others: lines take turns
                        self._lines[owner] = line
                    return held
        return None

    # -- in the threads ---------------------------------------------------------------------------------

    def _decode(self) -> None:
        while (found := self._next()) is not None:
            held, query = found
            began = self._clock()
            admit = self._admitted(query)
            with self._changed:
                held.admit, held.ready = admit, True
                if held.owner in self._spent:
                    self._spent[held.owner] += self._clock() - began
                self._changed.notify_all()

    def _next(self) -> tuple[Held[Owner], Query] | None:
        """The first picture of the line that has had least; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._encoded)
            if self._closed:
                return None
            owner = min(self._encoded, key=self._spent.__getitem__)
            found = self._encoded[owner].popleft()
            if not self._encoded[owner]:
                del self._encoded[owner]
            return found

    def _admitted(self, query: Query) -> Callable[[Query], Query]:
        try:
            admitted = self._admit(query)
        except BaseException as error:  # noqa: BLE001 - raised again where the record is taken, by the loop
            return partial(_raise, error)
        return lambda _: admitted


def _raise(error: BaseException, _: Query) -> Query:
    raise error
