"""`qshift gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, DATA, ConfigFile

app = typer.Typer(help="Galleries: what is searched.", no_args_is_help=True)
Folder = Annotated[Path, typer.Option("--gallery", help="The folder of the gallery.")]


@app.command("build", epilog="Example:\n\n`qshift gallery build my-pictures --base qshift-data/base`")
def build(
    data: Annotated[Path | None, typer.Argument(help="Captioned pictures; the emoji without it.")] = None,
    base: Annotated[Path, typer.Option(help="The base model that encodes them.")] = DATA / "base",
    out: Annotated[Path, typer.Option(help="Where the gallery goes.")] = DATA / "gallery",
) -> None:
    """Encode pictures into binary codes with a base model."""
    from qshift.demo.fit import build

    build(data, base, out, CONSOLE)


@app.command(
    "add",
    epilog="Examples:\n\n`qshift gallery add new-pictures --base qshift-data/base`\n\n"
    "`qshift gallery add more.jsonl --replace`",
)
def add(
    data: Annotated[
        Path,
        typer.Argument(
            help='Pictures, as for build; or lines {"id", "image" | "text" | "vector", "labels"}.'
        ),
    ],
    gallery: Folder = DATA / "gallery",
    base: Annotated[Path, typer.Option(help="The base model it was built with.")] = DATA / "base",
    replace: Annotated[
        bool, typer.Option("--replace", help="Items of names that are there take their place.")
    ] = False,
) -> None:
    """Put more items into a gallery; what is there is not written again."""
    from qshift.demo.galleries import add

    add(data, gallery, base, replace, CONSOLE)


@app.command(
    "remove",
    epilog="Example:\n\n`qshift gallery remove cat.png dog.png --gallery qshift-data/gallery`",
)
def remove(
    ids: Annotated[list[str], typer.Argument(help="Names of items.")], gallery: Folder = DATA / "gallery"
) -> None:
    """Take items out of a gallery."""
    from qshift.demo.galleries import remove

    remove(ids, gallery, CONSOLE)


@app.command("info", epilog="Example:\n\n`qshift gallery info --gallery qshift-data/gallery`")
def info(gallery: Folder = DATA / "gallery") -> None:
    """Say what a gallery holds."""
    from qshift.demo.galleries import info

    info(gallery, CONSOLE)


@app.command(
    "export",
    epilog="Examples:\n\n`qshift gallery export items.jsonl`\n\n"
    "`qshift gallery export items.npz --gallery qshift-data/gallery`",
)
def export(
    out: Annotated[Path, typer.Argument(help="A .jsonl or .npz file to write.")],
    gallery: Folder = DATA / "gallery",
) -> None:
    """Write what a gallery holds into one file: names, keys, labels, titles, codes and features."""
    from qshift.demo.galleries import export

    export(out, gallery, CONSOLE)


@app.command("follow", epilog="Example:\n\n`qshift gallery follow --config qshift.toml`")
def follow(
    config: ConfigFile = None,
    once: Annotated[bool, typer.Option("--once", help="End where the topic ends now.")] = False,
) -> None:
    """Take the items topic into the folder of a gallery, until SIGTERM or Ctrl-C."""
    from core.config_file import load

    load(config)  # a wrong key is said before anything heavy is loaded
    from qshift.demo.items_topic import follow

    follow(config, once, CONSOLE)
