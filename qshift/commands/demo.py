"""`qshift demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, DATA, STARTED

EXAMPLES = (
    "Examples:\n\n`qshift demo`\n\n`qshift demo --short --verify --json result.json`\n\n"
    "`qshift demo --data my-pictures --keep`"
)


def demo(
    data: Annotated[Path | None, typer.Option(help="A folder of captioned pictures of your own.")] = None,
    short: Annotated[bool, typer.Option("--short", help="128 queries a phase instead of 640.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Replay without Kafka and compare bytes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table here.")] = None,
    queries: Annotated[int | None, typer.Option(help="Queries a phase.", min=64)] = None,
    seed: Annotated[int, typer.Option(help="Of the query stream.")] = 0,
    port: Annotated[int, typer.Option(help="Of the live page; 0 takes a free one.")] = 8765,
    cache: Annotated[Path, typer.Option(help="Pictures, base model and gallery are kept here.")] = DATA
    / "demo",
) -> None:
    """Search 1,900 emoji by text, sketch and bad photo through a real Kafka, and see what adapting gains."""
    from qshift.demo.live import DemoOptions, demo

    options = DemoOptions(data, cache, short, keep, verify, json_file, seed, port, queries)
    raise typer.Exit(demo(options, CONSOLE, STARTED))
