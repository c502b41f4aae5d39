"""What the queries of a batch want of their answers: which items may be found, and how many are served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.filters import ANYTHING, Filter
from core.protocols import Gallery
from core.types import Codes, Hits, Keys, Query

NO_KEY, NO_DISTANCE = -1, 2**31 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a batch in which at least one query wants something of its own.

    `allowed` holds, for every filter once, its rows and the keys of the items that it lets through; `tops`
    [B] is how many items each row is served, `widest` the largest of them.
    """

    allowed: tuple[tuple[NDArray[np.intp], Keys], ...]
    tops: NDArray[np.int64]
    widest: int

    @classmethod
    def of(cls, queries: Sequence[Query], gallery: Gallery, top: int) -> Limits | None:
        """None where no query wants anything but what the configuration says: then nothing is done here."""
        if all(
            query.wanted is ANYTHING or not (query.wanted.top or query.wanted.filter) for query in queries
        ):
            return None
        rows: dict[Filter, list[int]] = {}
        for row, query in enumerate(queries):
            if query.wanted.filter:
                rows.setdefault(query.wanted.filter, []).append(row)
        allowed = tuple((np.array(of), gallery.allowed(wanted)) for wanted, of in rows.items())
        tops = np.array([query.wanted.top or top for query in queries], np.int64)
        return cls(allowed, tops, int(tops.max()))

    def shortlist(self, gallery: Gallery, codes: Codes, hits: Hits) -> Hits | None:
        """The shortlists [B, K] of codes, among what each row allows; None where no row has a filter.

        Args:
            gallery: that was asked for `allowed`.
            codes: [B, L/8] of one twin.
            hits: what it found in the whole gallery, which rows without a filter keep.
        """
        if not self.allowed:
            return None
        keys, distances = hits.keys.copy(), hits.distances.copy()
        for rows, items in self.allowed:
            found = gallery.search(codes[rows], hits.keys.shape[1], items)
            keys[rows], distances[rows] = found.keys, found.distances
        return Hits(keys, distances)

    def cut(self, hits: Hits) -> Hits:
        """Each row with as many items as it wants; the places behind are unused."""
        beyond = np.arange(hits.keys.shape[1]) >= self.tops[:, None]
        if not beyond.any():
            return hits
        keys, distances = np.where(beyond, NO_KEY, hits.keys), np.where(beyond, NO_DISTANCE, hits.distances)
        return Hits(keys, distances.astype(np.int32), hits.scores)
