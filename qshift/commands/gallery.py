"""`qshift gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import ConfigError
from qshift.commands.options import CONSOLE, DATA, ConfigFile

app = typer.Typer(help="Galleries: what is searched.", no_args_is_help=True)
Folder = Annotated[Path, typer.Option("--gallery", help="The folder of the gallery.")]


@app.command(
    "build",
    epilog="Examples:\n\n`qshift gallery build my-pictures --base qshift-data/base`\n\n"
    "`qshift gallery build vectors.npy --ids names.txt --base qshift-data/base`",
)
def build(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Captioned pictures, the emoji without it; a .txt of texts; or vectors, in a .npy, .npz or "
            ".parquet file."
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
    attributes: Annotated[
        Path | None,
        typer.Option(
            help='Attributes of vectors or texts: .jsonl of {"id", "attributes"}, or .csv with a column id; '
            "FILE.attributes.jsonl or .csv beside FILE without it."
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(help="A kind of index: its recall against all items is noted and said."),
    ] = None,
    effort: Annotated[int | None, typer.Option(help="Of that kind; its own without it.", min=1)] = None,
) -> None:
    """Encode pictures, or vectors of any model, into binary codes with a base model.

    Attributes for filters come from attributes.jsonl or attributes.csv beside the pictures.
    """
    if effort is not None and index is None:
        raise ConfigError("--effort is of a kind of index: name it with --index")
    if index is None:
        return _build(data, base, out, ids, labels, titles, attributes)
    from qshift.demo.compare_indexes import checked_kind, measure

    kind = checked_kind(index)  # said before anything is built
    _build(data, base, out, ids, labels, titles, attributes)
    measure(out, base, kind, effort, CONSOLE)


def _build(
    data: Path | None, base: Path, out: Path, ids: Path | None, labels: Path | None, titles: Path | None,
    attributes: Path | None,
) -> None:  # fmt: skip
    from core.readers.vectors import holds_vectors

    beside = {"ids": ids, "labels": labels, "titles": titles}
    if data is not None and holds_vectors(data):
        from qshift.demo.vectors import build_vectors

        return build_vectors(data, beside, base, out, CONSOLE, attributes)
    if wrong := [name for name, path in beside.items() if path is not None]:
        raise ConfigError(
            f"--{wrong[0]} is for a file of vectors: pictures say it by their names and captions"
        )
    if attributes is not None and (data is None or not data.is_file()):
        raise ConfigError(
            "--attributes is for a file: those of pictures stand in attributes.jsonl beside them"
        )
    from qshift.demo.fit import build

    build(data, base, out, CONSOLE, attributes)


@app.command(
    "add",
    epilog="Examples:\n\n`qshift gallery add new-pictures --base qshift-data/base`\n\n"
    "`qshift gallery add more.jsonl --replace`",
)
def add(
    data: Annotated[
        Path,
        typer.Argument(
            help='Pictures, as for build; or lines {"id", "image" | "text" | "vector", "labels", ...}.'
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


@app.command(
    "swap",
    epilog="Example:\n\n`qshift gallery swap new-gallery --gallery qshift-data/gallery`",
)
def swap(
    source: Annotated[
        Path, typer.Argument(help="The folder of a gallery of the same base; it stays as it is.")
    ],
    gallery: Folder = DATA / "gallery",
) -> None:
    """Put a whole new gallery in the place of another, also under a running service."""
    from qshift.demo.galleries import swap

    swap(source, gallery, CONSOLE)


@app.command("info", epilog="Example:\n\n`qshift gallery info --gallery qshift-data/gallery`")
def info(gallery: Folder = DATA / "gallery") -> None:
    """Say what a gallery holds."""
    from qshift.demo.galleries import info

    info(gallery, CONSOLE)


@app.command(
    "compare",
    epilog="Examples:\n\n`qshift gallery compare`\n\n`qshift gallery compare --effort 200`",
)
def compare(
    gallery: Folder = DATA / "gallery",
    base: Annotated[Path, typer.Option(help="The base model it was built with.")] = DATA / "base",
    effort: Annotated[int | None, typer.Option(help="Of each kind; their own without it.", min=1)] = None,
) -> None:
    """Search a large gallery by each kind of index: recall against all items, and time."""
    from qshift.demo.compare_indexes import compare

    compare(gallery, base, effort, CONSOLE)


@app.command(
    "export",
    epilog="Examples:\n\n`qshift gallery export items.jsonl`\n\n"
    "`qshift gallery export items.npz --gallery qshift-data/gallery`",
)
def export(
    out: Annotated[Path, typer.Argument(help="A .jsonl or .npz file to write.")],
    gallery: Folder = DATA / "gallery",
) -> None:
    """Write what a gallery holds into one file: names, keys, labels, titles, attributes, codes, features."""
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
