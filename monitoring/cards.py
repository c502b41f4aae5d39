"""Queries that the page shows with their answers: three of a batch, marked once their label has come."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.records import Coordinates
from core.types import Hits, Outcome, Query

TOP = 5


@dataclass(frozen=True, slots=True)
class Item:
    """A gallery item as people see it; `picture` is an address, '' where there is none."""

    identifier: str
    title: str = ""
    picture: str = ""


def plain(key: int) -> Item:
    """An item nothing is known of but its key."""
    return Item(str(key))


@dataclass(slots=True)
class Card:
    """One query and the first keys of its three answers; `right` holds the relevant keys once known."""

    query: Query
    order: int
    lane: str
    version: str
    keys: dict[str, list[int]]
    asked: bool
    label: str | None = None
    right: Collection[int] = ()

    @property
    def picture(self) -> bytes | None:
        """The image that was asked, where the query is one."""
        return self.query.content if isinstance(self.query.content, bytes) else None

    def shown(self, item: Callable[[int], Item]) -> dict[str, Any]:
        """As the page gets it."""
        content = self.query.content
        return {
            "at": str(self.query.at),
            "lane": self.lane,
            "modality": self.query.modality,
            "text": content if isinstance(content, str) else "",
            "picture": f"/picture/query/{self.query.at}" if isinstance(content, bytes) else "",
            "asked": self.asked,
            "labelled": self.label is not None,
            "answers": {
                name: [self._answer(key, item(key)) for key in keys] for name, keys in self.keys.items()
            },
        }

    def _answer(self, key: int, item: Item) -> dict[str, Any]:
        return {
            "id": item.identifier,
            "title": item.title or item.identifier,
            "picture": item.picture,
            "right": key in self.right,
        }


def chosen(outcome: Outcome, first: int, sampled: Callable[[Coordinates], bool]) -> list[Card]:
    """Three queries that both twins read, evenly spread; of those whose label was asked for, if any.

    Args:
        first: how many queries came before the batch.
        sampled: whether the label of a query is asked for.
    """
    queries = outcome.batch.queries
    rows = np.flatnonzero(outcome.paired).tolist()
    asked = [row for row in rows if sampled(queries[row].at)]
    pool = asked or rows
    return [
        Card(
            queries[row], first + row, outcome.batch.lane, outcome.gallery_version,
            {
                "frozen": _first(outcome.frozen.answer, row),
                "adapted": _first(outcome.adapted.answer, row),
                "served": _first(outcome.served, row),
            },
            bool(asked),
        )
        for row in sorted({pool[i * len(pool) // 3] for i in range(3)} if pool else ())
    ]  # fmt: skip


def _first(hits: Hits, row: int) -> list[int]:
    return [int(key) for key in hits.keys[row, :TOP] if key >= 0]
