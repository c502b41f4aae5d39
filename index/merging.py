"""Fewer segments, with the same items: what keeps a gallery that changes quick to search.

Every segment is searched by itself, so many small ones cost more than one. Neighbours of a size are merged
when there are eight of them (size-tiered merging, as log-structured stores have it: O'Neil et al., The
Log-Structured Merge-Tree, 1996): an item is written anew about once for each factor of eight by which the
gallery is larger than what was added with it. Version, keys, positions and answers stay what they are.

The slow part, `merge`, may run in a thread beside the changes; the quick part, `Merged.into`, puts its result
into whatever version there is by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.types import Keys
from index.gallery import VersionedGallery
from index.living import Living
from index.segment import Segment


@dataclass(frozen=True, slots=True)
class Tiers:
    """When segments are merged.

    Args:
        fan: as many of a tier, with none of a higher one between them, become one.
        smallest: items below which a segment is of the lowest tier; each further one begins at `fan` times as
            many.
        gone: share of removed items above which a segment is written anew.
    """

    fan: int = 8
    smallest: int = 1024
    gone: float = 0.25

    def of(self, items: int) -> int:
        """The tier of a segment."""
        tier, most = 0, self.smallest
        while items >= most:
            tier, most = tier + 1, most * self.fan
        return tier


TIERS = Tiers()


@dataclass(frozen=True, slots=True)
class Merged:
    """Segments of some version, and one with what was left of them."""

    before: tuple[Living, ...]
    after: Segment

    def into(self, gallery: VersionedGallery) -> VersionedGallery:
        """The same version, with the merged segment in the place of those it was made of.

        What was removed since is gone from it; so is what now stands elsewhere, in another merged segment.
        """
        now = {id(part.segment): part for part in gallery.parts}
        there = [number for number, part in enumerate(gallery.parts) if self._mine(part)]
        if not there:
            return gallery
        gone = np.concatenate([_gone(part, now.get(id(part.segment))) for part in self.before])
        merged = Living(self.after)
        if len(gone):
            merged = merged.without(np.searchsorted(self.after.keys, gone).tolist())
        parts = list(gallery.parts)
        parts[there[0]] = merged
        for number in reversed(there[1:]):
            del parts[number]
        return gallery.with_parts(parts)

    def _mine(self, part: Living) -> bool:
        return any(part.segment is before.segment for before in self.before)


def merge(gallery: VersionedGallery, tiers: Tiers = TIERS) -> Merged | None:
    """Does what is due, if anything. Changes nothing: see `Merged.into`."""
    found = due(gallery.parts, tiers)
    if not found:
        return None
    segments = [part.segment for part in found]
    alive = [part.alive for part in found]
    places = [(s, i) for s, rows in zip(segments, alive) for i in rows.tolist()]
    features = [s.features.rows[rows] for s, rows in zip(segments, alive) if s.features is not None]
    shown = any(s.displays is not None for s in segments)
    said = any(s.attributes is not None for s in segments)
    after = Segment(
        gallery.bits,
        [s.ids[i] for s, i in places],
        np.concatenate([s.codes[rows] for s, rows in zip(segments, alive)]),
        [s.labels[i] for s, i in places],
        np.concatenate(features) if features else None,
        [s.display(i) for s, i in places] if shown else None,
        np.concatenate([part.keys for part in found]),
        gallery.searched,
        attributes=[s.said(i) for s, i in places] if said else None,
    )
    return Merged(tuple(found), after)


def tidied(gallery: VersionedGallery, tiers: Tiers = TIERS) -> VersionedGallery:
    """The same version with all merged that is due: for whoever has no thread for it."""
    while (merged := merge(gallery, tiers)) is not None:
        gallery = merged.into(gallery)
    return gallery


def due(parts: Sequence[Living], tiers: Tiers = TIERS) -> Sequence[Living]:
    """Neighbours that are to be merged, or one that is to be written anew; the smallest first."""
    found = [tiers.of(len(part)) for part in parts]
    for tier in sorted(set(found)):
        start = 0
        for end in range(len(parts) + 1):
            if end == len(parts) or found[end] > tier:
                if found[start:end].count(tier) >= tiers.fan:
                    return parts[start:end]
                start = end + 1
    for part in parts:
        if part.gone > tiers.gone * len(part.segment):
            return [part]
    return ()


def _gone(before: Living, now: Living | None) -> Keys:
    """Keys of what was removed in the meantime; all where the segment is there no more."""
    if now is None:
        return before.keys
    if now.dead is None or now is before:
        return before.keys[:0]
    newly = now.dead if before.dead is None else now.dead & ~before.dead
    return before.segment.keys[newly]
