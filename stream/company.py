"""How long a query waits for others to share its batch: as long as others may be expected.

Where a lane's queries come close to one another each batch waits for `linger_seconds` after its first query.
Where they come one by one nobody would join it in that time: then the batch is closed as soon as
`lone_seconds` have brought nothing, and nothing is known to be on its way. The journal has the boundary, so
that a later run repeats it, whoever is expected then.
"""

from __future__ import annotations

from enum import Enum

from core.batching import BatchConfig

PATIENCE = 40
"""How many times longer a batch may wait while more is known to be in the log."""
WEIGHT = 0.25
"""Of the newest interval in the usual one: after a crowd the third lone query is known for one."""
EXPECTED = 0.5
"""Others are expected where the usual interval is a smaller part of `linger_seconds`: two, then."""


class Ahead(Enum):
    """What is known to stand behind the queries that wait."""

    NOTHING = 0
    DECODING = 1
    """A picture is being decoded, and what it holds up."""
    READY = 2
    """Records that wait for nothing but to be taken."""


class Company:
    """When the queries of a lane came."""

    def __init__(self) -> None:
        self._usual = 0.0  # nothing is known yet: others are expected
        self._newest: float | None = None

    def came(self, now: float, config: BatchConfig) -> None:
        """A query came; one pause counts for `linger_seconds` at most, so that a crowd is expected again."""
        if self._newest is not None:
            interval = min(max(now - self._newest, 0.0), config.linger_seconds)
            self._usual += WEIGHT * (interval - self._usual)
        self._newest = now

    def until(self, first: float, config: BatchConfig, ahead: Ahead) -> float:
        """Seconds of the clock at which a batch that is not full ends.

        Args:
            first: when the first of its queries came.
            ahead: while records are ready, what waits is short of a poll rather than of company: it may wait
                longer then, or a busy worker would form a small batch after every full one.
        """
        if ahead is Ahead.READY:
            return first + config.linger_seconds * PATIENCE
        if ahead is Ahead.DECODING or self._usual < EXPECTED * config.linger_seconds:
            return first + config.linger_seconds
        newest = first if self._newest is None else self._newest
        return min(first + config.linger_seconds, newest + config.lone_seconds)
