"""What several commands share: options, and what is said of values before anything heavy is loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ArtifactError, ConfigError
from core.filters import Wanted, wanted
from core.readers.lines import BadLine, document
from core.readers.places import is_file, is_folder, shown, there
from qshift.terminal.sheet import console

if TYPE_CHECKING:
    from core.config import Config

STARTED = time.monotonic()
CONSOLE = console()
DATA = Path("qshift-data")
NAME_BYTES = 255
"""Of one file name, on every usual file system."""

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; defaults without it.")]
Method = Annotated[
    list[str] | None,
    typer.Option(
        help="frozen, default, rest, aligned, anchored, centring, refinement, tcr, tcr-paper, tent, "
        "eata, sar, deyo, ...; an unknown one lists all. +fused behind a name answers from both twins, "
        "+repair mends texts first. Commas, or the option again, name several."
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the tables here.")]
Top = Annotated[
    int | None, typer.Option(help="Items of each answer, up to answer.shortlist; answer.top without it.")
]
Filter = Annotated[
    str,
    typer.Option(
        "--filter", metavar="JSON",
        help='Which items may be found, by attributes: {"colour": ["red", "blue"], "year": {"from": 2019}}.',
    ),
]  # fmt: skip
Threshold = Annotated[
    float | None, typer.Option(help="Confidence, 0 to 1, below which an answer abstains and names nothing.")
]
Base = Annotated[Path | None, typer.Option(help="The base model; that of --config without it.")]
Gallery = Annotated[
    Path | None, typer.Option(help="The gallery, built with this base; that of --config without it.")
]
Journal = Annotated[Path | None, typer.Option(help="Batch boundaries of a live run (JSON lines).")]
Batch = Annotated[int | None, typer.Option(help="Queries a batch; batch.size without it.", min=1, max=4096)]


def given(context: typer.Context) -> list[str]:
    """The options that stand on the command line, by their long names."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name == "COMMANDLINE"
    ]


def names(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def methods_named(texts: Iterable[str] | None, factors: bool = False) -> tuple[str, ...]:
    """Every method named, once; with `factors` tent*3 is one, too. Raises ConfigError for an unknown one."""
    from qshift.methods import check_known, split  # pydantic takes as long as all of --help

    found = tuple(dict.fromkeys(name for text in texts or () for name in names(text)))
    check_known(split(name)[0] if factors else name for name in found)
    return found


def wants(top: int | None, filter_: str, threshold: float | None) -> Wanted:
    """What every query wants that does not say so itself. Raises ConfigError, with the option."""
    try:
        return wanted(top, document(filter_) if filter_ else None, threshold)
    except BadLine as error:
        raise ConfigError(f'--filter is {error}; expected an object such as {{"colour": "red"}}') from None
    except ValueError as error:
        raise ConfigError(f"--{error}") from None


def with_batch(config: Config, size: int | None) -> Config:
    """The configuration with another batch size. Raises ConfigError for one that nothing is learned from."""
    if size is None:
        return config
    if size < config.batch.floor:
        raise ConfigError(
            f"no batch of --batch {size} reaches the floor of {config.batch.floor}, nothing would be "
            "learned: raise --batch, or lower batch.floor in a --config"
        )
    return config.model_copy(update={"batch": config.batch.model_copy(update={"size": size})})


def queries_at(path: Path) -> Path:
    """The folder or file. Raises ConfigError when there is none."""
    if not str(path) or not there(path):
        raise ConfigError(f"no folder or file {shown(path)}: name a folder of pictures or a JSONL file")
    return path


def with_parts(config: Config, base: Path | None, gallery: Path | None, named: bool) -> Config:
    """The configuration with base and gallery of the command line.

    Args:
        config: its own are used for those that are None.
        base, gallery: folders.
        named: whether the configuration may stand in: guessing what own queries are asked of would be wrong.

    Raises:
        ConfigError: one is neither given nor named.
        ArtifactError: no such folder.
    """
    lacking = [flag for flag, path in (("--base", base), ("--gallery", gallery)) if path is None]
    if lacking and not named:
        raise ConfigError(
            f"own queries need {' and '.join(lacking)} or a --config: `qshift fit` trains a base model, "
            "`qshift gallery build` encodes what is searched"
        )
    base, gallery = base or config.base, gallery or config.gallery
    if not is_folder(base):
        raise ArtifactError(
            f"no base model in {shown(base)}: `qshift fit DATA --base {shown(base)}` trains one"
        )
    if not is_folder(gallery):
        raise ArtifactError(
            f"no gallery in {shown(gallery)}: `qshift gallery build DATA --base {shown(base)} --out "
            f"{shown(gallery)}` makes one"
        )
    return config.model_copy(update={"base": base, "gallery": gallery})


def check_files(read: Path | None, written: Collection[Path | None]) -> None:
    """Before a long run, not after it. Raises ConfigError for a file that cannot be read or written."""
    if read is not None and not is_file(read):
        raise ConfigError(
            f"no file {shown(read)}: --journal takes the batch boundaries of a live run (JSON lines)"
        )
    for path in filter(None, written):
        if is_folder(path) or not is_folder(path.parent):
            what = "it is a folder" if is_folder(path) else f"there is no folder {shown(path.parent)}"
            raise ConfigError(f"{shown(path)} cannot be written: {what}")
        if len(os.fsencode(path.name)) > NAME_BYTES:
            raise ConfigError(f"{shown(path)} cannot be written: its name is too long")
