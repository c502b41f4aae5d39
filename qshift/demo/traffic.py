"""A client's side of the stream: queries out, answers in, late labels back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from core.config import KafkaConfig
from core.errors import QshiftError
from core.records import Coordinates
from qshift.replay.schedule import Item
from qshift.terminal.counts import counted
from stream import codec
from stream.client import QueryClient

LABEL_DELAY = 96
"""A label is sent when so many later answers have come."""
IDLE_SECONDS = 120.0


class Traffic:
    """Keeps account of what was sent and answered.

    Args:
        client: connected to the topics.
        labels: whether to send the labels that answers ask for.
    """

    def __init__(self, client: QueryClient, topics: KafkaConfig, labels: bool = True) -> None:
        self._client, self._topics, self._labels = client, topics, labels
        self._waiting: dict[Coordinates, tuple[Item, int]] = {}
        self._due: deque[tuple[int, Coordinates, str]] = deque()
        self._last = time.monotonic()
        self.sent = 0
        self.answers: dict[Coordinates, bytes] = {}
        self.latency_ms: dict[Coordinates, float] = {}

    @property
    def waiting(self) -> int:
        """Queries that have no answer yet."""
        return len(self._waiting)

    def send(self, items: Iterable[Item]) -> int:
        """Sends a burst and returns how many there were, once their places in the log are known."""
        now = time.time_ns() // 1_000_000
        going = [(item, self._client.send(item.value, item.headers)) for item in items]
        for item, sent in going:
            self._waiting[sent.coordinates()] = (item, now)
        self.sent += len(going)
        self._last = time.monotonic()
        return len(going)

    def receive(self, budget_seconds: float) -> int:
        """Takes new answers in, and sends the labels that are due; returns how many answers were new.

        Raises:
            QshiftError: queries wait, and nothing has come for two minutes.
        """
        new = 0
        for record in self._client.answers(budget_seconds):
            answer = codec.decode_answer(record.value or b"")
            found = self._waiting.pop(answer.source, None)
            if found is None:
                continue  # of another client, or a duplicate after a restart
            item, sent_ms = found
            new += 1
            self.answers[answer.source] = record.value or b""
            self.latency_ms[answer.source] = record.timestamp_ms - sent_ms
            if self._labels and answer.label_wanted and item.label:
                self._due.append((len(self.answers) + LABEL_DELAY, answer.source, item.label))
        if new:
            self._last = time.monotonic()
        elif self._waiting and time.monotonic() - self._last > IDLE_SECONDS:
            raise QshiftError(
                f"{counted(self.waiting, 'query', 'queries')} had no answer for {IDLE_SECONDS:.0f} s: is "
                f"`qshift serve` running? Refused queries are in {self._topics.dead_letters}"
            )
        self._send_labels(len(self.answers))
        return new

    def finish(self) -> None:
        """Sends every label that is left; returns when all is stored."""
        self._send_labels(None)
        self._client.flush()

    def _send_labels(self, answered: int | None) -> None:
        while self._due and (answered is None or self._due[0][0] <= answered):
            _, at, label = self._due.popleft()
            self._client.label(codec.label(at, label), str(at).encode())
