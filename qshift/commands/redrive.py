"""`qshift redrive`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from qshift.commands.options import CONSOLE, ConfigFile
from qshift.terminal.counts import counted

if TYPE_CHECKING:
    from core.config import KafkaConfig

EXAMPLES = (
    "Examples:\n\n`qshift redrive --config qshift.toml --dry-run`\n\n"
    "`qshift redrive -c qshift.toml --stage fetch --from 2026-11-22T08:00 --rate 50`"
)
FOR_EVER = 2**63 - 1
FLUSH = 100
"""Records that are stored together: so many may be sent twice after a loss of power."""


def redrive(
    stage: Annotated[
        list[str] | None, typer.Option(help="Only these stages of failure. May be repeated.")
    ] = None,
    error: Annotated[
        list[str] | None, typer.Option(help="Only these classes of error. May be repeated.")
    ] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="TIME", help="Letters written from here on: 2026-11-22T08:00Z.")
    ] = "",
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="And before this.")] = "",
    attempts: Annotated[int, typer.Option(help="Leave out what was tried so often.", min=1)] = 3,
    rate: Annotated[float, typer.Option(help="Records a second.", min=0.1, max=10_000)] = 200.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    config: ConfigFile = None,
) -> None:
    """Send dead letters back to their topic and partition, with their original bytes.

    What was sent back before is left out, so the command may be repeated and interrupted. Mend the cause
    first: a query that fails again becomes a dead letter again.
    """
    from core.config_file import load_connected
    from core.errors import ConfigError, Stage

    settings = load_connected(config)
    unknown = sorted(set(stage or ()) - set(get_args(Stage)))
    if unknown:
        raise ConfigError(f"no stage {unknown[0]!r}: one of {', '.join(get_args(Stage))}")
    from qshift.terminal.bars import bars, reporter
    from stream.recording import KafkaLog
    from stream.redrive import Redriven, Wanted, redrive

    wanted = Wanted(
        frozenset(stage or ()), frozenset(error or ()), _moment(start, 0), _moment(end, FOR_EVER), attempts
    )
    kafka, found = settings.kafka, Redriven()
    back = _Back(kafka, settings.limits.message_bytes, rate, dry_run)
    try:
        with bars(CONSOLE) as progress, KafkaLog(kafka.bootstrap_servers, kafka.security) as log:
            redrive(log, kafka, wanted, back, found, reporter(progress))
        back.flush()
    finally:
        back.close()
        what = "would be sent back" if dry_run else "sent back"
        by = "".join(f", {count} at {name}" for name, count in sorted(found.stages.items()))
        CONSOLE.print(f"{counted(found.sent, 'dead letter')} {what}{by}", highlight=False, soft_wrap=True)
        for reason, count in found.left.items():
            CONSOLE.print(f"{count} left: {reason}", highlight=False, soft_wrap=True)


class _Back:
    """Sends at a rate, and not at all in a dry run."""

    def __init__(self, kafka: KafkaConfig, message_bytes: int, rate: float, dry: bool) -> None:
        from stream.sink import KafkaSink

        self._sink = KafkaSink(kafka.bootstrap_servers, kafka, message_bytes)
        self._rate, self._dry, self._sent, self._began = rate, dry, 0, time.monotonic()

    def __call__(
        self, topic: str, partition: int, value: bytes | None, key: bytes | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> None:  # fmt: skip
        if self._dry:
            return
        self._sink.emit_to(topic, value, key, headers, partition)
        self._sent += 1
        time.sleep(max(0.0, self._began + self._sent / self._rate - time.monotonic()))
        if self._sent % FLUSH == 0:
            self.flush()

    def flush(self) -> None:
        self._sink.flush(60.0)

    def close(self) -> None:
        self._sink.close()


def _moment(text: str, default: int) -> int:
    """Milliseconds since 1970."""
    from core.errors import ConfigError
    from qshift.replay.recorded import mark

    if not text:
        return default
    offset, moment = mark(text)
    if moment is None:
        raise ConfigError(f"{offset} is no time: expected 2026-11-22T08:00:00Z or milliseconds since 1970")
    return moment
