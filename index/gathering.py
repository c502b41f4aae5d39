"""Rows of a gallery's segments by key: codes, or features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import GalleryError
from core.types import Keys
from index.codes import NO_KEY
from index.living import Living
from index.segment import Segment

Rows = Callable[[Segment, NDArray[np.intp], NDArray[np.bool_]], NDArray[Any]]
"""(segment, positions inside it, where a blank row is wanted) -> rows."""


def rows_of(
    parts: Sequence[Living], version: str, keys: Keys, blank: NDArray[Any], rows: Rows
) -> NDArray[Any]:
    """Rows of keys [...] -> [..., *]; blank ones for key -1.

    Args:
        parts: ascending by key.
        version: of the gallery, for the error.
        blank: [*], of the rows' type.
        rows: what a segment has at positions.

    Raises:
        GalleryError: unknown keys.
    """
    wanted = np.asarray(keys, dtype=np.int64)
    empty = wanted == NO_KEY
    if len(parts) == 1:
        position, known = parts[0].positions(wanted)
        _refuse(wanted[~known & ~empty], version)
        return rows(parts[0].segment, position, empty)
    firsts = [int(part.segment.keys[0]) for part in parts]
    owner = np.searchsorted(firsts, wanted, side="right") - 1
    strange = np.array((owner < 0) & ~empty)
    found = np.broadcast_to(blank, (*wanted.shape, len(blank))).copy()
    for number, part in enumerate(parts):
        mine = (owner == number) & ~empty
        if mine.any():
            position, known = part.positions(wanted[mine])
            strange[mine] = ~known
            found[mine] = rows(part.segment, position, ~known)
    _refuse(wanted[strange], version)
    return found


def _refuse(strange: Keys, version: str) -> None:
    if len(strange):
        raise GalleryError(
            f"expected keys of gallery {version}, got {strange[:3].tolist()}: they are of another version"
        )
