"""`qshift fit calibrate` on the command line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from core.errors import ConfigError
from core.readers.places import is_folder, shown
from qshift.data.emoji import EmojiSet, load_emoji
from qshift.demo.catalogue import SIDE
from qshift.demo.fit import CACHE
from qshift.demo.fit_clip import captioned_or_sorted
from qshift.recipes.calibrated import calibrate_base
from qshift.terminal.bars import bars, reporter

OPTIONS = ("--base", "--out", "--seed", "--precision")


def fit_calibrate(
    place: Path | None,
    base: Path,
    out: Path | None,
    seed: int,
    precision: str,
    console: Console,
    given: Collection[str] = (),
) -> None:
    """Measures a base on pictures and writes it again.

    Args:
        place: a folder of pictures, with captions or sorted by class; None for the emoji.
        base: the base model.
        out: where it goes with the new measurements; None replaces it.
        seed: of every draw.
        precision: of the image tower's body.
        console: for progress, and what was found.
        given: options on the command line, such as "--target".

    Raises:
        ConfigError: no such folder, a base without pictures, or options of other methods.
        ArtifactError: no base model in `base`.
    """
    if strange := [flag for flag in given if flag.startswith("-") and flag not in OPTIONS]:
        raise ConfigError(f"calibrate takes {', '.join(OPTIONS)} only: leave {strange[0]} out")
    if not is_folder(base):
        raise ConfigError(f"no base model in {shown(base)}: --base names the one to measure")
    folder = base if out is None else out
    folder.parent.mkdir(parents=True, exist_ok=True)
    cache = folder.with_name(f"{folder.name}.features")
    with bars(console) as progress:
        notes = calibrate_base(base, folder, _data(place), cache, seed, reporter(progress), precision)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"features are kept in {cache}; remove them at any time")
    console.print(
        f"base model in {folder}; its version is another one, its codes are not: "
        f"qshift gallery build {place or ''} --base {folder}"
    )


def _data(place: Path | None) -> EmojiSet:
    if place is None:
        return load_emoji(CACHE, SIDE)
    if not is_folder(place):
        raise ConfigError(f"no folder {shown(place)}: name one of pictures as the base is asked for")
    return captioned_or_sorted(place)
