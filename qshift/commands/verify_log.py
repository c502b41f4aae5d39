"""`qshift verify-log`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qshift.commands.options import CONSOLE, ConfigFile, check_files
from qshift.terminal.counts import counted
from qshift.terminal.sheet import Head, Sheet

if TYPE_CHECKING:
    from stream.history.findings import Verdict

EXAMPLES = (
    "Examples:\n\n`qshift verify-log --config qshift.toml`\n\n"
    "`qshift verify-log -c qshift.toml --partition 3 --json verdict.json`"
)
SHOWN = 3
"""Places that the table names for each kind."""


def verify_log(
    partition: Annotated[
        list[int] | None, typer.Option(help="Of the queries; all without it. May be repeated.")
    ] = None,
    config: ConfigFile = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the verdict here, with the first 20 of each kind.")
    ] = None,
) -> None:
    """Check a service's topics: was each query answered once, from a state that the journal knows?

    Reads queries, answers, dead letters, journal and state, also of a service that runs, and writes nothing.
    Exit status: 0 nothing found, 1 violations, 3 nothing found but a part cannot be decided any more.
    """
    from core.config_file import load_connected

    settings = load_connected(config)
    check_files(None, (json_file,))
    from core.errors import ConfigError
    from qshift.terminal.bars import bars, reporter
    from stream.history.verify import verify
    from stream.recording import KafkaLog

    if settings.state.store != "changelog":
        raise ConfigError(
            'verify-log reads state and journal from Kafka, and state.store = "directory" keeps them in a '
            'folder: it checks services with state.store = "changelog"'
        )
    with (
        bars(CONSOLE) as progress,
        KafkaLog(settings.kafka.bootstrap_servers, settings.kafka.security) as log,
    ):
        verdict = verify(log, settings.kafka, partition or (), reporter(progress))
    if json_file is not None:
        json_file.write_text(json.dumps(verdict.document(), indent=2) + "\n")
    show(verdict)
    raise typer.Exit(verdict.status)


def show(verdict: Verdict) -> None:
    """The verdict as a table, what cannot be decided below it."""
    from stream.history.findings import MEANINGS

    read = (
        counted(verdict.queries, "query", "queries"), counted(verdict.answers, "answer"),
        f"{verdict.repeated} of them repeated", counted(verdict.dead_letters, "dead letter"),
        counted(verdict.batches, "batch", "batches"), counted(verdict.checkpoints, "checkpoint"),
    )  # fmt: skip
    sheet = Sheet("Log", [Head("finding", left=True), Head("count"), Head("meaning", 1, left=True)])
    for kind, count in verdict.counts().items():
        sheet.add(kind, str(count), MEANINGS[kind], dim=not count)
        if kind == "broken-chain":
            sheet.rule()
    sheet.print(CONSOLE)
    CONSOLE.print("Read: " + ", ".join(read), highlight=False, soft_wrap=True)
    for kind, places in verdict.examples.items():
        for words in places[:SHOWN]:
            CONSOLE.print(f"{kind}: {words}", highlight=False, markup=False, soft_wrap=True)
    for sentence, count in verdict.undecided.items():
        CONSOLE.print(f"cannot be decided: {count} {sentence}", highlight=False, soft_wrap=True)
    CONSOLE.print(("clean", "violations", "", "nothing found, but a part cannot be decided")[verdict.status])
