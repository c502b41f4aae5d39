"""`qshift broker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, DATA

app = typer.Typer(help="A single-node Apache Kafka without Docker.", no_args_is_help=True)
KafkaDir = Annotated[Path, typer.Option("--dir", help="Data directory of the embedded Kafka.")]


@app.command("up", epilog="Example:\n\n`qshift broker up --port 9092`")
def up(directory: KafkaDir = DATA / "kafka", port: Annotated[int | None, typer.Option()] = None) -> None:
    """Start Kafka in the background; it stays up until `qshift broker down`."""
    from stream import embedded

    with CONSOLE.status("Apache Kafka"):
        found = embedded.up(directory, port)
    CONSOLE.print(f"Kafka is ready at {found.bootstrap_servers} (process {found.pid})")


@app.command("down")
def down(directory: KafkaDir = DATA / "kafka") -> None:
    """Stop it cleanly; its data stay."""
    from stream import embedded

    embedded.down(directory)
    CONSOLE.print("Kafka is down")


@app.command("status")
def status(directory: KafkaDir = DATA / "kafka") -> None:
    """Say whether it runs and where."""
    from stream import embedded

    found = embedded.status(directory)
    CONSOLE.print(
        f"running at {found.bootstrap_servers} (process {found.pid})" if found.running else "not running"
    )
    raise typer.Exit(0 if found.running else 1)


@app.command("logs")
def logs(directory: KafkaDir = DATA / "kafka", lines: Annotated[int, typer.Option("-n")] = 50) -> None:
    """Print the end of its log."""
    from stream import embedded

    for line in embedded.logs(directory, lines):
        CONSOLE.print(line, markup=False, highlight=False)
