"""`qshift fit` and `qshift gallery build` on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from app.bars import bars, reporter
from app.catalogue import SIDE, load_folder
from app.emoji import EmojiSet, load_emoji, png
from app.emoji_base import fit_emoji_base
from app.gallery import build_gallery
from app.measure import Progress
from app.open_clip_base import fit_open_clip_base
from core.errors import ConfigError
from encoders.base_model import load_base

CACHE = Path("qshift-data/demo")
MODELS: Mapping[str, Callable[[Path, EmojiSet, int, int, Progress], None]] = MappingProxyType(
    {"two-tower": fit_emoji_base, "open_clip": fit_open_clip_base}
)
"""What `--model` may name."""


def _data(folder: Path | None) -> EmojiSet:
    return load_emoji(CACHE, SIDE) if folder is None else load_folder(folder)


def fit(folder: Path | None, base: Path, bits: int, seed: int, model: str, console: Console) -> None:
    """Trains a base model.

    Args:
        folder: captioned pictures; None for the emoji.
        base: where the base model goes.
        bits: code width, a multiple of 8.
        seed: of everything drawn.
        model: "two-tower", heads on packaged towers, or "open_clip", a small model from scratch.
        console: for progress and what to do next.

    Raises:
        ConfigError: an unknown kind of model, or too few pictures.
    """
    if model not in MODELS:
        raise ConfigError(f"model {model!r} is not known: expected one of {', '.join(MODELS)}")
    data = _data(folder)
    with bars(console) as progress:
        MODELS[model](base, data, bits, seed, reporter(progress))
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
