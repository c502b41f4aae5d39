"""`qshift fit` and `qshift gallery build` on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from adapters.offline.parallel import Team
from core.errors import ConfigError
from core.readers.places import is_file, is_folder, shown
from core.types import Modality
from encoders.base_model import load_base
from encoders.distil import DistilConfig
from encoders.images import Content, decode
from encoders.scratch import ScratchConfig
from index.folder import changing
from qshift.data.attributes import item_attributes, picture_attributes, say_attributes
from qshift.data.emoji import EmojiSet, load_emoji
from qshift.data.pictures import PictureSet, composed, load_pictures
from qshift.data.texts import SUFFIX, load_texts
from qshift.demo.catalogue import SIDE, load_folder, named, picture_bytes
from qshift.recipes.distil_base import STUDENT, fit_distil_base
from qshift.recipes.domains.base import HEADS, fit_domain_base
from qshift.recipes.domains.material import FitOptions
from qshift.recipes.emoji_base import fit_emoji_base
from qshift.recipes.gallery import build_gallery
from qshift.recipes.open_clip_base import fit_open_clip_base
from qshift.terminal.bars import bars, reporter

CACHE = Path("qshift-data/demo")
MODELS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"two-tower": fit_emoji_base, "distil": fit_distil_base, "open_clip": fit_open_clip_base}
)
"""Methods that learn from captioned pictures; those of `HEADS` learn from two domains."""
STEPS: Mapping[str, Callable[[int], DistilConfig | ScratchConfig]] = MappingProxyType(
    {
        "distil": lambda steps: DistilConfig(replace(STUDENT, steps=steps)),
        "open_clip": lambda steps: ScratchConfig(steps=steps),
    }
)
"""Methods that train towers by steps: their configuration with another number of them."""


def _data(folder: Path | None) -> EmojiSet:
    return load_emoji(CACHE, SIDE) if folder is None else load_folder(folder)


def fit(
    method: str,
    folder: Path | None,
    target: Path | None,
    base: Path,
    options: FitOptions,
    console: Console,
    steps: int | None = None,
) -> None:
    """Trains a base model.

    Args:
        method: of `MODELS` or of `HEADS`.
        folder: captioned pictures, None for the emoji; for `HEADS` the source, a folder for each class.
        target: pictures of the other domain, for `HEADS` only; classes they are sorted by are not looked at.
        base: where the base model goes.
        options: bits and seed count for every method, the others for `HEADS`.
        console: for progress and what to do next.
        steps: of `STEPS`; None takes the method's own.

    Raises:
        ConfigError: an unknown method, folders or options that do not fit it, or too few pictures.
    """
    if method not in MODELS and method not in HEADS:
        raise ConfigError(
            f"no method {method!r}: expected one of {', '.join((*MODELS, *HEADS))}, vectors, or a folder"
        )
    if steps is not None and method not in STEPS:
        raise ConfigError(f"--steps is of {' and '.join(STEPS)}: leave it out with {method}")
    if method in MODELS:
        if target is not None:
            raise ConfigError(f"{method} learns from captioned pictures alone: leave --target out")
        if options != FitOptions(bits=options.bits, seed=options.seed):
            counts = "--bits, --seed and --steps" if method in STEPS else "--bits and --seed"
            raise ConfigError(f"{method} takes {counts} only: the other options are of {', '.join(HEADS)}")
        data = _data(folder)
        chosen: dict[str, object] = {} if folder is None else {"name": composed(folder.resolve().name)}
        if steps is not None:
            chosen["config"] = STEPS[method](steps)
        with bars(console) as progress:
            MODELS[method](base, data, options.bits, options.seed, reporter(progress), **chosen)
    else:
        if folder is None or target is None:
            raise ConfigError(
                f"{method} learns from two domains: qshift fit {method} SOURCE --target TARGET, where SOURCE "
                "has a folder of pictures for each class"
            )
        own, other = _sorted_by_class(folder), load_pictures(target)
        contents = [[_whole(one, item) for item in range(len(one))] for one in (own, other)]
        if Team.of_environment().rank:
            console = Console(quiet=True)  # of the processes of torchrun the first one speaks
        if options.backbone is not None and options.weights is None:
            console.print(f"{options.backbone} starts from random weights: --weights FILE for others")
        with bars(console) as progress:
            notes = fit_domain_base(
                method, contents[0], own.classes, contents[1], base, options, reporter(progress)
            )
        for note in notes:
            console.print(note, style="yellow")
    console.print(f"base model in {base}; next: qshift gallery build {folder or ''} --base {base}")


def _whole(pictures: PictureSet, item: int) -> bytes:
    """A file, decoded once: a broken one is named here and not in the middle of a fit. Raises ConfigError."""
    with named(pictures, item):
        content = picture_bytes(pictures, item)
        decode(content, SIDE)
    return content


def _sorted_by_class(folder: Path) -> PictureSet:
    found = load_pictures(folder)
    if not found.classes:
        raise ConfigError(
            f"{shown(folder)} has no folders by class: sort its pictures as "
            f"{shown(folder.name)}/CLASS/NAME.jpg"
        )
    return found


def build(
    folder: Path | None, base: Path, out: Path, console: Console, attributes: Path | None = None
) -> None:
    """Builds a gallery of captioned pictures, of pictures sorted by class, which is their label, or of texts.

    Files are prepared as they are, by the same function as queries: each finds itself. `attributes` are of
    texts; pictures have theirs beside them.
    """
    modality: Modality = "image"
    said = None
    if folder is not None and is_file(folder) and folder.suffix.lower() == SUFFIX:
        texts = load_texts(folder)
        modality, ids, labels, titles = "text", texts.ids, texts.texts, texts.texts
        contents: Iterator[Content | str] = iter(texts.texts)
        said = item_attributes(folder, attributes, ids)
    elif folder is None:
        data = load_emoji(CACHE, SIDE)
        ids, labels, titles = data.hexcodes, data.labels, data.names
        contents = map(data.content, range(len(data)))
    else:
        own = load_pictures(folder)
        ids = tuple(own.identifier(item) for item in range(len(own)))
        labels = own.classes or ids
        titles = own.classes or tuple("\n".join(captions) for captions in own.captions)
        contents = (picture_bytes(own, item) for item in range(len(own)))
        said = picture_attributes(folder, ids)
    with bars(console) as progress:
        found = build_gallery(
            load_base(base), contents, ids, labels, titles, reporter(progress), modality, said
        )
    with changing(out, wait=True) if is_folder(out) else nullcontext():
        found.save(out)
    items = "item" if len(found) == 1 else "items"
    say_attributes(said, console)
    console.print(f"{len(found):,} {items} with {found.bits}-bit codes in {out}, version {found.version}")
