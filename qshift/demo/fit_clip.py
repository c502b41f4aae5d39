"""`qshift fit clip` on the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from core.errors import ConfigError
from core.readers.places import is_file, is_folder, shown
from encoders.clip_source import ClipSource
from qshift.data.emoji import EmojiSet
from qshift.data.pictures import composed, load_pictures
from qshift.data.texts import SUFFIX, TextSet, load_texts
from qshift.demo.catalogue import Looks, folder_set
from qshift.recipes.brought_base import fit_brought_base
from qshift.recipes.brought_texts import fit_brought_texts
from qshift.recipes.brought_towers import bring
from qshift.terminal.bars import bars, reporter


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """Which model, and how it is measured.

    Args:
        source: of an open_clip model, or an image tower of torchvision or timm and a file, or "random".
        precision: of its body while it is measured: "fp32", "bf16" or "fp16".
        bits, seed: of the hash head and of every draw.
        heads: trains a linear map behind each tower on captions; without it nothing is trained.
    """

    source: ClipSource
    precision: str = "fp32"
    bits: int = 64
    seed: int = 0
    heads: bool = False


def fit_clip(place: Path, base: Path, options: ClipOptions, console: Console) -> None:
    """Makes a base model around towers as they are, measured on the user's data.

    Args:
        place: a folder of pictures, with captions or sorted by class; or a .txt file of texts.
        base: where the base model goes; features are kept beside it.
        options: see there.
        console: for progress, and what was found.

    Raises:
        ConfigError: data or choices that cannot be used.
        ArtifactError: a model that cannot be loaded.
    """
    data = _data(place)
    if options.heads and isinstance(data, TextSet):
        raise ConfigError("--train heads learns from captioned pictures: give a folder of them")
    name = composed(place.resolve().stem if isinstance(data, TextSet) else place.resolve().name)
    base.parent.mkdir(parents=True, exist_ok=True)
    cache = base.with_name(f"{base.name}.features")
    # Beside the base and not in /tmp: large models do not fit there.
    with tempfile.TemporaryDirectory(prefix=f".{base.name}-towers-", dir=base.parent) as scratch:
        with console.status("reading the model"):
            where = "cuda" if torch.cuda.is_available() else "cpu"
            brought = bring(Path(scratch), options.source, where, options.precision, options.seed)
        with bars(console) as progress, _kept(cache):
            told = (options.bits, options.seed, reporter(progress), name)
            if isinstance(data, TextSet):
                notes = fit_brought_texts(base, brought, data, cache, *told)
            else:
                notes = fit_brought_base(base, brought, data, cache, *told, heads=options.heads)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"features are kept in {cache}, for the next fit of the same data; remove them at any time")
    console.print(f"base model in {base}; next: qshift gallery build {place} --base {base}")


@contextmanager
def _kept(cache: Path) -> Iterator[None]:
    """Says with a KeyboardInterrupt how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what was encoded so far is kept in {shown(cache)}; the same command goes on from there"
        ) from None


def _data(place: Path) -> EmojiSet | TextSet:
    if is_file(place) and place.suffix.lower() == SUFFIX:
        return load_texts(place)
    if not is_folder(place):
        raise ConfigError(f"no folder {shown(place)}: name one of pictures, or a {SUFFIX} file of texts")
    return captioned_or_sorted(place)


def captioned_or_sorted(place: Path) -> EmojiSet:
    """A folder of pictures with captions, or sorted by class, which is their label. Raises ConfigError."""
    pictures = load_pictures(place)
    found = folder_set(place, pictures, Looks(pictures))
    return replace(found, labels=pictures.classes) if pictures.classes else found
