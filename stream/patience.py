"""How long a call waits for Kafka, and how long the loop waits between two attempts."""

from __future__ import annotations

import threading
import time

HURRY_SECONDS = 3.0
"""What a stop leaves to a call that waits: a lost last checkpoint costs a few repeated answers."""
BACKOFF_SECONDS = (0.5, 30.0)
"""First and longest pause between two recoveries."""


class Patience:
    """Time that one call may take; little of it once `hurry` is set.

    Args:
        seconds: in all.
        hurry: set when the service is to stop.
    """

    def __init__(self, seconds: float, hurry: threading.Event | None = None) -> None:
        self._deadline, self._hurry = time.monotonic() + seconds, hurry

    def left(self) -> float:
        """Seconds, at least 0."""
        now = time.monotonic()
        if self._hurry is not None and self._hurry.is_set():
            self._deadline, self._hurry = min(self._deadline, now + HURRY_SECONDS), None
        return max(0.0, self._deadline - now)

    def shorten(self, seconds: float) -> None:
        """Leaves so much time at most, from now on."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def pause(self, seconds: float) -> None:
        """Waits so long, or as long as there is time, or until it is time to hurry."""
        if self._hurry is None:
            time.sleep(min(seconds, self.left()))
        else:
            self._hurry.wait(min(seconds, self.left()))


class Backoff:
    """Pauses that double until something has succeeded."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first, self._longest = first_seconds, longest_seconds
        self._next = first_seconds

    def next(self) -> float:
        """Seconds to wait now."""
        pause, self._next = self._next, min(2 * self._next, self._longest)
        return pause

    def reset(self) -> None:
        self._next = self._first
