"""Attributes of a user's pictures, from a file beside them: what filters of queries look at.

`attributes.jsonl` has a line for each picture, {"file": "cat.png", "attributes": {"tags": ["new"]}};
`attributes.csv` a column `file` and one for each attribute; `captions.csv` may have a column `attributes`
with such an object in it. Pictures sorted by class are named with their class, cat/1.png.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from core.attributes import Attribute, attributes_of
from core.errors import ConfigError
from core.readers.lines import BadLine, document, kind_of, lines
from core.readers.places import is_file, shown
from core.readers.table import rows
from qshift.data.pictures import ATTRIBUTES, CAPTIONS_CSV, composed

FORM = '{"file": "cat.png", "attributes": {"year": 2019}}'
SHOWN = 5
Line = tuple[int, str, Any]
"""(line, file, attributes as JSON says them)."""


def picture_attributes(folder: Path, names: Sequence[str]) -> list[dict[str, Attribute]] | None:
    """Attributes of pictures, in the order of their names; {} of one that the file does not name.

    Args:
        folder: of the pictures.
        names: as `PictureSet.identifier` gives them.

    Returns:
        None where nothing is said of any picture.

    Raises:
        ConfigError: two files, a line that cannot be used, a picture twice, or one that is not there.
    """
    found = [name for name in (*ATTRIBUTES, CAPTIONS_CSV) if is_file(folder / name)]
    if len(set(found) & set(ATTRIBUTES)) > 1:
        raise ConfigError(f"{shown(folder)} holds {' and '.join(ATTRIBUTES)}: keep one of them")
    if not found:
        return None
    path = folder / found[0]
    readers: dict[str, Callable[[Path], Iterator[Line]]] = dict(
        zip((*ATTRIBUTES, CAPTIONS_CSV), (_jsonl, _columns, _captions))
    )
    said = _each_once(path, readers[path.name](path))
    missing = sorted(set(said) - set(names))
    if missing:
        raise ConfigError(
            f"{shown(path)} has attributes of {len(missing)} pictures that are not there: "
            f"{', '.join(shown(name) for name in missing[:SHOWN])}"
        )
    return [said.get(name, {}) for name in names] if said else None


def _each_once(path: Path, found: Iterator[Line]) -> dict[str, dict[str, Attribute]]:
    said: dict[str, dict[str, Attribute]] = {}
    for number, file, attributes in found:
        name = composed(file.strip())
        if not name:
            raise ConfigError(f"{shown(path)}, line {number}: attributes of no file: name the picture")
        if name in said:
            raise ConfigError(f"{shown(path)}, line {number}: {shown(name)} stands there twice: keep one")
        try:
            said[name] = attributes_of(attributes)
        except ValueError as error:
            raise ConfigError(f"{shown(path)}, line {number}: {error}") from None
    return said


def _jsonl(path: Path) -> Iterator[Line]:
    for number, line in lines(path):
        try:
            entry = document(line)
        except BadLine as error:
            raise ConfigError(f"{shown(path)}, line {number}: {error}; a line is {FORM}") from None
        if not isinstance(entry, dict) or set(entry) != {"file", "attributes"}:
            raise ConfigError(f"{shown(path)}, line {number}: expected {FORM}, these two fields alone")
        if not isinstance(entry["file"], str):
            got = kind_of(entry["file"])
            raise ConfigError(f"{shown(path)}, line {number}: file is {got}, expected the name of a picture")
        yield number, entry["file"], entry["attributes"]


def _columns(path: Path) -> Iterator[Line]:
    """A column is of numbers where every cell that is not empty is one; an empty cell says nothing."""
    table = rows(path, ("file",))
    names = [name for name in table[0][1] if name != "file"]
    numbers = {name: _numbers([row[name].strip() for _, row in table]) for name in names}
    for place, (line, row) in enumerate(table):
        cells = {name: (row[name].strip(), numbers[name]) for name in names}
        values = {
            name: text if all_numbers is None else all_numbers[place]
            for name, (text, all_numbers) in cells.items()
            if text
        }
        yield line, row["file"], values


def _numbers(cells: list[str]) -> list[Any] | None:
    found: list[Any] = []
    for cell in cells:
        try:
            value = document(cell) if cell else 0
        except BadLine:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        found.append(value)
    return found


def _captions(path: Path) -> Iterator[Line]:
    """A file of several captions says its attributes in one of its rows."""
    for line, row in rows(path, ("file", "caption")):
        cell = row.get("attributes", "").strip()
        if cell:
            try:
                yield line, row["file"], document(cell)
            except BadLine as error:
                raise ConfigError(f"{shown(path)}, line {line}: attributes are {error}") from None
