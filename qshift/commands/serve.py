"""`qshift serve`: the service in the foreground, until a signal."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from core.errors import ConfigError
from monitoring.logs import set_up
from qshift.commands.options import CONSOLE, ConfigFile
from qshift.terminal.counts import counted

if TYPE_CHECKING:
    from core.config import Config
    from qshift.service import Service

PUBLISHED = ("qshift", "change-me", "a secret of your own")
"""Keys of labels that everybody can read: the default, and those of examples, now or before."""
EXAMPLES = "Example:\n\n`qshift serve --config qshift.toml`"


def serve(
    config: ConfigFile = None,
    worker: Annotated[
        str | None, typer.Option(help="Name of this worker in the consumer group, else host and process.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on where state and journal contradict each other.")
    ] = False,
) -> None:
    """Answer queries from Kafka and adapt, until SIGTERM or Ctrl-C."""
    raise typer.Exit(run(config, worker, log_level, CONSOLE, accept_loss))


def check_key(config: Config) -> None:
    """Raises ConfigError where queries are sampled by a key that stands in our own source or pages."""
    if config.labels.rate > 0 and config.labels.key in PUBLISHED:
        raise ConfigError(
            "labels.key is the default or an example, which everybody knows who may then choose what is "
            "measured: set labels.key, key_file or key_env to a secret of your own, or labels.rate = 0 to "
            "measure nothing"
        )


class _Interrupted(BaseException):
    """A signal came before there was anything to end in order."""


class _Signals:
    """The first one ends in order, after the batch in hand, and while loading at once. A second ends all."""

    def __init__(self) -> None:
        self.service: Service | None = None
        self._seen = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._come)

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            sys.stdout.flush()
            os._exit(128 + number)  # an exception could be lost in the client's own handlers
        self._seen = True
        if self.service is None:
            raise _Interrupted
        self.service.request_stop()


def run(
    config_file: Path | None, worker: str | None, log_level: str, console: Console, accept_loss: bool = False
) -> int:
    """Runs until SIGTERM or Ctrl-C; a second signal ends at once.

    Raises:
        ConfigError: no Kafka named.
    """
    from core.config_file import load_connected

    config = load_connected(config_file)
    check_key(config)
    if accept_loss:
        state = config.state.model_copy(update={"accept_loss": True})
        config = config.model_copy(update={"state": state})
    set_up(log_level)
    signals = _Signals()
    try:
        with console.status("loading base model and gallery"):
            from qshift.service import Service  # its imports take seconds: a signal must be heard meanwhile

            service = Service(config, worker=worker)
        signals.service = service
    except _Interrupted:
        console.print("stopped while loading: nothing was read or answered")
        sys.stdout.flush()
        os._exit(0)  # what is half built cannot be closed in order, and holds nothing
    console.print(f"serving; live page {service.url or 'off'}")
    try:
        report = service.run()
    finally:
        service.close()
    logging.getLogger("qshift").info("stopped", extra={"queries": report.queries})
    console.print(
        f"stopped after {counted(report.queries, 'query', 'queries')}, "
        f"{counted(report.dead_letters, 'dead letter')}, {counted(report.checkpoints, 'checkpoint')}; "
        f"state {report.state_sha256[:16]}"
    )
    if report.unsaved:
        console.print(
            "without a last checkpoint, because it could not be delivered: the next start continues from the "
            f"newest one and answers again what came after it ({report.unsaved})"
        )
    return 0
