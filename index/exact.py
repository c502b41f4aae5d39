"""Brute force in NumPy: the oracle of every other index, and a real backend without FAISS.

Items stand in the order of their keys, so that a stable sort by distance breaks ties by key by itself;
FAISS does the same with positions, and so both give one order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import GalleryError
from core.types import Codes, Distances, Hits, Keys
from index.codes import NO_DISTANCE, NO_KEY, checked, hamming, width_of

_CELLS = 1 << 22  # distances ranked at once: 32 MB of positions


class ExactIndex:
    """Codes by key. Not for changes while another thread searches.

    Args:
        bits: L, a multiple of 8.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._keys: Keys = np.empty(0, np.int64)
        self._codes: Codes = np.empty((0, width_of(bits)), np.uint8)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> Keys:
        """[N] ascending."""
        return self._keys

    @property
    def codes(self) -> Codes:
        """[N, L/8] in the order of `keys`."""
        return self._codes

    def add(self, keys: Keys, codes: Codes) -> None:
        """Adds items in any order of keys.

        Raises:
            GalleryError: wrong shape, a negative key, or a key that is there already or twice.
        """
        new, rows = checked_keys(keys), checked(codes, self.bits)
        if len(new) != len(rows):
            raise GalleryError(f"expected one key per code, got {len(new)} keys and {len(rows)} codes")
        order = np.argsort(new, kind="stable")
        new, rows = new[order], rows[order]
        repeated = new[1:][new[1:] == new[:-1]]
        known = new[np.isin(new, self._keys, assume_unique=not len(repeated))]
        if len(repeated) or len(known):
            raise GalleryError(
                f"expected new keys, got {[*repeated[:3], *known[:3]]} again: remove them before adding"
            )
        if not len(self):
            self._keys, self._codes = new, rows
            return
        at = np.searchsorted(self._keys, new)
        self._keys = np.insert(self._keys, at, new)
        self._codes = np.insert(self._codes, at, rows, axis=0)

    def remove(self, keys: Keys) -> int:
        """Removes the items that are there; returns how many were."""
        gone = np.isin(self._keys, checked_keys(keys))
        self._keys, self._codes = self._keys[~gone], self._codes[~gone]
        return int(gone.sum())

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K nearest [B, K] by (distance, key); places beyond the items hold -1 and 2147483647.

        Args:
            codes: [B, L/8] uint8.
            k: places per query, >= 1.
            allowed: only these keys may be found; unknown ones are ignored. None: all.
        """
        queries = checked(codes, self.bits)
        checked_k(k)
        keys, items = self.subset(allowed)
        hits = unused(len(queries), k)
        found = min(k, len(keys))
        rows = max(1, _CELLS // max(1, len(keys)))
        for top in range(0, len(queries) if found else 0, rows):
            # NumPy sorts 16-bit keys stably by radix; L <= 32768 fits.
            distances = hamming(queries[top : top + rows], items).astype(np.uint16)
            near = np.argsort(distances, axis=1, kind="stable")[:, :found]
            hits.keys[top : top + rows, :found] = keys[near]
            hits.distances[top : top + rows, :found] = np.take_along_axis(distances, near, 1)
        return hits

    def distances(self, codes: Codes) -> Distances:
        """[B, L/8] -> [B, N] int32 in the order of `keys`."""
        return hamming(checked(codes, self.bits), self._codes)

    def subset(self, allowed: Keys | None) -> tuple[Keys, Codes]:
        """Keys and codes of the allowed items that exist, in the order of `keys`."""
        if allowed is None:
            return self._keys, self._codes
        found = places(self._keys, allowed)
        return self._keys[found], self._codes[found]


def places(keys: Keys, allowed: Keys) -> NDArray[np.int64]:
    """Where the allowed keys stand in keys [N], ascending; unknown ones are passed over.

    Allow-lists come in ascending order from a gallery and are as long as it: they are not sorted again, and
    where keys follow each other without a gap none is looked up.
    """
    wanted = np.asarray(allowed, dtype=np.int64)
    if not (wanted[1:] > wanted[:-1]).all():
        wanted = np.sort(wanted)
        wanted = wanted[np.append(True, wanted[1:] != wanted[:-1])]
    if not len(keys):
        return wanted[:0]
    first, last = keys[0], keys[-1]
    wanted = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last, "right")]
    if last - first == len(keys) - 1:
        return np.asarray(wanted - first, np.int64)
    return np.flatnonzero(np.isin(keys, wanted, assume_unique=True))


def nearest(distances: Distances, k: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the k nearest of distances [N], in the order of a stable sort, without sorting N.

    Args:
        counts: items per distance, `numpy.bincount(distances)`.
    """
    if k >= len(distances):
        return np.argsort(distances, kind="stable")
    last = int(np.searchsorted(np.cumsum(counts), k))
    closer = np.flatnonzero(distances < last)
    tied = np.flatnonzero(distances == last)[: k - len(closer)]
    found = np.concatenate((closer, tied))
    return found[np.argsort(distances[found], kind="stable")]


def unused(rows: int, k: int) -> Hits:
    """Hits [rows, k] of which no place is used yet."""
    return Hits(np.full((rows, k), NO_KEY, np.int64), np.full((rows, k), NO_DISTANCE, np.int32))


def checked_k(k: int) -> None:
    """Raises GalleryError where no neighbour is asked for."""
    if k < 1:
        raise GalleryError(f"expected k >= 1 neighbours, got {k}")


def checked_keys(keys: Any) -> NDArray[np.int64]:
    """Keys [N] int64, none negative (-1 marks unused places), or GalleryError."""
    array = np.asarray(keys)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise GalleryError(f"expected keys [N] of integers, got {array.dtype} of shape {array.shape}")
    if array.size and array.min() < 0:
        raise GalleryError(f"expected keys >= 0, got {array.min()}: -1 marks unused places")
    return array.astype(np.int64)
