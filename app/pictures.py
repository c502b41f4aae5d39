"""A user's own folder of pictures, captioned or sorted into folders by class."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.readers.lines import BadLine, document, shown, text
from app.readers.table import rows
from core.errors import ConfigError

log = logging.getLogger("qshift.pictures")

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))
CAPTIONS_JSON = "captions.json"
CAPTIONS_CSV = "captions.csv"
FORMATS = f'{CAPTIONS_JSON} holds {{"cat.png": "a cat"}} or {{"cat.png": ["a cat", "a pet"]}}'
FOREIGN = frozenset(("__MACOSX", "$RECYCLE.BIN", "System Volume Information"))
"""What other systems leave beside pictures; names that begin with a dot are passed over, too."""
SHOWN = 5


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
        return self.paths[item].read_bytes()


def load_pictures(folder: Path) -> PictureSet:
    """Pictures `folder/*.png|jpg|jpeg|webp` and their captions.

    Captions come from `captions.json` (file name -> text or list of texts), else `captions.csv` (columns
    `file` and `caption`; several rows for a file are several captions); for pictures not named there from a
    .txt file of the same name (one caption a line), else from the file name itself.

    A folder without pictures of its own, but with folders of pictures, is one of classes: `folder/cat/1.png`
    is a picture of class "cat", and that is its caption. What is left out is counted and logged.

    Raises:
        ConfigError: no such folder, no pictures, unreadable captions, captions of pictures not there,
            pictures beside folders of classes, or a name that is no text.
    """
    if not folder.is_dir():
        raise ConfigError(f"{shown(folder)} is not a folder: name one that holds pictures")
    paths = _pictures(folder)
    deeper = list(_deeper(folder))
    captioned = (folder / CAPTIONS_JSON).exists() or (folder / CAPTIONS_CSV).exists()
    if not paths:
        return _classes(folder, deeper)
    if deeper and not captioned:
        raise ConfigError(
            f"{shown(folder)} holds {len(paths)} pictures ({_some(paths)}) beside folders with "
            f"{len(deeper)}: move either out, for one sorted by class or one of captioned pictures"
        )
    _say_left_out(folder, deeper, "in folders of their own")
    listed = _listed(folder)
    by_name = _by_name(paths)
    missing = sorted(set(listed) - set(by_name))
    if missing:
        some = ", ".join(shown(Path(name)) for name in missing[:SHOWN])
        raise ConfigError(
            f"{shown(folder)} has captions for {len(missing)} pictures that are not there: {some}"
        )
    return PictureSet(paths, tuple(listed.get(composed(path.name)) or _beside(path) for path in paths))


def composed(name: str) -> str:
    """A name with its letters composed: macOS writes them apart, captions.json rarely does."""
    return unicodedata.normalize("NFC", name)


def _classes(folder: Path, deeper: list[Path]) -> PictureSet:
    inside = [path for path in deeper if path.parent.parent == folder]
    if not inside:
        raise ConfigError(
            f"no pictures in {shown(folder)}: expected {', '.join(sorted(SUFFIXES))} files, or a folder of "
            f"them for each class{f'; {len(deeper)} lie deeper than that' if deeper else ''}"
        )
    _say_left_out(folder, [path for path in deeper if path.parent.parent != folder], "deeper than CLASS/NAME")
    classes = tuple(composed(path.parent.name) for path in inside)
    return PictureSet(tuple(inside), tuple((name,) for name in classes), classes)


def _say_left_out(folder: Path, paths: list[Path], where: str) -> None:
    if paths:
        log.warning("%s: %d pictures %s are left out: %s", shown(folder), len(paths), where, _some(paths))


def _some(paths: list[Path] | tuple[Path, ...]) -> str:
    return ", ".join(shown(Path(path.name)) for path in paths[:SHOWN])


def _ours(name: str) -> bool:
    return not name.startswith(".") and name not in FOREIGN


def _pictures(folder: Path) -> tuple[Path, ...]:
    found = sorted(
        path for path in folder.iterdir()
        if _ours(path.name) and path.suffix.lower() in SUFFIXES and path.is_file()
    )  # fmt: skip
    for path in found:
        if any("\ud800" <= letter <= "\udfff" for letter in path.name):
            raise ConfigError(f"the name of {shown(path)} is not UTF-8: rename the file")
    return tuple(found)


def _deeper(folder: Path) -> Iterator[Path]:
    """Pictures below the folder's own, in order; links to folders are not followed."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if _ours(name))
        if Path(place) != folder:
            yield from _pictures(Path(place))


def _by_name(paths: tuple[Path, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(composed(path.name), path)
        if other != path:
            raise ConfigError(
                f"{shown(path)} stands there twice, its letters once composed and once not: remove one"
            )
    return found


def _listed(folder: Path) -> Mapping[str, tuple[str, ...]]:
    as_json, as_csv = folder / CAPTIONS_JSON, folder / CAPTIONS_CSV
    if as_json.exists() and as_csv.exists():
        raise ConfigError(f"{shown(folder)} holds {CAPTIONS_JSON} and {CAPTIONS_CSV}: keep one of them")
    if as_json.exists():
        return _from_json(as_json)
    return _from_csv(as_csv) if as_csv.exists() else {}


def _from_json(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        found = document(text(path))
    except BadLine as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error}; {FORMATS}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{shown(path)} is not a JSON object: {FORMATS}")
    if not found:
        raise ConfigError(f"{shown(path)} names no picture: {FORMATS}")
    captions: dict[str, tuple[str, ...]] = {}
    for name, value in found.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ConfigError(f"{shown(path)}: the captions of {name!r} are not text: {FORMATS}")
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


def _beside(path: Path) -> tuple[str, ...]:
    """Captions of the .txt file, else the file name as words."""
    beside = path.with_suffix(".txt")
    found = _texts(text(beside).split("\n"), beside) if beside.is_file() else ()
    stem = composed(path.stem)
    return found or (" ".join(stem.replace("_", " ").replace("-", " ").split()) or stem,)


def _texts(texts: list[str], path: Path) -> tuple[str, ...]:
    if any("\ud800" <= letter <= "\udfff" for one in texts for letter in one):
        raise ConfigError(f"{shown(path)} holds half of a surrogate pair: write valid Unicode")
    return tuple(one.strip() for one in texts if one.strip())
