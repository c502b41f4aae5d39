"""Structured logging: one JSON object per line, from the standard library."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_OWN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as JSON: time (UTC, ISO 8601), level, logger, message, and whatever came as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update((key, value) for key, value in vars(record).items() if key not in _OWN)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def set_up(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends all logs to one stream (stderr) as JSON lines; calling it again replaces the handler.

    `kafka` is held at WARNING: its debug log prints keys, values and headers.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, JsonFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("qshift").setLevel(level)
    # Libraries tell at INFO what reads like a fault and is none, such as a kernel that is not there.
    root.setLevel(max(logging.WARNING, logging.getLogger("qshift").level))
    for noisy in ("kafka", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(root.level)
