"""A user's own folder of pictures, captioned or sorted into folders by class."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))
CAPTIONS_JSON = "captions.json"
CAPTIONS_CSV = "captions.csv"
FORMATS = f'{CAPTIONS_JSON} holds {{"cat.png": "a cat"}} or {{"cat.png": ["a cat", "a pet"]}}'
SHOWN = 5


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Pictures in order of their file names, each with at least one caption.

    `classes` has the class of each picture, and is empty where they are not sorted by class.
    """

    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def identifier(self, item: int) -> str:
        """The file name, behind its class where there are classes."""
        name = self.paths[item].name
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
    is a picture of class "cat", and that is its caption.

    Raises:
        ConfigError: no such folder, no pictures, unreadable captions, or captions of pictures not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: name one that holds pictures")
    paths = _pictures(folder)
    if not paths:
        sorted_in = [
            path for inner in sorted(folder.iterdir()) if inner.is_dir() for path in _pictures(inner)
        ]
        if not sorted_in:
            raise ConfigError(
                f"no pictures in {folder}: expected {', '.join(sorted(SUFFIXES))} files, or a folder of them "
                "for each class"
            )
        classes = tuple(path.parent.name for path in sorted_in)
        return PictureSet(tuple(sorted_in), tuple((name,) for name in classes), classes)
    listed = _listed(folder)
    missing = sorted(set(listed) - {path.name for path in paths})
    if missing:
        some = ", ".join(missing[:SHOWN])
        raise ConfigError(f"{folder} has captions for {len(missing)} pictures that are not there: {some}")
    return PictureSet(paths, tuple(listed.get(path.name) or _beside(path) for path in paths))


def _pictures(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()))


def _listed(folder: Path) -> Mapping[str, tuple[str, ...]]:
    as_json, as_csv = folder / CAPTIONS_JSON, folder / CAPTIONS_CSV
    if as_json.exists() and as_csv.exists():
        raise ConfigError(f"{folder} holds {CAPTIONS_JSON} and {CAPTIONS_CSV}: keep one of them")
    if as_json.exists():
        return _from_json(as_json)
    return _from_csv(as_csv) if as_csv.exists() else {}


def _from_json(path: Path) -> dict[str, tuple[str, ...]]:
    document: object = None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is not a JSON object: {FORMATS}")
    captions = {}
    for name, value in document.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{path}: the captions of {name!r} are not text: {FORMATS}")
        captions[str(name)] = _texts(texts)
    return captions


def _from_csv(path: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"file", "caption"} <= set(rows.fieldnames or ()):
                raise ConfigError(f"{path} has columns {rows.fieldnames}, expected file and caption")
            for row in rows:
                captions.setdefault(row["file"], []).append(row["caption"] or "")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return {name: _texts(texts) for name, texts in captions.items()}


def _beside(path: Path) -> tuple[str, ...]:
    """Captions of the .txt file, else the file name as words."""
    text = path.with_suffix(".txt")
    try:
        found = _texts(text.read_text(encoding="utf-8").splitlines()) if text.is_file() else ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{text} cannot be read: {error}") from error
    return found or (" ".join(path.stem.replace("_", " ").replace("-", " ").split()) or path.stem,)


def _texts(texts: list[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())
