"""What the demo searches: emoji from packages, or a folder of the user's own captioned pictures.

Either gives pictures, line art, captions and labels; from these come base model, gallery and query stream.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image, ImageFilter

from core.config import LimitConfig
from core.errors import ArtifactError, ConfigError, Refused
from core.readers.places import shown
from core.seeds import generator
from encoders.base_model import load_base
from encoders.images import Content, decode
from index.gallery import VersionedGallery
from qshift.data.emoji import EmojiSet, load_emoji, png
from qshift.data.pictures import PictureSet, load_pictures
from qshift.recipes.emoji_base import fit_emoji_base
from qshift.recipes.gallery import build_gallery
from qshift.replay.own_message import sendable
from qshift.replay.schedule import Item, Phase, Schedule, demo_phases
from qshift.shifts.images import PICTURE_SHIFTS, Picture, as_picture, jitter
from qshift.shifts.text import TEXT_SHIFTS
from stream.codec import image_query, text_query

Progress = Callable[[int, int, str], None]
SIDE = 112
PIXELS = 12 * SIDE**2
"""Most of a picture that is shifted: noise, which does not compress, must fit into a query."""
BITS = 64
MISSPELT_WORDS = 0.5
RECIPE = "4"
"""Part of the names of cached artifacts: raise it when the recipe of base or gallery changes."""


@dataclass(frozen=True, slots=True)
class FolderSet(EmojiSet):
    """A user's pictures: `colour` has them small, at their own aspect ratio; contours are their sketches."""

    pictures: PictureSet

    @property
    def noun(self) -> str:
        return "pictures"

    @property
    def side(self) -> int:
        return SIDE

    def content(self, item: int) -> Content:
        return picture_bytes(self.pictures, item)

    def sketch(self, item: int) -> Picture:
        return as_picture(Image.fromarray(self.colour[item]).convert("L").filter(ImageFilter.CONTOUR))

    def captions(self, item: int) -> tuple[str, ...]:
        own = self.names[item].split("\n")
        return tuple(own[i % len(own)] for i in range(3))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A searchable set, ready to serve."""

    data: EmojiSet
    base: Path
    gallery_folder: Path
    gallery: VersionedGallery
    noun: str

    @property
    def attribution(self) -> str:
        return self.data.attribution

    def picture(self, identifier: str) -> bytes | None:
        """PNG of a gallery item."""
        return self.data.picture(identifier)

    def schedule(self, queries: int, seed: int, phases: tuple[Phase, ...] | None = None) -> Schedule:
        """The demo's phases, drawn from this set."""
        return Schedule(
            phases or demo_phases(queries), lambda phase, index: make_query(self.data, seed, phase, index)
        )


def make_query(data: EmojiSet, seed: int, phase: Phase, index: int) -> Item:
    """Query `index` of a phase: freshly rotated, scaled and shifted, then shifted in look."""
    order = generator(seed, phase.name, "items").permutation(len(data))
    if phase.order == "sorted":
        order = np.array(sorted(order[: phase.queries].tolist(), key=lambda i: (data.groups[i], i)))
    item = int(order[index % len(order)])
    sample = f"{phase.name}/{index}"
    shift = phase.shifts[int(generator(seed, sample, "shift").integers(len(phase.shifts)))]
    if phase.modality == "text":
        text = data.captions(item)[0]
        draw = generator(seed, sample, shift)
        value, headers = text_query(TEXT_SHIFTS[shift](text, MISSPELT_WORDS, draw), sample)
        return Item(phase.name, value, tuple(headers), data.labels[item])
    look = data.sketch(item) if shift == "sketch" else data.colour[item]
    picture = jitter(look, 1.0, generator(seed, sample, "jitter"))
    if shift != "sketch":
        found = PICTURE_SHIFTS[shift]
        picture = found.apply(picture, found.amount, generator(seed, sample, shift))
    value, headers = image_query(png(picture), sample)
    return Item(phase.name, value, tuple(headers), data.labels[item])


def prepare_catalogue(
    folder: Path | None, cache: Path, progress: Progress | None = None, bits: int = BITS
) -> Catalogue:
    """Renders, fits and builds what is not in the cache yet.

    Raises:
        ConfigError: a folder without pictures, or with too few.
    """
    data = load_emoji(cache, SIDE, progress) if folder is None else load_folder(folder)
    name = "emoji" if folder is None else f"pictures-{fingerprint(data)}"
    base_folder, gallery_folder = (cache / f"{kind}-{name}-{bits}-v{RECIPE}" for kind in ("base", "gallery"))
    try:
        base = load_base(base_folder)
    except ArtifactError:
        fit_emoji_base(base_folder, data, bits, progress=progress, name=name)
        base = load_base(base_folder)
    try:
        gallery = VersionedGallery.load(gallery_folder, base_version=base.version)
    except ArtifactError:
        contents = map(data.content, range(len(data)))
        gallery = build_gallery(base, contents, data.hexcodes, data.labels, data.names, progress)
        gallery.save(gallery_folder)
    return Catalogue(data, base_folder, gallery_folder, gallery, data.noun)


def fingerprint(data: EmojiSet) -> str:
    """Short hash of pictures and captions."""
    sha = hashlib.sha256("\n".join(data.names).encode())
    for item in range(len(data)):
        content = data.content(item)
        sha.update(hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest())
    return sha.hexdigest()[:12]


def load_folder(folder: Path) -> FolderSet:
    """A user's folder as a set.

    Raises:
        ConfigError: see `load_pictures`; a picture that cannot be read.
    """
    pictures = load_pictures(folder)
    looks = Looks(pictures)
    return folder_set(folder, pictures, tuple(looks[item] for item in range(len(looks))))


class Looks(Sequence[Picture]):
    """Pictures of a folder as shifts are applied to them, each read and decoded when it is asked for."""

    def __init__(self, pictures: PictureSet) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, item: int) -> Picture: ...
    @overload
    def __getitem__(self, item: slice) -> list[Picture]: ...
    def __getitem__(self, item: int | slice) -> Picture | list[Picture]:
        """Raises ConfigError, which names the file, for one that cannot be decoded."""
        if isinstance(item, slice):
            return [self[one] for one in range(*item.indices(len(self)))]
        with named(self._pictures, item):
            return _small(decode(picture_bytes(self._pictures, item), SIDE))


def folder_set(folder: Path, pictures: PictureSet, colour: Sequence[Picture]) -> FolderSet:
    """Pictures of a folder with how they look."""
    names = tuple("\n".join(captions) for captions in pictures.captions)
    ids = tuple(pictures.identifier(item) for item in range(len(pictures)))
    return FolderSet(
        colour, (), names, tuple(name[:1] for name in names), ids, ids, f"Pictures: {folder.name}",
        pictures,
    )  # fmt: skip


def picture_bytes(pictures: PictureSet, item: int) -> bytes:
    """A file of a user's as a query of it would be sent. Raises Refused."""
    most = LimitConfig().image_bytes
    found = sendable(pictures.content(item), most)
    if found is None:
        raise Refused("image", f"it does not fit into {most} bytes however it is scaled")
    return found


@contextmanager
def named(pictures: PictureSet, item: int) -> Iterator[None]:
    """Raises ConfigError, which names the file, where the picture is refused."""
    try:
        yield
    except Refused as refused:
        place = shown(pictures.paths[item])
        raise ConfigError(f"{place}: {refused.reason}; remove or repair it") from refused


def _small(image: Image.Image) -> Picture:
    """The picture that shifts are applied to, as a client would have it: its own aspect ratio, no margin.

    Its shorter side is the emoji's, so that shifts are as strong as theirs; nothing is enlarged, and slivers
    end at `PIXELS`. The encoder prepares it like the file it is of.
    """
    share = min(1.0, SIDE / min(image.size), math.sqrt(PIXELS / (image.width * image.height)))
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return as_picture(image if size == image.size else image.resize(size, Image.Resampling.BICUBIC))
