"""`qshift gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, DATA

app = typer.Typer(help="Galleries: what is searched.", no_args_is_help=True)


@app.command("build", epilog="Example:\n\n`qshift gallery build my-pictures --base qshift-data/base`")
def build(
    data: Annotated[Path | None, typer.Argument(help="Captioned pictures; the emoji without it.")] = None,
    base: Annotated[Path, typer.Option(help="The base model that encodes them.")] = DATA / "base",
    out: Annotated[Path, typer.Option(help="Where the gallery goes.")] = DATA / "gallery",
) -> None:
    """Encode pictures into binary codes with a base model.

    Attributes for filters come from attributes.jsonl or attributes.csv beside the pictures.
    """
    from qshift.demo.fit import build

    build(data, base, out, CONSOLE)
