"""What lies in a user's folder, name by name: every one is either used, or counted and said."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from core.readers.places import is_file, is_folder, leftover, names_in, shown, there

log = logging.getLogger("qshift.pictures")

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))
UNREAD = frozenset(
    (".apng", ".avif", ".bmp", ".dng", ".eps", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2",
     ".jpe", ".jxl", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".raw", ".svg", ".tga", ".tif", ".tiff")
)  # fmt: skip
"""Endings of pictures in formats that are not read, or not under this name."""
SHOWN = 5

FOREIGN = "leftovers of other systems"
HIDDEN = "names that begin with a dot"
LOST = "links that lead nowhere"
CIRCLES = "linked folders that lead back or lie below others"
SPECIAL = "names that are no plain files"
FORMATS = "pictures in formats that are not read"
TEXTS = "texts beside no picture"
UNASKED = "texts of pictures that are captioned otherwise"
FILES = "files that are neither pictures nor captions"
EMPTY = "folders without pictures"
INSIDE = "pictures in folders of their own"
DEEPER = "pictures deeper than CLASS/NAME"


@dataclass(slots=True)
class LeftOut:
    """What is not used of a folder, by the reason."""

    folder: Path
    kinds: dict[str, list[Path]] = field(default_factory=dict)

    def add(self, kind: str, *paths: Path) -> None:
        if paths:
            self.kinds.setdefault(kind, []).extend(paths)

    def say(self) -> None:
        """A warning for each kind, with the first names."""
        for kind, paths in self.kinds.items():
            log.warning("%s: %d %s are left out: %s", shown(self.folder), len(paths), kind, self._some(paths))

    def sentence(self) -> str:
        """All of it behind an error; "" when nothing was left out."""
        parts = [f"{len(paths)} {kind} ({self._some(paths)})" for kind, paths in self.kinds.items()]
        return f"; left out are {', '.join(parts)}" if parts else ""

    def _some(self, paths: list[Path]) -> str:
        return ", ".join(shown(path.relative_to(self.folder)) for path in paths[:SHOWN])


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder's own pictures, texts, other files and folders, each in the order of their names."""

    folder: Path
    pictures: tuple[Path, ...]
    texts: tuple[Path, ...]
    files: tuple[Path, ...]
    folders: tuple[Path, ...]


def listing(folder: Path, left: LeftOut) -> Listing:
    """One folder; links to files and folders count as what they lead to. Raises ConfigError."""
    found: dict[str, list[Path]] = {"pictures": [], "texts": [], "files": [], "folders": []}
    for path in (folder / name for name in names_in(folder)):
        ending = path.suffix.lower()
        if leftover(path.name):
            left.add(FOREIGN, path)
        elif path.name.startswith("."):
            left.add(HIDDEN, path)
        elif is_folder(path):
            found["folders"].append(path)
        elif not there(path):
            left.add(LOST, path)
        elif not is_file(path):
            left.add(SPECIAL, path)
        elif ending in SUFFIXES:
            found["pictures"].append(path)
        elif ending in UNREAD:
            left.add(FORMATS, path)
        else:
            found["texts" if ending == ".txt" else "files"].append(path)
    return Listing(folder, **{name: tuple(paths) for name, paths in found.items()})


def below(top: Listing, left: LeftOut) -> list[Listing]:
    """The folders under one, in order, as deep as they go.

    A link to a folder directly below is followed, as one to a picture is, unless it leads to the folder
    itself or above it; deeper ones are not, so that there is an end. Raises ConfigError.
    """
    home, found = top.folder.resolve(), list[Listing]()
    waiting = list(reversed(top.folders))
    while waiting:
        place = waiting.pop()
        near = place.parent == top.folder
        if place.is_symlink() and not (near and not home.is_relative_to(place.resolve())):
            left.add(CIRCLES, place)
            continue
        found.append(listing(place, left))
        waiting += reversed(found[-1].folders)
    return found
