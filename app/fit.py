"""`qshift fit` and `qshift gallery build` on the command line."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from app.bars import bars, reporter
from app.catalogue import SIDE, load_folder
from app.emoji import EmojiSet, load_emoji, png
from app.emoji_base import fit_emoji_base
from app.gallery import build_gallery
from core.errors import ConfigError
from encoders.base_model import load_base

CACHE = Path("qshift-data/demo")


def _data(folder: Path | None) -> EmojiSet:
    return load_emoji(CACHE, SIDE) if folder is None else load_folder(folder)


def fit(folder: Path | None, base: Path, bits: int, seed: int, model: str, console: Console) -> None:
    """Trains a base model.

    Raises:
        ConfigError: an unknown kind of model, or too few pictures.
    """
    if model != "two-tower":
        raise ConfigError(f"model {model!r} is not known: two-tower")
    with bars(console) as progress:
        fit_emoji_base(base, _data(folder), bits, seed, reporter(progress))
    console.print(f"base model in {base}; next: qshift gallery build --base {base}")


def build(folder: Path | None, base: Path, out: Path, console: Console) -> None:
    """Builds a gallery."""
    data = _data(folder)
    with bars(console) as progress:
        found = build_gallery(
            load_base(base), [png(p) for p in data.colour], data.hexcodes, data.labels, data.names,
            reporter(progress),
        )  # fmt: skip
    found.save(out)
    console.print(f"{len(found):,} items with {found.bits}-bit codes in {out}, version {found.version}")
