"""`qshift profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, DATA

EXAMPLES = "Example:\n\n`qshift profile --json profile.json`"


def profile(
    batches: Annotated[int, typer.Option(help="Batches to measure.", min=1)] = 12,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    cache: Annotated[Path, typer.Option(help="Where the demo keeps base model and gallery.")] = DATA / "demo",
) -> None:
    """Show where the time of a batch goes, and what the service costs on top of the bare loop."""
    from qshift.demo.profile import profile

    raise typer.Exit(profile(batches, cache, json_file, CONSOLE))
