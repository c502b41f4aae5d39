"""What is left of a segment: its items without those that were removed, which a bitmap names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.filters import Filter
from core.types import Codes, Distances, Hits, Keys
from index.exact import places, unused
from index.segment import Segment

SPARE = 8
"""Removed items that a first search makes room for at least; rows that meet more of them search again."""


class Living:
    """A segment of a gallery version.

    Args:
        segment: n items, shared with other versions.
        dead: [n] True where an item was removed; None: nowhere. Not written to any more.
    """

    def __init__(self, segment: Segment, dead: NDArray[np.bool_] | None = None) -> None:
        self.segment, self.dead = segment, dead
        self.gone = 0 if dead is None else int(np.count_nonzero(dead))

    def __len__(self) -> int:
        return len(self.segment) - self.gone

    @cached_property
    def alive(self) -> NDArray[np.int64]:
        """Positions inside the segment of what is left, ascending."""
        if self.dead is None:
            return np.arange(len(self.segment))
        return np.flatnonzero(~self.dead)

    @cached_property
    def keys(self) -> Keys:
        """[len(self)] ascending."""
        return self.segment.keys if self.dead is None else self.segment.keys[self.alive]

    @cached_property
    def _rank(self) -> NDArray[np.int64]:
        """[n] How many are left before each."""
        assert self.dead is not None, "asked only where something is gone"
        return np.cumsum(~self.dead) - ~self.dead

    def without(self, positions: Sequence[int]) -> Living:
        """With more of it gone, by positions inside the segment."""
        dead = np.zeros(len(self.segment), np.bool_) if self.dead is None else self.dead.copy()
        dead[list(positions)] = True
        return Living(self.segment, dead)

    def position(self, key: int) -> int | None:
        """Where an item stands inside the segment; None for unknown and removed ones."""
        found = int(np.searchsorted(self.segment.keys, key))
        there = found < len(self.segment) and self.segment.keys[found] == key
        return found if there and (self.dead is None or not self.dead[found]) else None

    def positions(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Positions inside the segment of keys [...], and whether such an item is left."""
        found, known = self.segment.positions(keys)
        return found, known if self.dead is None else known & ~self.dead[found]

    def key_of(self, identifier: str) -> int | None:
        """None where no item that is left has the name."""
        key = self.segment.key_of.get(identifier)
        return None if key is None or self.position(key) is None else key

    def carriers(self, label: str) -> NDArray[np.int64]:
        """Of the items left, ascending, those that carry the label: their numbers among what is left."""
        found = self.segment.carriers.get(label)
        if found is None:
            return np.empty(0, np.int64)
        places = np.frombuffer(found, dtype=np.int64)
        return places if self.dead is None else self._rank[places[~self.dead[places]]]

    def allowed(self, wanted: Filter) -> Keys:
        """Of the items left, keys of those that a filter of one condition or more lets through, ascending."""
        found = self.segment.allowed(wanted)
        return self.segment.keys[found if self.dead is None else found[~self.dead[found]]]

    def distances(self, codes: Codes) -> Distances:
        """[B, L/8] -> [B, len(self)] in the order of keys."""
        every = self.segment.index.distances(codes)
        return every if self.dead is None else every[:, self.alive]

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K nearest [B, K] of what is left by (distance, key); see `ExactIndex.search`."""
        if self.dead is None:
            return self.segment.index.search(codes, k, allowed)
        if allowed is not None:
            found = places(self.segment.keys, allowed)
            return self.segment.index.search(codes, k, self.segment.keys[found[~self.dead[found]]])
        return self._beyond_the_dead(codes, k)

    def _beyond_the_dead(self, codes: Codes, k: int) -> Hits:
        """Fetches some more than k, and again twice as many for rows in which too many are gone.

        FAISS's own selector of items costs several times the whole search (`FaissIndex.search`).
        """
        hits, rows = unused(len(codes), k), np.arange(len(codes))
        # Twice as many as there would be among k others, if those that are gone lay as all do.
        room = min(self.gone, SPARE + 2 * k * self.gone // len(self.segment))
        while True:
            fetched = self.segment.index.search(codes[rows], k + room)
            known = self.positions(fetched.keys)[1]
            full = known.sum(axis=1) >= min(k, len(self))
            # A stable sort of what is known puts it first and leaves its order.
            first = np.argsort(~known, axis=1, kind="stable")[:, :k]
            left = np.take_along_axis(known, first, 1)
            keys, bits = (
                np.take_along_axis(column, first, 1) for column in (fetched.keys, fetched.distances)
            )
            hits.keys[rows] = np.where(left, keys, hits.keys[rows])
            hits.distances[rows] = np.where(left, bits, hits.distances[rows])
            if full.all():
                return hits
            rows, room = rows[~full], min(self.gone, 2 * room + k)


def merged_hits(parts: list[Hits], k: int) -> Hits:
    """The k best [B, K] of several hits whose keys ascend from part to part: ties stay in that order."""
    if len(parts) == 1:
        return parts[0]
    keys = np.concatenate([part.keys for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    # 16 bits are sorted by radix, stably; no distance is longer, and unused places go last.
    short = np.minimum(distances, np.iinfo(np.uint16).max).astype(np.uint16)
    best = np.argsort(short, axis=1, kind="stable")[:, :k]
    return Hits(np.take_along_axis(keys, best, 1), np.take_along_axis(distances, best, 1))
