"""Whether a topic is still the one that we began with, and not another of its name."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from core.errors import OffsetGoneError

RECOGNISED_SECONDS = 1.0
"""How long a topic counts as the one it was when last asked."""
ANEW = "state and journal belong to the old one; name new ones (kafka.state, kafka.journal), or delete them"


class TopicIdentity:
    """The id of a topic, as its consumer learns it from the broker. Brokers before 2.8 give none."""

    def __init__(self, consumer: Any, topic: str) -> None:
        self._consumer, self._topic = consumer, topic
        self._first, self._recognised = self._now(), float("-inf")

    def __str__(self) -> str:
        """The id; "" where there is none."""
        return "" if self._first is None else str(self._first)

    def recognised(self, asks: bool) -> bool:
        """Whether the topic is known to be the one we began with; its records wait until it is.

        A topic that was deleted and made again counts its offsets anew: ours mean nothing there. The client
        asks by name and hands out the new one's records before it has noticed, so that where there are
        records it is asked, once a second.
        """
        began = time.monotonic()
        if asks and self._first is not None and began - self._recognised >= RECOGNISED_SECONDS:
            update = self._consumer._cluster.request_update()
            while not update.is_done and time.monotonic() - began < RECOGNISED_SECONDS:
                time.sleep(0.001)
            if update.succeeded() and self._now() is not None:
                self._recognised = began
        found = self._now()
        self._first = self._first or found
        if found is not None and found != self._first:
            raise OffsetGoneError(f"the topic {self._topic} was made anew: {ANEW}")
        return not asks or self._first is None or began - self._recognised < RECOGNISED_SECONDS

    def _now(self) -> UUID | None:
        """None before Kafka 2.8, or while the topic is gone."""
        found = self._consumer._cluster.topic_id(self._topic)
        return found if found is not None and found.int else None
