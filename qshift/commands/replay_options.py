"""`qshift replay` is four runs: which one was asked for, and that every option given belongs to it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from core.config import Config
from core.errors import ArtifactError, ConfigError
from core.readers.places import is_file, is_folder, shown, there

LEAST_QUERIES = 64
NAME_BYTES = 255
"""Of one file name, on every usual file system."""
SUITE, TOPIC = "--suite", "--topic"
OWN, COUNT = "--queries PATH", "--queries N"
SCHEDULE = "the demo's schedule"
EVERYWHERE = frozenset(("--method", "--methods", "--config", "--json"))
RUNS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        SCHEDULE: frozenset(("--order", COUNT, "--seed", "--journal", "--data", "--cache")),
        SUITE: frozenset(
            (SUITE, "--quick", "--seeds", "--tasks", "--streams", "--workers", "--html", "--markdown",
             "--data", "--cache")
        ),
        OWN: frozenset((OWN, "--base", "--gallery")),
        TOPIC: frozenset((TOPIC, "--from", "--to", "--partition", "--base", "--gallery")),
    }
)  # fmt: skip
"""Run -> the options that it takes beside those that all take."""


def run_of(given: Collection[str], queries: str) -> str:
    """Which of `RUNS` the options name.

    Args:
        given: options on the command line, such as "--order".
        queries: value of `--queries`: digits are a count, anything else is a path.

    Raises:
        ConfigError: options of different runs.
    """
    form = OWN if _path(queries) else COUNT
    flags = [form if flag == "--queries" else flag for flag in given]
    named = [run for run in (SUITE, TOPIC, OWN) if run in flags]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} are different runs: name one of them")
    run = named[0] if named else SCHEDULE
    for flag in flags:
        if flag not in RUNS[run] | EVERYWHERE:
            others = " and ".join(other for other, options in RUNS.items() if flag in options)
            raise ConfigError(f"{flag} does not go with {run}: it is for {others}")
    return run


def count_of(queries: str) -> int:
    """Queries a phase. Raises ConfigError when they are too few."""
    count = int(queries)
    if count < LEAST_QUERIES:
        raise ConfigError(
            f"expected --queries of at least {LEAST_QUERIES} a phase, or a path, got {count}: "
            f"a folder of that name is ./{queries}"
        )
    return count


def queries_at(queries: str) -> Path:
    """The folder or file. Raises ConfigError when there is none."""
    if not queries or not there(Path(queries)):
        raise ConfigError(
            f"no folder or file '{shown(queries)}': --queries takes queries a phase ({LEAST_QUERIES} or "
            "more), a folder of pictures or a JSONL file"
        )
    return Path(queries)


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
            f"{OWN} needs {' and '.join(lacking)} or a --config: `qshift fit` trains a base model, "
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


def _path(queries: str) -> bool:
    return not queries.removeprefix("-").isdecimal()
