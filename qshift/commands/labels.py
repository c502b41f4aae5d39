"""`qshift labels`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, ConfigFile

EXAMPLES = "Example:\n\n`qshift labels labels.jsonl`"


def labels(
    file: Annotated[Path, typer.Argument(help='Lines {"topic", "partition", "offset", "label"}.')],
    config: ConfigFile = None,
) -> None:
    """Send late labels for queries that were answered."""
    from core.config_file import load

    load(config)  # a wrong key is said before anything heavy is loaded
    from qshift.demo.labels import send_labels

    raise typer.Exit(send_labels(file, config, CONSOLE))
