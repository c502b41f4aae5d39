"""Observers in a thread of their own: whatever they do, answers do not wait for it and do not end with it.

One thread and one queue in order, so that every observer sees outcomes, labels and refusals as they came, and
figures depend on that order alone. The queue is bounded: labels beyond it are dropped and counted, and so
are outcomes, of which far fewer wait. An observer that raises is logged and counted; the others still see
everything. Only the live service is watched like this: in offline runs an error of an observer is an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from core.protocols import Observer, Operations
from core.types import Judgement, Outcome, Refusal

log = logging.getLogger("qshift.observers")
MOST_LABELS = 10_000
"""Labels that may wait to be judged."""
MOST_OUTCOMES = 256
"""Batches and refusals that may wait: each holds its features."""
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

    def tell(self, name: str, message: str, error: Exception | None = None) -> None:
        self.counts[name] += 1
        self._count(name)
        now = time.monotonic()
        if now - self._said.get(name, -SAY_SECONDS) >= SAY_SECONDS:
            self._said[name] = now
            log.error(message, extra={"observer": name, "times": self.counts[name]}, exc_info=error)


class Aside:
    """The one observer that the loop sees; it hands everything on in a thread of its own.

    Args:
        observers: who is told, in this order.
        errors: where their errors go.
        dropped: called with how many labels were dropped.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        errors: Errors,
        dropped: Callable[[int], None] = lambda _: None,
        most_labels: int = MOST_LABELS,
        most_outcomes: int = MOST_OUTCOMES,
    ) -> None:
        self._observers, self._errors, self._dropped = observers, errors, dropped
        self._most_labels, self._most_outcomes = most_labels, most_outcomes
        self._waiting: deque[Seen] = deque()
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

    def _put(self, seen: Seen) -> None:
        label = isinstance(seen, Judgement)
        with self._changed:
            others = len(self._waiting) - self._labels
            if self._labels >= self._most_labels if label else others >= self._most_outcomes:
                full = True
            else:
                full = False
                self._labels += label
                self._waiting.append(seen)
                self._changed.notify_all()
        if full and label:
            self._dropped(1)
        elif full:
            self._errors.tell("queue", "observers are too slow: what they should see is dropped")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                seen = self._waiting.popleft()
                self._labels -= isinstance(seen, Judgement)
                self._busy = 1
            for observer in self._observers:
                try:
                    _show(observer, seen)
                except Exception as error:  # noqa: BLE001  said and counted; the others still see it
                    self._errors.tell(type(observer).__name__, "an observer failed", error)
            with self._changed:
                self._busy = 0
                self._changed.notify_all()


def _show(observer: Observer, seen: Seen) -> None:
    match seen:
        case Outcome():
            observer.observe(seen)
        case Judgement():
            observer.judge(seen)
        case _:
            observer.refuse(seen)


class SafeOperations:
    """Operations that may fail without the run: what they raise is said and counted."""

    def __init__(self, operations: Operations, errors: Errors) -> None:
        self._operations, self._errors = operations, errors

    def cut(self, size_bytes: int) -> None:
        self._safe(lambda: self._operations.cut(size_bytes))

    def restored(self, seconds: float) -> None:
        self._safe(lambda: self._operations.restored(seconds))

    def recovered(self) -> None:
        self._safe(self._operations.recovered)

    def rebalanced(self) -> None:
        self._safe(self._operations.rebalanced)

    def _safe(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # noqa: BLE001  said and counted
            self._errors.tell(type(self._operations).__name__, "an observer failed", error)
