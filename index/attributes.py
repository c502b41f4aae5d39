"""Attributes of a gallery's items, and which items a filter allows: exact, whatever index is searched then.

An attribute is looked up in sorted values, made when the first filter names it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.attributes import Attributes, Value, attributes_of
from core.errors import GalleryError
from core.filters import AnyOf, Condition, Filter

Positions = NDArray[np.int64]
KEPT, KEPT_ITEMS = 64, 1 << 22
"""Filters, and items in all, that are remembered: clients ask by the same few again and again. 32 MB."""


class ItemAttributes:
    """What is said of N items, in position order.

    Args:
        rows: of each item, as JSON says it.
        remembered: items of all filters that are remembered together.

    Raises:
        GalleryError: attributes that are none, with the item's place.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], remembered: int = KEPT_ITEMS) -> None:
        self._remembered = remembered
        self.rows: tuple[Attributes, ...] = tuple(_checked(place, row) for place, row in enumerate(rows))
        self.names = frozenset(name for row in self.rows for name in row)
        """The attributes that any item has."""
        self._columns: dict[str, _Column] = {}
        self._found: dict[Filter, Positions] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def allowed(self, wanted: Filter) -> Positions:
        """Positions of the items that every condition allows, ascending; of no condition all."""
        if wanted not in self._found:
            parts = [self._column(name).having(condition) for name, condition in wanted]
            every = np.arange(len(self), dtype=np.int64)
            both = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), parts, every)
            self._found[wanted] = both
            while len(self._found) > 1 and self._too_many():
                del self._found[next(iter(self._found))]
        return self._found[wanted]

    def _too_many(self) -> bool:
        return len(self._found) > KEPT or sum(map(len, self._found.values())) > self._remembered

    def _column(self, name: str) -> _Column:
        if name not in self.names:  # a stranger may name what no item has, each time another
            return _Column(name, ())
        if name not in self._columns:
            self._columns[name] = _Column(name, self.rows)
        return self._columns[name]


class _Column:
    """Positions by the values of one attribute, numbers and texts apart."""

    def __init__(self, name: str, rows: Sequence[Attributes]) -> None:
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

    def having(self, condition: Condition) -> Positions:
        """Positions of the items for which it holds, ascending."""
        if isinstance(condition, AnyOf):
            found = [self._between(value, value) for value in condition.values]
        else:
            found = [self._between(condition.low, condition.high)]
        return np.unique(np.concatenate(found))

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
