"""What the demo searches: emoji from packages, or a folder of the user's own captioned pictures.

Either gives pictures, line art, captions and labels; from these come base model, gallery and query stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from app.emoji import EmojiSet, load_emoji, png
from app.emoji_base import fit_emoji_base
from app.gallery import build_gallery
from app.pictures import load_pictures
from app.schedule import Item, Phase, Schedule, demo_phases
from benchmarks.shifts.images import PICTURE_SHIFTS, jitter
from benchmarks.shifts.seeds import generator
from benchmarks.shifts.text import TEXT_SHIFTS
from core.errors import ArtifactError, ConfigError, Refused
from encoders.base_model import load_base
from encoders.images import decode
from index.gallery import VersionedGallery
from stream.codec import image_query, text_query

Progress = Callable[[int, int, str], None]
SIDE = 112
BITS = 64
MISSPELT_WORDS = 0.5
RECIPE = "2"
"""Part of the names of cached artifacts: raise it when the recipe of base or gallery changes."""


class FolderSet(EmojiSet):
    """A user's pictures; their sketches are contours found in them."""

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
    look = data.line[item] if shift == "sketch" else data.colour[item]
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
        fit_emoji_base(base_folder, data, bits, progress=progress)
        base = load_base(base_folder)
    try:
        gallery = VersionedGallery.load(gallery_folder, base_version=base.version)
    except ArtifactError:
        contents = [png(picture) for picture in data.colour]
        gallery = build_gallery(base, contents, data.hexcodes, data.labels, data.names, progress)
        gallery.save(gallery_folder)
    return Catalogue(data, base_folder, gallery_folder, gallery, "emoji" if folder is None else "pictures")


def fingerprint(data: EmojiSet) -> str:
    """Short hash of pictures and captions."""
    sha = hashlib.sha256("\n".join(data.names).encode())
    sha.update(np.ascontiguousarray(data.colour).tobytes())
    return sha.hexdigest()[:12]


def load_folder(folder: Path) -> EmojiSet:
    """A user's folder as a set: pictures on white squares, contours as their sketches."""
    pictures = load_pictures(folder)
    colour, line = [], []
    for item in range(len(pictures)):
        try:
            image = decode(pictures.content(item))
        except Refused as refused:
            raise ConfigError(f"{pictures.paths[item]}: {refused.reason}; remove or repair it") from refused
        square = _square(image)
        colour.append(np.asarray(square, dtype=np.uint8))
        line.append(
            np.asarray(square.convert("L").filter(ImageFilter.CONTOUR).convert("RGB"), dtype=np.uint8)
        )
    names = tuple("\n".join(captions) for captions in pictures.captions)
    ids = tuple(pictures.identifier(item) for item in range(len(pictures)))
    return FolderSet(
        np.stack(colour), np.stack(line), names, tuple(name[:1] for name in names), ids, ids,
        f"Pictures: {folder.name}",
    )  # fmt: skip


def _square(image: Image.Image) -> Image.Image:
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square
