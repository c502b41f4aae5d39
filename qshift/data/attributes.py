"""Attributes of a user's items, from a file beside them: what filters of queries look at.

`attributes.jsonl` has a line for each picture, {"file": "cat.png", "attributes": {"tags": ["new"]}};
`attributes.csv` a column `file` and one for each attribute; `captions.csv` may have a column `attributes`
with such an object in it. Pictures sorted by class are named with their class, cat/1.png. Beside vectors and
texts a line or a column says `id`, the item's name, instead of `file`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from core.attributes import Attribute, attributes_of
from core.errors import ConfigError
from core.readers.lines import BadLine, document, kind_of, lines
from core.readers.places import is_file, shown
from core.readers.table import rows
from qshift.data.pictures import ATTRIBUTES, CAPTIONS_CSV, composed

FORM = '{"file": "cat.png", "attributes": {"year": 2019}}'
SUFFIXES = (".jsonl", ".csv")
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
    return _matched(path, _each_once(path, readers[path.name](path), composed), names, "pictures")


def item_attributes(
    data: Path, given: Path | None, names: Sequence[str]
) -> list[dict[str, Attribute]] | None:
    """Attributes of vectors or texts, in the order of their names; {} of one that the file does not name.

    Args:
        data: the file of the items.
        given: a .jsonl or .csv file; None: FILE.attributes.jsonl or FILE.attributes.csv, if one is there.
        names: of the items.

    Returns, Raises: as `picture_attributes`.
    """
    beside = [one for suffix in SUFFIXES if is_file(one := data.with_suffix(f".attributes{suffix}"))]
    if given is None and len(beside) > 1:
        raise ConfigError(f"{' and '.join(map(shown, beside))} are both there: keep one of them")
    path = given if given is not None else next(iter(beside), None)
    if path is None:
        return None
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{shown(path)} is no file of attributes: expected {' or '.join(SUFFIXES)}")
    found = _jsonl(path, "id") if path.suffix == ".jsonl" else _columns(path, "id")
    return _matched(path, _each_once(path, found, str), names, "items")


def say_attributes(said: Sequence[Mapping[str, Attribute]] | None, console: Console) -> None:
    """Which attributes were found, if any."""
    if said is not None:
        names = sorted({name for one in said for name in one})
        console.print(f"attributes: {', '.join(map(shown, names))}", markup=False, highlight=False)


def _matched(
    path: Path, said: dict[str, dict[str, Attribute]], names: Sequence[str], what: str
) -> list[dict[str, Attribute]] | None:
    missing = sorted(set(said) - set(names))
    if missing:
        raise ConfigError(
            f"{shown(path)} has attributes of {len(missing)} {what} that are not there: "
            f"{', '.join(shown(name) for name in missing[:SHOWN])}"
        )
    return [said.get(name, {}) for name in names] if said else None


def _each_once(
    path: Path, found: Iterator[Line], written: Callable[[str], str]
) -> dict[str, dict[str, Attribute]]:
    said: dict[str, dict[str, Attribute]] = {}
    for number, file, attributes in found:
        name = written(file.strip())
        if not name:
            raise ConfigError(
                f"{shown(path)}, line {number}: attributes of no file: name the picture or item"
            )
        if name in said:
            raise ConfigError(f"{shown(path)}, line {number}: {shown(name)} stands there twice: keep one")
        try:
            said[name] = attributes_of(attributes)
        except ValueError as error:
            raise ConfigError(f"{shown(path)}, line {number}: {error}") from None
    return said


def _jsonl(path: Path, key: str = "file") -> Iterator[Line]:
    form = FORM.replace('"file": "cat.png"', f'"{key}": "cat.png"')
    for number, line in lines(path):
        try:
            entry = document(line)
        except BadLine as error:
            raise ConfigError(f"{shown(path)}, line {number}: {error}; a line is {form}") from None
        if not isinstance(entry, dict) or set(entry) != {key, "attributes"}:
            raise ConfigError(f"{shown(path)}, line {number}: expected {form}, these two fields alone")
        if not isinstance(entry[key], str):
            got = kind_of(entry[key])
            raise ConfigError(f"{shown(path)}, line {number}: {key} is {got}, expected the name of a picture")
        yield number, entry[key], entry["attributes"]


def _columns(path: Path, key: str = "file") -> Iterator[Line]:
    """A column is of numbers where every cell that is not empty is one; an empty cell says nothing."""
    table = rows(path, (key,))
    names = [name for name in table[0][1] if name != key]
    numbers = {name: _numbers([row[name].strip() for _, row in table]) for name in names}
    for place, (line, row) in enumerate(table):
        cells = {name: (row[name].strip(), numbers[name]) for name in names}
        values = {
            name: text if all_numbers is None else all_numbers[place]
            for name, (text, all_numbers) in cells.items()
            if text
        }
        yield line, row[key], values


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
