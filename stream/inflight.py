"""What is on its way to Kafka: how many bytes are not acknowledged, and what became of what was sent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any


class Inflight:
    """Bytes that are not acknowledged yet, over all producers of one sink, with a limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.bytes = 0
        self._limit = limit_bytes
        self.changed = threading.Condition()

    def take(self, size: int, budget_seconds: float) -> bool:
        """Waits until `size` more fit. A record larger than the limit passes alone."""
        with self.changed:
            if not self.changed.wait_for(
                lambda: self.bytes == 0 or self.bytes + size <= self._limit, budget_seconds
            ):
                return False
            self.bytes += size
            return True

    def give(self, size: int) -> None:
        with self.changed:
            self.bytes -= size
            self.changed.notify_all()


class Epoch:
    """One producer and what became of everything sent through it."""

    def __init__(self, producer: Any, inflight: Inflight) -> None:
        self.producer = producer
        self._waiting: Counter[str] = Counter()
        self.failed = 0
        self.first_error: BaseException | None = None
        self._inflight = inflight

    def watch(
        self, topic: str, future: Any, size: int, refused: Callable[[BaseException], None]
    ) -> None:  # fmt: skip
        """Follows a record of so many bytes; `refused` is told why Kafka does not take it."""
        with self._inflight.changed:
            self._waiting[topic] += 1
        future.add_callback(lambda _: self._settle(topic, size, None))

        def failed(error: BaseException) -> None:
            # The client then fails all that is on its way with the same error: only the first one's is true.
            if not self.failed:
                refused(error)
            self._settle(topic, size, error)

        future.add_errback(failed)

    @property
    def pending(self) -> int:
        """Records on their way."""
        return self._waiting.total()

    def topics(self) -> list[str]:
        """Where they are going."""
        with self._inflight.changed:
            return [topic for topic, count in self._waiting.items() if count]

    def _settle(self, topic: str, size: int, error: BaseException | None) -> None:
        with self._inflight.changed:
            self._waiting[topic] -= 1
            if error is not None:
                self.failed += 1
                self.first_error = self.first_error or error
        self._inflight.give(size)

    def settled(self, budget_seconds: float) -> bool:
        """Waits until nothing is on its way; False when the budget is over."""
        with self._inflight.changed:
            return self._inflight.changed.wait_for(lambda: self.pending == 0, budget_seconds)
