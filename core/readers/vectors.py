"""Vectors that some model or API has made: one strict reader for fit, gallery, replay and produce.

A file that is no table of vectors is refused in a sentence. A row that has no direction (NaN, infinity,
zeros) is left out, counted and said, and costs no other row. Rows count from 0, as in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.readers.arrays import SUFFIXES as SUFFIXES
from core.readers.arrays import opened
from core.readers.lines import text
from core.readers.places import broken, is_file, is_folder, shown
from core.types import Floats

BESIDE = ("ids", "labels", "titles")
"""Of FILE.npy they may stand in FILE.ids.txt, FILE.labels.txt and FILE.titles.txt, a line a row."""
BLOCK_BYTES = 8 << 20
SHORTEST = 1e-30
"""Largest number of a vector below which it is zero, as `VectorEncoder` has it."""
UNIT = 1e-2
"""How far from 1 a length may be and still be that of a unit vector in float16."""
SHOWN = 3
ENDLESS = "NaN, infinity or a number beyond float32"
ZERO = "only zeros, which have no direction"


@dataclass(frozen=True, slots=True)
class VectorFile:
    """N vectors of width D, of which `rows` can be used.

    Args:
        path: of the file.
        count: N.
        width: D.
        rows: [n] positions of the vectors that can be used, ascending.
        left_out: why the others cannot, by row.
        rescaled: of `rows`, how many are not of unit length.
        columns: N texts each, by the names "ids", "labels", "titles" and "modality", as far as given.
    """

    path: Path
    count: int
    width: int
    rows: NDArray[np.int64]
    left_out: Mapping[int, str]
    rescaled: int
    columns: Mapping[str, tuple[str, ...]]
    _open: Callable[[], NDArray[Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: NDArray[np.int64]) -> Floats:
        """The vectors [n, D] in these rows of the file, as they are, in float32.

        A part of the file after the other: pages of a map count as memory until the map is closed.
        """
        found, order = np.empty((len(rows), self.width), np.float32), np.argsort(rows, kind="stable")
        blocks = rows[order] // _rows_a_block(self.width)
        for part in np.split(order, np.flatnonzero(np.diff(blocks)) + 1):
            with np.errstate(over="ignore"):
                found[part] = self._open()[rows[part]]
        return found

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """All that can be used, some megabytes at a time: rows [n], and vectors [n, D]."""
        size = _rows_a_block(self.width)
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            yield rows, self.at(rows)

    def column(self, name: str) -> tuple[str, ...] | None:
        """What a column says of `rows`, None where there is no such column."""
        found = self.columns.get(name)
        if found is None or len(self.rows) == self.count:
            return found
        return tuple(found[row] for row in self.rows.tolist())

    def ids(self) -> tuple[str, ...]:
        """Names of `rows`; the number of the row where nothing was said."""
        return self.column("ids") or tuple(map(str, self.rows.tolist()))

    def notes(self) -> list[str]:
        """What a user should know, a sentence each."""
        if not self.left_out:
            return self.lengths()
        some = "; ".join(f"row {row} holds {why}" for row, why in list(self.left_out.items())[:SHOWN])
        left = f"{shown(self.path)}: {len(self.left_out)} of {self.count} rows left out: {some}"
        return [left, *self.lengths()]

    def lengths(self) -> list[str]:
        """A sentence where vectors are not of unit length."""
        many = f"{self.rescaled} of {len(self)} vectors"
        return [f"{shown(self.path)}: {many} are not of unit length: normalised"] if self.rescaled else []


def holds_vectors(path: Path | None) -> bool:
    """Whether a path goes by the name of a file of vectors."""
    return path is not None and path.suffix.lower() in SUFFIXES and not is_folder(path)


def read_vectors(path: Path, beside: Mapping[str, Path | None] | None = None) -> VectorFile:
    """Opens a .npy, .npz or .parquet file and looks at every row once.

    Args:
        path: of the file.
        beside: text files, a line a row, by the names of `BESIDE`: they go before what the file says itself.

    Raises:
        ConfigError: a file that cannot be read, not one row that can be used, columns of another length, or
            an identifier that is empty or stands there twice.
    """
    found = opened(path)
    count, width = found.vectors().shape
    columns = {name: _texts(path, name, values, count) for name, values in found.columns.items()}
    for name in BESIDE:
        listed = (beside or {}).get(name)
        usual = path.with_suffix(f".{name}.txt")
        if listed is None and path.suffix.lower() == ".npy" and is_file(usual):
            listed = usual
        if listed is not None:
            columns[name] = _listed(path, listed, count)
    left_out, rescaled = _judged(found.vectors, count, width)
    if len(left_out) == count:
        raise ConfigError(f"{shown(path)} has no vector that can be used: row 0 holds {left_out[0]}")
    rows = np.delete(np.arange(count, dtype=np.int64), list(left_out))
    _check_ids(path, columns.get("ids", ()))
    return VectorFile(path, count, width, rows, left_out, rescaled, columns, found.vectors)


def _judged(vectors: Callable[[], NDArray[Any]], count: int, width: int) -> tuple[dict[int, str], int]:
    """Rows that have no direction, and how many of the others are not of unit length."""
    left_out: dict[int, str] = {}
    rescaled, size = 0, _rows_a_block(width)
    for start in range(0, count, size):
        block = _floats(vectors()[start : start + size])
        with np.errstate(over="ignore", invalid="ignore"):
            largest = np.abs(block).max(axis=1)
            length = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
        finite = np.isfinite(largest)
        left_out |= dict.fromkeys((start + np.flatnonzero(~finite)).tolist(), ENDLESS)
        left_out |= dict.fromkeys((start + np.flatnonzero(largest < SHORTEST)).tolist(), ZERO)
        rescaled += int((finite & (largest >= SHORTEST) & (np.abs(length - 1.0) > UNIT)).sum())
    return dict(sorted(left_out.items())), rescaled


def _floats(block: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is left out
        return np.array(block, dtype=np.float32, order="C")


def _rows_a_block(width: int) -> int:
    return max(1, BLOCK_BYTES // (4 * width))


def _texts(path: Path, name: str, values: NDArray[Any], count: int) -> tuple[str, ...]:
    """A column of a file as texts; whole numbers are written out."""
    if values.shape != (count,):
        raise ConfigError(
            f"{shown(path)}: {name} has shape {list(values.shape)}, there are {count} vectors: give one each"
        )
    if values.dtype.kind not in "Uiu":
        raise ConfigError(f"{shown(path)}: {name} holds {values.dtype}: expected texts or whole numbers")
    return tuple(map(str, values.tolist()))


def _listed(path: Path, listed: Path, count: int) -> tuple[str, ...]:
    """The lines of a text file; an empty last line is none."""
    found = [line.removesuffix("\r").strip() for line in text(listed).split("\n")]
    if found and not found[-1]:
        found.pop()
    if len(found) != count:
        raise ConfigError(
            f"{shown(listed)} has {len(found)} lines, {shown(path)} has {count} rows: write a line for each"
        )
    return tuple(found)


def _check_ids(path: Path, ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not name or broken(name):
            raise ConfigError(f"{shown(path)}, row {row}: the identifier is no text: give each row a name")
        if first.setdefault(name, row) != row:
            raise ConfigError(
                f"{shown(path)}: rows {first[name]} and {row} are both called {shown(name)}: "
                "give each row a name of its own"
            )
