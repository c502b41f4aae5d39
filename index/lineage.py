"""The identity of a gallery that was changed: what it began with, and what became of it.

A hash of a million items for each item added would cost the million. A changed version is therefore named by
its origin's hash and two sums modulo 2^256: of the hashes of the items added since and still there, and of
the origin's keys that are gone. A sum does not know an order: changes that end in the same items give the
same version, however they were grouped, and whatever came and went between. It is no defence against
somebody who constructs another gallery of the same name on purpose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from core.types import Keys
from index.segment import Segment

_MODULUS = 1 << 256


@dataclass(frozen=True, slots=True)
class Lineage:
    """Of one version.

    Args:
        origin: version of what it began with, made from nothing.
        first_key: the smallest key that the origin had not given out.
        added, removed: the sums.
    """

    origin: str
    first_key: int
    added: int = 0
    removed: int = 0

    @property
    def version(self) -> str:
        """16 hex digits; the origin's own where all is as it was."""
        if not (self.added or self.removed):
            return self.origin
        text = f"{self.origin}|{self.added:064x}|{self.removed:064x}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def keys(self, free: int, count: int, offsets: Sequence[int] | None = None) -> Keys:
        """Keys [count], ascending, of items that come now.

        An item out of a log has its offset behind the keys that the origin gave out. So it does not matter in
        which steps the log was taken in, nor what compaction removed from it: the same items have the same
        keys, and the version the same name.

        Args:
            free: the smallest that was never given out. Where other items took the key of an offset, the next
                free one stands for it.
            offsets: [count] of the items in their log, ascending; None: they come from none.
        """
        numbers = np.arange(count, dtype=np.int64)
        if offsets is None:
            return free + numbers
        behind = self.first_key + np.asarray(offsets, np.int64)
        return np.maximum.accumulate(np.maximum(behind - numbers, free)) + numbers

    def with_items(self, segment: Segment) -> Lineage:
        """After these were added."""
        added = self.added + sum(_item(segment, position) for position in range(len(segment)))
        return Lineage(self.origin, self.first_key, added % _MODULUS, self.removed)

    def without(self, gone: Iterable[tuple[Segment, int]]) -> Lineage:
        """After items, by segment and position inside it, were removed."""
        added, removed = self.added, self.removed
        for segment, position in gone:
            if segment.keys[position] < self.first_key:
                removed += _number(b"%d" % segment.keys[position])
            else:
                added -= _item(segment, position)
        return Lineage(self.origin, self.first_key, added % _MODULUS, removed % _MODULUS)


def _item(segment: Segment, position: int) -> int:
    """A hash of all that a version is made of; not of what pages show."""
    named: list[object] = [int(segment.keys[position]), segment.ids[position], segment.labels[position]]
    if said := segment.said(position):  # an item without any has the hash it had before there were attributes
        named.append(said)
    rows = segment.codes[position].tobytes()
    if segment.features is not None:
        rows += segment.features.rows[position].tobytes()
    return _number(json.dumps(named, sort_keys=True).encode() + b"\0" + rows)


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest(), "little")
