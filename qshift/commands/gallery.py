"""`qshift gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import ConfigError
from qshift.commands.options import CONSOLE, DATA

app = typer.Typer(help="Galleries: what is searched.", no_args_is_help=True)


@app.command(
    "build",
    epilog="Examples:\n\n`qshift gallery build my-pictures --base qshift-data/base`\n\n"
    "`qshift gallery build vectors.npy --ids names.txt --base qshift-data/base`",
)
def build(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Captioned pictures, the emoji without it; or a .npy, .npz or .parquet file of vectors."
        ),
    ] = None,
    base: Annotated[Path, typer.Option(help="The base model that encodes them.")] = DATA / "base",
    out: Annotated[Path, typer.Option(help="Where the gallery goes.")] = DATA / "gallery",
    ids: Annotated[
        Path | None,
        typer.Option(help="Names of vectors, a line each; FILE.ids.txt beside FILE.npy without it."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Their labels, likewise; their names without any.")
    ] = None,
    titles: Annotated[Path | None, typer.Option(help="Their titles, likewise.")] = None,
) -> None:
    """Encode pictures, or vectors of any model, into binary codes with a base model."""
    from core.readers.vectors import holds_vectors

    beside = {"ids": ids, "labels": labels, "titles": titles}
    if data is not None and holds_vectors(data):
        from qshift.demo.vectors import build_vectors

        return build_vectors(data, beside, base, out, CONSOLE)
    if wrong := [name for name, path in beside.items() if path is not None]:
        raise ConfigError(
            f"--{wrong[0]} is for a file of vectors: pictures say it by their names and captions"
        )
    from qshift.demo.fit import build

    build(data, base, out, CONSOLE)
