"""`qshift fit clip` on the command line."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from core.errors import ConfigError
from core.readers.places import is_file, is_folder, shown
from encoders.clip import RANDOM, open_clip_towers
from encoders.clip_folder import clip_folder
from encoders.clip_source import ClipSource
from encoders.plain_towers import is_plain, plain_preprocess
from encoders.vision import backbone, read_backbone, write_backbone
from qshift.data.emoji import EmojiSet
from qshift.data.pictures import composed, load_pictures
from qshift.data.texts import SUFFIX, TextSet, load_texts
from qshift.demo.catalogue import Looks, folder_set
from qshift.recipes.brought import Brought
from qshift.recipes.brought_base import fit_brought_base
from qshift.recipes.brought_texts import fit_brought_texts
from qshift.terminal.bars import bars, reporter


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """Which model, and how it is measured.

    Args:
        source: of an open_clip model, or an image tower of torchvision or timm and a file, or "random".
        precision: of its body while it is measured, "fp32" or "bf16".
        bits, seed: of the hash head and of every draw.
    """

    source: ClipSource
    precision: str = "fp32"
    bits: int = 64
    seed: int = 0


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
    name = composed(place.resolve().stem if isinstance(data, TextSet) else place.resolve().name)
    base.parent.mkdir(parents=True, exist_ok=True)
    cache = base.with_name(f"{base.name}.features")
    # Beside the base and not in /tmp: large models do not fit there.
    with tempfile.TemporaryDirectory(prefix=f".{base.name}-towers-", dir=base.parent) as scratch:
        with console.status("reading the model"):
            brought = _brought(Path(scratch), options)
        with bars(console) as progress:
            told = (options.bits, options.seed, reporter(progress), name)
            if isinstance(data, TextSet):
                notes = fit_brought_texts(base, brought, data, cache, *told)
            else:
                notes = fit_brought_base(base, brought, data, cache, *told)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"features are kept in {cache}, for the next fit of the same data; remove them at any time")
    console.print(f"base model in {base}; next: qshift gallery build {place} --base {base}")


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


def _brought(folder: Path, options: ClipOptions) -> Brought:
    where = "cuda" if torch.cuda.is_available() else "cpu"
    if is_plain(options.source.model or ""):
        return _plain(folder, options, where)
    about = clip_folder(folder, options.source)
    towers = open_clip_towers(f"local-dir:{folder}", where, options.precision)
    return Brought(folder, towers.image, towers.text, {**about, "precision": options.precision})


def _plain(folder: Path, options: ClipOptions, where: str) -> Brought:
    """An image tower of torchvision or timm."""
    source = options.source
    if (source.tag, source.quick_gelu, source.text_files) != (None, None, None):
        raise ConfigError(f"{source.model} has no text side: leave --tag, --quick-gelu and --text-files out")
    weights = None if source.pretrained == RANDOM else Path(source.pretrained)
    if weights is not None and not is_file(weights):
        raise ConfigError(
            f"no file {shown(weights)}: {source.model} takes --pretrained FILE with the state of the "
            f'library\'s model, or "{RANDOM}"'
        )
    name = source.model or ""
    write_backbone(folder, name, backbone(name, weights, options.seed), plain_preprocess(name))
    image = read_backbone(folder, None, where, options.precision)
    about = {"model": name, "weights": RANDOM if weights is None else weights.name}
    return Brought(folder, image, None, {**about, "precision": options.precision})
