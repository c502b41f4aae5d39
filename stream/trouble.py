"""Whether deliveries fail, and of which partitions nothing has been delivered since."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from core.errors import DeliveryError
from core.records import Partition
from stream.events import Delivering, Tell
from stream.patience import Backoff

log = logging.getLogger("qshift.runner")


class Trouble:
    """Begins with a failed delivery; ends when every partition has delivered again.

    Args:
        tell: of its beginning and its end.
        clock: in seconds.
    """

    def __init__(self, backoff: Backoff, tell: Tell, clock: Callable[[], float]) -> None:
        self.reason = ""
        self._backoff, self._tell, self._clock = backoff, tell, clock
        self._resumed = 0.0
        self._owing: set[Partition] = set()

    def __bool__(self) -> bool:
        return bool(self.reason)

    def failed(self, error: DeliveryError, assigned: Iterable[Partition]) -> float:
        """A delivery failed; returns the seconds to wait.

        What the attempt itself has waited counts: one that Kafka refuses at once (a full disk) is made
        seldom, while one that has waited for Kafka to come back goes on waiting, and sees it come.
        """
        self._owing.update(assigned)
        now = self._clock()
        if not self.reason:
            self._tell(Delivering(False))
            self._resumed = now
        self.reason = str(error)
        pause = max(0.0, self._backoff.next() - max(0.0, now - self._resumed))
        self._resumed = now + pause
        log.warning(
            "delivery failed, continuing from the newest checkpoint",
            extra={"error": str(error), "pause": pause},
        )
        return pause

    def delivered(self, partition: Partition) -> None:
        """A checkpoint of the partition is durable, or it has nothing to deliver."""
        self._owing.discard(partition)
        if self.reason and not self._owing:
            self.reason = ""
            self._backoff.reset()
            self._tell(Delivering(True))

    def keep(self, assigned: frozenset[Partition]) -> None:
        """What is ours no longer owes nothing."""
        self._owing &= assigned
