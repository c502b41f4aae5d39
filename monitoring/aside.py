"""Observers in a thread of their own: whatever they do, answers do not wait for it and do not end with it.

One thread and one queue in order, so that every observer sees outcomes, labels and refusals as they came, and
figures depend on that order alone. The queue is bounded by number and by bytes: what comes beyond is dropped
and counted. An observer that raises, whatever it raises, is logged and counted, and switched off when it does
nothing else; the others see everything.
Only the live service is watched like this: in offline runs an error of an observer is an error.

What the loop's thread does here takes no lock that is held while an observer works.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from core.protocols import Observer
from core.records import Judgement, Refusal
from core.types import Encoded, Hits, Outcome, Query, QueryBatch, Twin

log = logging.getLogger("qshift.observers")
MOST_LABELS = 10_000
"""Labels that may wait to be judged."""
MOST_OUTCOMES = 256
"""Batches and refusals that may wait."""
MOST_BYTES = 128 * 2**20
"""All that waits may hold so much: a batch holds its features, its scores and its pictures."""
MOST_FAILURES = 20
"""In a row: then an observer sees nothing more until the next start."""
SAY_SECONDS = 60.0
Seen = Outcome | Judgement | Refusal


class Errors:
    """Counts what went wrong by the name of who did it, and says it, at most once a minute each.

    Args:
        count: called with the name at every error, to show it.
    """

    def __init__(self, count: Callable[[str], None] = lambda _: None) -> None:
        self.counts: Counter[str] = Counter()
        self._count = count
        self._said: dict[str, float] = {}

    def tell(self, name: str, message: str, error: BaseException | None = None) -> None:
        """Counts one error and says it."""
        self.counts[name] += 1
        try:
            self._count(name)
        except BaseException:  # noqa: BLE001  `counts` has it, and the line is said
            self.say("count", "an error could not be counted")
        self.say(name, message, error)

    def say(self, name: str, message: str, error: BaseException | None = None) -> None:
        """Says something without counting it."""
        now = time.monotonic()
        if now - self._said.get(name, -SAY_SECONDS) >= SAY_SECONDS:
            self._said[name] = now
            log.error(message, extra={"observer": name, "times": self.counts[name]}, exc_info=error)

    def guarded(self, name: str, call: Callable[[], None]) -> bool:
        """Calls something that may fail; what it raises is counted under the name, and goes no further.

        Returns whether it succeeded.

        SystemExit and KeyboardInterrupt too: signals end the service by `request_stop`, not by an exception.
        """
        try:
            call()
        except BaseException as error:  # noqa: BLE001  said and counted
            self.tell(name, "an observer failed", error)
            return False
        return True


class Aside:
    """The one observer that the loop sees; it hands everything on in a thread of its own.

    Args:
        observers: who is told, in this order.
        errors: where their errors go.
        dropped: called in the loop's thread with the kind of each thing that is dropped: "outcome",
            "refusal" or "label". It must not wait for an observer.
        most_labels, most_outcomes: how many may wait; outcomes and refusals count together.
        switched_off: told the name of an observer that failed `MOST_FAILURES` times in a row.
        most_bytes: how much all of it may hold, with what is being shown. One that is larger than that is
            taken where nothing else is held.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        errors: Errors,
        dropped: Callable[[str], None] = lambda _: None,
        most_labels: int = MOST_LABELS,
        most_outcomes: int = MOST_OUTCOMES,
        most_bytes: int = MOST_BYTES,
        switched_off: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._failures: Counter[int] = Counter()
        self._switched_off = switched_off
        self._observers, self._errors, self._dropped = observers, errors, dropped
        self._most_labels, self._most_outcomes, self._most_bytes = most_labels, most_outcomes, most_bytes
        self._bytes = 0
        self._waiting: deque[tuple[Seen, int]] = deque()
        self._labels = self._busy = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="qshift-observers", daemon=True)
        self._thread.start()

    def observe(self, outcome: Outcome) -> None:
        self._put(outcome)

    def refuse(self, refusal: Refusal) -> None:
        self._put(refusal)

    def judge(self, judgement: Judgement) -> None:
        self._put(judgement)

    def drain(self, budget_seconds: float) -> bool:
        """Returns True as soon as nothing waits, False when the budget is over."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, budget_seconds)

    def close(self, budget_seconds: float = 5.0) -> None:
        """Shows what still waits, for a while, and ends the thread."""
        self.drain(budget_seconds)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(budget_seconds)

    @property
    def held_bytes(self) -> int:
        """What waits or is being shown."""
        return self._bytes

    def _put(self, seen: Seen) -> None:
        label, size = isinstance(seen, Judgement), held_bytes(seen)
        with self._changed:
            others = len(self._waiting) - self._labels
            full = self._labels >= self._most_labels if label else others >= self._most_outcomes
            full = full or (self._bytes > 0 and self._bytes + size > self._most_bytes)
            if not full:
                self._labels += label
                self._bytes += size
                self._waiting.append((seen, size))
                self._changed.notify_all()
        if full:
            self._dropped(type(seen).__name__.lower().replace("judgement", "label"))
            self._errors.say("queue", "observers are too slow: what they should see is dropped")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                seen, size = self._waiting.popleft()
                self._labels -= isinstance(seen, Judgement)
                self._busy = 1
            for number, observer in enumerate(self._observers):
                self._tell(number, observer, seen)
            del seen  # else it lives on for as long as nothing comes
            with self._changed:
                self._busy = 0
                self._bytes -= size
                self._changed.notify_all()

    def _tell(self, number: int, observer: Observer, seen: Seen) -> None:
        if self._failures[number] >= MOST_FAILURES:
            return
        name = type(observer).__name__
        if self._errors.guarded(name, lambda: _show(observer, seen)):
            self._failures[number] = 0
            return
        self._failures[number] += 1
        if self._failures[number] == MOST_FAILURES:
            log.error("observer switched off until the next start", extra={"observer": name})
            self._errors.guarded(name, lambda: self._switched_off(name))


def held_bytes(seen: Seen) -> int:
    """What a thing that waits keeps alive: arrays (each once, a view as its whole), pictures, texts."""
    return _held(seen, set())


def _held(value: Any, known: set[int]) -> int:
    match value:
        case bytes() | str():
            return len(value)
        case np.ndarray():
            while isinstance(value.base, np.ndarray):
                value = value.base
            if id(value) in known:
                return 0
            known.add(id(value))
            return int(value.nbytes)
        case tuple() | list():
            return sum(_held(entry, known) for entry in value)
        case Mapping():
            return sum(_held(entry, known) for entry in value.values())
        case Outcome():
            return sum(_held(getattr(value, name), known) for name in _HEAVY)
        case Query():
            parts = (value.content, value.prepared, value.repaired_prepared)
            return _SMALL + sum(_held(part, known) for part in parts)
        case Twin() | Encoded() | Hits():
            return sum(_held(getattr(value, part.name), known) for part in fields(value))
        case Judgement():
            return _SMALL + len(value.label)
        case Refusal():
            return _SMALL + len(value.record.value or b"") + len(value.record.key or b"") + len(value.reason)
        case QueryBatch():
            return _held(value.queries, known)
        case _:
            return int(getattr(value, "nbytes", 0))  # a tensor


_SMALL = 500
"""Coordinates and the object itself, about."""
_HEAVY = tuple(part.name for part in fields(Outcome) if part.name not in ("step", "seconds"))


def _show(observer: Observer, seen: Seen) -> None:
    match seen:
        case Outcome():
            observer.observe(seen)
        case Judgement():
            observer.judge(seen)
        case _:
            observer.refuse(seen)
