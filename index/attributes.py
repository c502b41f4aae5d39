"""Attributes of a gallery's items, and which items a filter allows: exact, whatever index is searched then.

An attribute is looked up in sorted values, made when the first filter names it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.attributes import Attributes, Value, attributes_of
from core.errors import GalleryError
from core.filters import AnyOf, Condition, Filter

Positions = NDArray[np.int64]
KEPT, KEPT_BYTES = 512, 1 << 25
"""Filters, and bytes in all, that are remembered: clients ask by the same few again and again."""


class ItemAttributes:
    """What is said of N items, in position order.

    Args:
        rows: of each item, as JSON says it.
        remembered: bytes of all filters that are remembered together, a bit for each item and filter.

    Raises:
        GalleryError: attributes that are none, with the item's place.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], remembered: int = KEPT_BYTES) -> None:
        self._remembered = remembered
        self.rows: tuple[Attributes, ...] = tuple(_checked(place, row) for place, row in enumerate(rows))
        self.names = frozenset(name for row in self.rows for name in row)
        """The attributes that any item has."""
        self._columns: dict[str, _Column] = {}
        self._found: dict[Filter, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def allowed(self, wanted: Filter) -> Positions:
        """Positions of the items that every condition allows, ascending; of no condition all."""
        packed = self._found.pop(wanted, None)
        if packed is None:
            passes = np.ones(len(self), np.bool_)
            for name, condition in wanted:
                passes &= self._column(name).having(condition)
            packed = np.packbits(passes)
        self._found[wanted] = packed  # asked for last: forgotten last
        while len(self._found) > 1 and (
            len(self._found) > KEPT or len(self._found) * len(packed) > self._remembered
        ):
            del self._found[next(iter(self._found))]
        return np.flatnonzero(np.unpackbits(packed, count=len(self)).view(np.bool_))

    def _column(self, name: str) -> _Column:
        if name not in self.names:  # a stranger may name what no item has, each time another
            return _Column(name, (), len(self))
        if name not in self._columns:
            self._columns[name] = _Column(name, self.rows, len(self))
        return self._columns[name]


class _Column:
    """Positions by the values of one attribute, numbers and texts apart."""

    def __init__(self, name: str, rows: Sequence[Attributes], count: int) -> None:
        self._count = count
        numbers: list[tuple[float, int]] = []
        texts: list[tuple[str, int]] = []
        for position, row in enumerate(rows):
            value = row.get(name)
            if isinstance(value, int | float):
                numbers.append((float(value), position))
            elif isinstance(value, str):
                texts.append((value, position))
            elif value is not None:
                texts += [(text, position) for text in value]
        numbers.sort()
        texts.sort()
        self._numbers = np.array([number for number, _ in numbers], np.float64)
        self._numbered = np.array([position for _, position in numbers], np.int64)
        self._texts = [text for text, _ in texts]
        self._worded = np.array([position for _, position in texts], np.int64)

    def having(self, condition: Condition) -> NDArray[np.bool_]:
        """[N] True where it holds."""
        if isinstance(condition, AnyOf):
            found = [self._between(value, value) for value in condition.values]
        else:
            found = [self._between(condition.low, condition.high)]
        passes = np.zeros(self._count, np.bool_)
        for positions in found:
            passes[positions] = True
        return passes

    def _between(self, low: Value | None, high: Value | None) -> Positions:
        """Positions of values from `low` to `high`, both of one kind, in the order of the values."""
        if isinstance(low, str) or isinstance(high, str):
            first = bisect_left(self._texts, low) if isinstance(low, str) else 0
            last = bisect_right(self._texts, high) if isinstance(high, str) else len(self._texts)
            return self._worded[first:last]
        first = 0 if low is None else int(np.searchsorted(self._numbers, float(low), "left"))
        count = len(self._numbers)
        last = count if high is None else int(np.searchsorted(self._numbers, float(high), "right"))
        return self._numbered[first:last]


def _checked(place: int, row: Mapping[str, Any]) -> Attributes:
    try:
        return attributes_of(row)
    except ValueError as error:
        raise GalleryError(f"item {place}: {error}") from None
