"""What an index that is searched otherwise has in common with the exact one that it keeps beside."""

from __future__ import annotations

from abc import ABC, abstractmethod

from core.types import Codes, Distances, Keys
from index.binary import FaissIndex


class OverExact(ABC):
    """Codes by key, held by an exact index, which also searches what the other does not.

    Args:
        bits: L, a multiple of 8.
        threads: of FAISS, see `FaissIndex`.
    """

    def __init__(self, bits: int, threads: int | None) -> None:
        self._exact = FaissIndex(bits, threads=threads)

    def __len__(self) -> int:
        return len(self._exact)

    @property
    def bits(self) -> int:
        return self._exact.bits

    @property
    def keys(self) -> Keys:
        """[N] ascending."""
        return self._exact.keys

    @property
    def codes(self) -> Codes:
        """[N, L/8] in the order of `keys`."""
        return self._exact.codes

    def add(self, keys: Keys, codes: Codes) -> None:
        """Adds items and builds anew: segments get all of theirs at once. Raises GalleryError."""
        self._exact.add(keys, codes)
        self._changed()

    def remove(self, keys: Keys) -> int:
        """Removes the items that are there and builds anew; returns how many were."""
        count = self._exact.remove(keys)
        if count:
            self._changed()
        return count

    def distances(self, codes: Codes) -> Distances:
        """[B, L/8] -> [B, N] int32 in the order of `keys`, exactly."""
        return self._exact.distances(codes)

    @abstractmethod
    def _changed(self) -> None:
        """Builds from the items that there are now."""
