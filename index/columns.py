"""What a gallery keeps of its items, a row each in position order: read-only arrays, and unit features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import GalleryError
from core.types import Floats

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Display:
    """How a page shows an item: a title, and the name of a picture file relative to the page's folder."""

    title: str = ""
    picture: str = ""

    def __post_init__(self) -> None:
        path = PurePosixPath(self.picture)
        if path.is_absolute() or ".." in path.parts or "\\" in self.picture:
            raise GalleryError(f"expected a picture's name inside the page's folder, got {self.picture!r}")


class Features:
    """Unit features [N, D], kept as float16 and given back as float32 at unit length again.

    Args:
        rows: as `half` gives them.
    """

    def __init__(self, rows: NDArray[np.float16]) -> None:
        self.rows = frozen(rows)
        squares = np.empty(len(rows), np.float32)
        for block in _blocks(rows):
            values = rows[block].astype(np.float32)
            squares[block] = np.einsum("nd,nd->n", values, values)
        self._scale = frozen((1 / np.sqrt(squares)).astype(np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """D."""
        return int(self.rows.shape[1])

    def at(self, position: NDArray[np.intp], unused: NDArray[np.bool_]) -> Floats:
        """Positions [...] -> [..., D]; zeros where unused."""
        found = gathered(self.rows, position, unused).astype(np.float32)
        found *= gathered(self._scale, position, unused)[..., None]
        return found


def half(features: NDArray[Any]) -> NDArray[np.float16]:
    """Unit features as they are kept; float16 is taken as it is, so that loading changes no bit."""
    rows = np.asarray(features)
    if rows.ndim != 2 or not all(map(_usable, (rows[block] for block in _blocks(rows)))):
        raise GalleryError(
            f"expected finite features [N, D], none zero, got shape {rows.shape}: encode again"
        )
    if rows.dtype == np.float16:
        return rows
    values = rows.astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float16)


def _blocks(rows: NDArray[Any]) -> Iterator[slice]:
    """Some thousand rows at a time: copies of all of a large gallery would be the most memory of all."""
    return (slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK))


def _usable(rows: NDArray[Any]) -> bool:
    return bool(np.isfinite(rows).all() and (np.abs(rows).max(axis=1, initial=0) > 0).all())


def gathered(rows: NDArray[Any], position: NDArray[np.intp], unused: NDArray[np.bool_]) -> NDArray[Any]:
    """Rows at positions [...] -> [..., ...]; zeros where unused."""
    if not len(rows):
        return np.zeros((*position.shape, *rows.shape[1:]), rows.dtype)
    found = rows[position]
    if unused.any():
        blank = unused.reshape(unused.shape + (1,) * (rows.ndim - 1))
        return np.where(blank, rows.dtype.type(0), found)
    return np.asarray(found)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, not to be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
