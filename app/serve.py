"""`qshift serve`: the service in the foreground, until a signal."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from rich.console import Console

from app.service import Service
from core.config import load_connected
from monitoring.logs import set_up


def serve(config_file: Path | None, worker: str, log_level: str, console: Console) -> int:
    """Runs until SIGTERM or Ctrl-C; a second signal ends at once.

    Raises:
        ConfigError: no Kafka named.
    """
    config = load_connected(config_file)
    set_up(log_level)
    with console.status("loading base model and gallery"):
        service = Service(config, worker=worker)

    def stop(number: int, frame: object) -> None:
        if service.stopping:
            sys.exit(128 + number)
        service.request_stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    console.print(f"serving; live page {service.url or 'off'}")
    try:
        report = service.run()
    finally:
        service.close()
    logging.getLogger("qshift").info("stopped", extra={"queries": report.queries})
    console.print(
        f"stopped after {report.queries} queries, {report.dead_letters} dead letters, {report.cuts} cuts; "
        f"state {report.state_sha256[:16]}"
    )
    return 0
