"""A user's own folder of pictures, captioned or sorted into folders by class."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.readers.lines import BadLine, document, text
from core.readers.places import broken, bytes_of, is_folder, shown
from core.readers.table import rows
from qshift.data import inventory
from qshift.data.inventory import SHOWN, SUFFIXES, LeftOut, Listing, below, listing

log = logging.getLogger("qshift.pictures")

CAPTIONS_JSON = "captions.json"
CAPTIONS_CSV = "captions.csv"
ATTRIBUTES = ("attributes.jsonl", "attributes.csv")
"""Not read here: `qshift.data.attributes` does where a gallery is built."""
FORM = f'{CAPTIONS_JSON} holds {{"cat.png": "a cat"}} or {{"cat.png": ["a cat", "a pet"]}}'


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Pictures in order of their file names, each with at least one caption.

    `classes` has the class of each picture, and is empty where they are not sorted by class. Names are
    composed (NFC), however the file system writes them.
    """

    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def identifier(self, item: int) -> str:
        """The file name, behind its class where there are classes."""
        name = composed(self.paths[item].name)
        return f"{self.classes[item]}/{name}" if self.classes else name

    def content(self, item: int) -> bytes:
        """The file as it is: encoders decode and check it."""
        return bytes_of(self.paths[item])


def load_pictures(folder: Path, beside: Collection[str] = ()) -> PictureSet:
    """Pictures `folder/*.png|jpg|jpeg|webp` and their captions.

    Captions come from `captions.json` (file name -> text or list of texts), else `captions.csv` (columns
    `file` and `caption`; several rows for a file are several captions); for pictures not named there from a
    .txt file of the same name (one caption a line), else from the file name itself.

    A folder without pictures of its own, but with folders of pictures, is one of classes: `folder/cat/1.png`
    is a picture of class "cat", and that is its caption. What is left out is counted and logged, a line for
    each reason.

    Args:
        folder: of the pictures.
        beside: other files in it that the caller reads.

    Raises:
        ConfigError: no such folder, no pictures, unreadable captions, captions of pictures not there,
            pictures beside folders of classes, or a name that is no text.
    """
    if not is_folder(folder):
        raise ConfigError(f"{shown(folder)} is not a folder: name one that holds pictures")
    left = LeftOut(folder)
    top = listing(folder, left)
    deeper = below(top, left)
    lists = tuple(path for path in top.files if path.name in (CAPTIONS_JSON, CAPTIONS_CSV))
    known = {*beside, *ATTRIBUTES}
    left.add(inventory.FILES, *(path for path in top.files if path not in lists and path.name not in known))
    left.add(inventory.FILES, *(path for one in deeper for path in one.files))
    left.add(inventory.EMPTY, *_empty(top, deeper))
    found = _captioned(top, deeper, lists, left) if top.pictures else _classes(top, deeper, lists, left)
    left.say()
    return found


def composed(name: str) -> str:
    """A name with its letters composed: macOS writes them apart, captions.json rarely does."""
    return unicodedata.normalize("NFC", name)


def _captioned(top: Listing, deeper: list[Listing], lists: tuple[Path, ...], left: LeftOut) -> PictureSet:
    paths, inside = top.pictures, [path for one in deeper for path in one.pictures]
    if inside and not lists:
        raise ConfigError(
            f"{shown(top.folder)} holds {len(paths)} pictures ({_some(paths)}) beside folders with "
            f"{len(inside)}: move either out, for one sorted by class or one of captioned pictures"
        )
    left.add(inventory.INSIDE, *inside)
    left.add(inventory.TEXTS, *(path for one in deeper for path in one.texts))
    listed = _listed(lists)
    by_name = _by_name((composed(path.name), path) for path in paths)
    missing = sorted(set(listed) - set(by_name))
    if missing:
        raise ConfigError(
            f"{shown(top.folder)} has captions for {len(missing)} pictures that are not there: "
            f"{', '.join(shown(name) for name in missing[:SHOWN])}"
        )
    unnamed = [path for path in paths if not listed.get(composed(path.name))]
    if lists and unnamed:
        log.warning(
            "%s: %d pictures have no caption in %s, and go by the text beside them or by their file name: %s",
            shown(top.folder), len(unnamed), lists[0].name, _some(tuple(unnamed)),
        )  # fmt: skip
    texts = _by_name((composed(path.stem), path) for path in top.texts)
    captions = tuple(listed.get(composed(path.name)) or _own(path, texts) for path in paths)
    read = {composed(path.stem) for path in unnamed}
    stems = {composed(path.stem) for path in paths}
    left.add(inventory.UNASKED, *(path for stem, path in texts.items() if stem in stems - read))
    left.add(inventory.TEXTS, *(path for stem, path in texts.items() if stem not in stems))
    return PictureSet(paths, captions)


def _classes(top: Listing, deeper: list[Listing], lists: tuple[Path, ...], left: LeftOut) -> PictureSet:
    near = [one for one in deeper if one.folder.parent == top.folder and one.pictures]
    far = [path for one in deeper if one.folder.parent != top.folder for path in one.pictures]
    if not near:
        raise ConfigError(
            f"no pictures in {shown(top.folder)}: expected {', '.join(sorted(SUFFIXES))} files, or a folder "
            f"of them for each class{f'; {len(far)} lie deeper than that' if far else ''}{left.sentence()}"
        )
    if lists:
        raise ConfigError(
            f"{shown(lists[0])} captions pictures beside it, and there are only folders of pictures: move "
            "them there, or remove it where they are sorted by class"
        )
    left.add(inventory.DEEPER, *far)
    stems = {path.with_suffix("") for one in near for path in one.pictures}
    texts = [path for one in (top, *deeper) for path in one.texts]
    left.add(inventory.UNASKED, *(path for path in texts if path.with_suffix("") in stems))
    left.add(inventory.TEXTS, *(path for path in texts if path.with_suffix("") not in stems))
    _by_name((composed(one.folder.name), one.folder) for one in near)
    for one in near:
        _by_name((composed(path.name), path) for path in one.pictures)
    classes = tuple(composed(one.folder.name) for one in near for _ in one.pictures)
    paths = tuple(path for one in near for path in one.pictures)
    return PictureSet(paths, tuple((name,) for name in classes), classes)


def _empty(top: Listing, deeper: list[Listing]) -> list[Path]:
    """Folders directly below that hold no picture at any depth."""
    full = {parent for one in deeper if one.pictures for parent in (one.folder, *one.folder.parents)}
    return [one.folder for one in deeper if one.folder.parent == top.folder and one.folder not in full]


def _some(paths: tuple[Path, ...]) -> str:
    return ", ".join(shown(path.name) for path in paths[:SHOWN])


def _by_name(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Path by composed name. Raises ConfigError for a name that is no text, or stands there twice."""
    found: dict[str, Path] = {}
    for name, path in named:
        if broken(path.name):
            what = "folder" if is_folder(path) else "file"
            raise ConfigError(f"the name of {shown(path)} is not UTF-8: rename the {what}")
        other = found.setdefault(name, path)
        if other != path:
            how = "" if other.name == path.name else ", its letters once composed and once not"
            how = how if composed(other.name) == composed(path.name) else f", as {shown(other.name)}"
            raise ConfigError(f"{shown(path)} stands there twice{how}: remove one")
    return found


def _listed(lists: tuple[Path, ...]) -> Mapping[str, tuple[str, ...]]:
    if len(lists) > 1:
        folder = shown(lists[0].parent)
        raise ConfigError(f"{folder} holds {CAPTIONS_JSON} and {CAPTIONS_CSV}: keep one of them")
    if not lists:
        return {}
    return _from_json(lists[0]) if lists[0].name == CAPTIONS_JSON else _from_csv(lists[0])


def _from_json(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        found = document(text(path))
    except BadLine as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error}; {FORM}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{shown(path)} is not a JSON object: {FORM}")
    if not found:
        raise ConfigError(f"{shown(path)} names no picture: {FORM}")
    captions: dict[str, tuple[str, ...]] = {}
    for name, value in found.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ConfigError(f"{shown(path)}: the captions of {name!r} are not text: {FORM}")
        captions[composed(name)] = captions.get(composed(name), ()) + _texts(texts, path)
    return captions


def _from_csv(path: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, tuple[str, ...]] = {}
    for line, row in rows(path, ("file", "caption")):
        name = composed(row["file"].strip())
        if not name:
            raise ConfigError(f"{shown(path)}, line {line}: a caption of no file: name the picture")
        captions[name] = captions.get(name, ()) + _texts([row["caption"]], path)
    return captions


def _own(path: Path, texts: Mapping[str, Path]) -> tuple[str, ...]:
    """Captions of the .txt file, else the file name as words."""
    stem = composed(path.stem)
    found = _texts(text(texts[stem]).split("\n"), texts[stem]) if stem in texts else ()
    return found or (" ".join(stem.replace("_", " ").replace("-", " ").split()) or stem,)


def _texts(texts: list[str], path: Path) -> tuple[str, ...]:
    if any(map(broken, texts)):
        raise ConfigError(f"{shown(path)} holds half of a surrogate pair: write valid Unicode")
    return tuple(one.strip() for one in texts if one.strip())
