"""FAISS flat binary search on CPU and GPU, in the order of the oracle.

Order. FAISS keeps, of equal distances, the items stored first, also where the cut at k goes through a
tie (both its heap and its counting search). Items are therefore stored in the order of their keys: keys
larger than all others are appended, any other addition stores everything anew. Removal keeps the order.

Traps of faiss 1.15 this file stands in front of: a code of wrong width raises an empty AssertionError;
counting search reserves k (L + 1) places per query; `GpuIndexBinaryFlat` cannot remove or filter, takes
k <= 2048 and promises no order among ties.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.types import Codes, Distances, Hits, Keys
from index.codes import checked
from index.exact import ExactIndex, checked_k, places, unused

Device = Literal["auto", "cpu", "cuda"]
GPU_K = 2048  # largest k of faiss's selection on a GPU
FEW, BROAD = 8, 16
"""Queries of one filter, and the part of all items that it allows at least, for which all are searched."""
_COUNTING_BYTES = 64 << 20  # what counting search may reserve at once


class FaissIndex:
    """Codes by key. Searches may run side by side, changes not.

    Args:
        bits: L, a multiple of 8.
        device: "cuda" needs a GPU that faiss sees; "auto" takes one if it is there.
        threads: OpenMP threads of faiss, for the whole process; None leaves them alone. The order of
            hits does not depend on it.

    Raises:
        ConfigError: "cuda" where faiss sees no GPU.
    """

    def __init__(self, bits: int, device: Device = "cpu", threads: int | None = None) -> None:
        gpus = gpu_count() if device != "cpu" else 0
        if device == "cuda" and not gpus:
            raise ConfigError('device = "cuda", but faiss sees no GPU: use "auto" or "cpu"')
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        self.bits = bits
        self.device: Literal["cpu", "cuda"] = "cuda" if gpus else "cpu"
        # A copy on the host costs L/8 bytes an item and serves filters, rebuilding and distances.
        self._host = ExactIndex(bits)
        self._resources: Any = faiss.StandardGpuResources() if gpus else None
        self._index: Any = None
        self._gpu_lock = Lock()  # GPU resources are not safe for two searches at once
        self._store()

    def __len__(self) -> int:
        return len(self._host)

    @property
    def keys(self) -> Keys:
        """[N] ascending."""
        return self._host.keys

    @property
    def codes(self) -> Codes:
        """[N, L/8] in the order of `keys`."""
        return self._host.codes

    def add(self, keys: Keys, codes: Codes) -> None:
        """Adds items in any order of keys. Raises GalleryError as `ExactIndex.add` does."""
        before = len(self)
        last = int(self.keys[-1]) if before else -1
        self._host.add(keys, codes)
        if len(self) == before:
            return
        if self.device == "cpu" and int(np.min(keys)) > last:
            self._index.add_with_ids(self.codes[before:], self.keys[before:])
        else:
            self._store()

    def remove(self, keys: Keys) -> int:
        """Removes the items that are there; returns how many were."""
        count = self._host.remove(keys)
        if self.device == "cpu" and count:
            self._index.remove_ids(np.asarray(keys, dtype=np.int64))
        elif count:
            self._store()
        return count

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K nearest [B, K] by (distance, key), as `ExactIndex.search`.

        A filter searches a flat index of the allowed items made for the call: measured on 200,000 items
        of 128 bits and 64 queries, 0.2 ms for 100 allowed and 9 ms for half of them; FAISS's id selector
        took 34 and 134 ms for the same hits. To gather the items of a broad filter for one query takes five
        times the search of all: few queries are searched among all, and what is not allowed is left out.
        """
        queries = checked(codes, self.bits)
        checked_k(k)
        hits = unused(len(queries), k)
        at = None if allowed is None else places(self.keys, allowed)
        found = min(k, len(self) if at is None else len(at))
        if not found or not len(queries):
            return hits
        if at is not None:
            distances, near = self._among(queries, found, at)
        else:
            distances, near = self._whole(queries, found)
        hits.keys[:, :found], hits.distances[:, :found] = near, distances
        return hits

    def _whole(self, queries: Codes, found: int) -> tuple[Distances, Keys]:
        if self.device == "cpu":
            return _scan(self._index, queries, found, self.bits)
        if found > GPU_K:
            hits = self._host.search(queries, found)
            return hits.distances, hits.keys
        return self._search_gpu(queries, found)

    def _among(self, queries: Codes, found: int, at: NDArray[np.int64]) -> tuple[Distances, Keys]:
        """The nearest of the items at some places."""
        count = len(self)
        if len(queries) > FEW or len(at) * BROAD < count:
            return self._gathered(queries, found, at)
        # Twice as many as there would be among the found, if those that are allowed lay as all do.
        distances, near = self._whole(queries, min(count, 2 * found * count // len(at) + FEW))
        keys = self.keys[at]
        allowed = keys[np.minimum(np.searchsorted(keys, near), len(keys) - 1)] == near
        # A stable sort of what is allowed puts it first and leaves its order.
        first = np.argsort(~allowed, axis=1, kind="stable")[:, :found]
        distances, near = np.take_along_axis(distances, first, 1), np.take_along_axis(near, first, 1)
        short = allowed.sum(axis=1) < found
        if short.any():
            distances[short], near[short] = self._gathered(queries[short], found, at)
        return distances, near

    def _gathered(self, queries: Codes, found: int, at: NDArray[np.int64]) -> tuple[Distances, Keys]:
        distances, near = _scan(_flat(self.bits, self.codes[at]), queries, found, self.bits)
        return distances, self.keys[at[near]]

    def distances(self, codes: Codes) -> Distances:
        """[B, L/8] -> [B, N] int32 in the order of `keys`; on the host."""
        return self._host.distances(codes)

    def _store(self) -> None:
        """Stores everything anew, in the order of keys."""
        if self.device == "cpu":
            self._index = faiss.IndexBinaryIDMap2(_flat(self.bits))
            self._index.add_with_ids(self.codes, self.keys)
            return
        self._index = faiss.GpuIndexBinaryFlat(self._resources, self.bits)
        if len(self):
            self._index.add(self.codes)

    def _search_gpu(self, queries: Codes, found: int) -> tuple[Distances, Keys]:
        """Fetches more than asked, puts ties in order, and repeats on the host where a tie is cut."""
        fetched = min(len(self), GPU_K, max(2 * found, found + 64))
        with self._gpu_lock:
            distances, near = self._index.search(queries, fetched)
        distances, near, settled = settle(distances, near, found, len(self))
        keys = self.keys[near]
        if not settled.all():
            again = self._host.search(queries[~settled], found)
            keys[~settled], distances[~settled] = again.keys, again.distances
        return distances, keys


def gpu_count() -> int:
    """GPUs faiss can use; 0 for a build without GPU support."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "GpuIndexBinaryFlat") else 0


def settle(
    distances: Distances, near: NDArray[np.int64], found: int, items: int
) -> tuple[Distances, NDArray[np.int64], NDArray[np.bool_]]:
    """The best `found` of what was fetched by (distance, position), and the rows [B] where that is exact.

    A row is exact when everything as near as its last hit was fetched: something farther came along,
    or there was nothing more to fetch.

    Args:
        distances: [B, F] in any order, F >= found.
        near: [B, F] positions.
        found: places wanted.
        items: N.
    """
    order = np.lexsort((near, distances))
    distances, near = np.take_along_axis(distances, order, 1), np.take_along_axis(near, order, 1)
    settled = distances[:, -1] > distances[:, found - 1]
    settled |= distances.shape[1] >= items
    return distances[:, :found], near[:, :found].copy(), settled


def _flat(bits: int, items: Codes | None = None) -> Any:
    index: Any = faiss.IndexBinaryFlat(bits)
    index.use_heap = False  # counting is as fast at k = 10 and four times as fast at k = 10,000
    if items is not None:
        index.add(items)
    return index


def _scan(index: Any, queries: Codes, found: int, bits: int) -> tuple[Distances, Keys]:
    """Searches as many queries at once as counting search may reserve memory for."""
    rows = max(1, _COUNTING_BYTES // (8 * found * (bits + 1)))
    parts = [index.search(queries[top : top + rows], found) for top in range(0, len(queries), rows)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
