"""Keeps the loggers of kafka-python from telling secrets, and the same thing ten times a second."""

from __future__ import annotations

import logging
import time

SAY_SECONDS = 60.0
"""Between two lines about the same lasting trouble."""
REPETITIVE = (
    "kafka.cluster",
    "kafka.net.sasl.plain",
    "kafka.net.sasl.scram",
    "kafka.producer.producer_batch",
    "kafka.producer.record_accumulator",
    "kafka.producer.sender",
)
"""Loggers of the client that tell of every attempt."""


def quiet() -> None:
    """Keeps the client's own loggers at WARNING: at DEBUG they print passwords, keys, values and headers.

    What it was asking for when it was closed is no error, though it says so. What it tries again ten times a
    second, where a topic is gone, is said once a minute.
    """
    client = logging.getLogger("kafka")
    if client.level < logging.WARNING:
        client.setLevel(logging.WARNING)
    logging.getLogger("kafka.cluster").addFilter(_not_cancelled)
    for name in REPETITIVE:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Seldom) for one in logger.filters):
            logger.addFilter(_Seldom())


def _not_cancelled(record: logging.LogRecord) -> bool:
    return not record.getMessage().endswith("failed Cancelled")


class _Seldom(logging.Filter):
    """Lets a text through once a minute, whatever was put into it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, text = time.monotonic(), str(record.msg)
        if now - self._said.get(text, float("-inf")) < SAY_SECONDS:
            return False
        self._said[text] = now
        return True
