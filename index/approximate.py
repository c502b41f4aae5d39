"""Binary indexes of FAISS that look at a part of the items only: for galleries of millions.

"ivf" groups items around centroids and looks into the nearest groups (Jegou et al., 2011), "hnsw" walks a
graph of neighbours (Malkov and Yashunin, 2018), "multi-hash" looks up pieces of the code, also with some bits
flipped (Norouzi et al., 2012). Which items are looked at is approximate; their distances, and the order by
(distance, key) among what was found, are exact. Filters, and fewer items than `FEWEST`, are searched exactly.

Every build is deterministic for one thread count. docs/lab/performance.md has recall and speed of each.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np

from core.config import IndexKind
from core.errors import ConfigError
from core.types import Codes, Distances, Hits, Keys
from index.codes import checked
from index.exact import checked_k, unused
from index.over_exact import OverExact

KINDS: tuple[IndexKind, ...] = ("ivf", "hnsw", "multi-hash")
EFFORT: dict[str, int] = {"ivf": 64, "hnsw": 128, "multi-hash": 2}
"""Groups looked into; neighbours kept on the walk; bits flipped in each piece: the search's own default."""
FEWEST = 10_000
"""Items below which a look at all of them takes less than encoding a thousandth of a query."""
GROUPS, SAMPLES = 4.0, 40
"""Groups are so many times the root of the items; so many items a group train their centroids."""
LINKS, WALK = 16, 64
"""Neighbours of each item in the graph, and kept while it is made."""
PIECE = 16
"""Bits of a piece, at most; about one item a cell is best: log2 of the items."""


class ApproximateIndex(OverExact):
    """Codes by key, as `FaissIndex` on a CPU. Searches may run side by side, changes not.

    Args:
        bits: L, a multiple of 8.
        kind: which.
        effort: see `EFFORT`; None takes its default.
        threads: of FAISS, see `FaissIndex`.

    Raises:
        ConfigError: an unknown kind, or an effort below 1.
    """

    def __init__(
        self, bits: int, kind: IndexKind, effort: int | None = None, threads: int | None = None
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"no index of kind {kind!r}: expected flat, {', '.join(KINDS)}")
        if effort is not None and effort < 1:
            raise ConfigError(f"expected an effort of at least 1 for {kind}, got {effort}")
        self.kind, self.effort = kind, EFFORT[kind] if effort is None else effort
        super().__init__(bits, threads)
        self._near: Any = None
        self._parts: list[Any] = []  # what FAISS refers to and does not own

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K near [B, K] by (distance, key); rows in which fewer were found are searched exactly."""
        if allowed is not None or self._near is None:
            return self._exact.search(codes, k, allowed)
        queries = checked(codes, self.bits)
        checked_k(k)
        hits, found = unused(len(queries), k), min(k, len(self))
        distances, places = self._near.search(queries, found)
        short = (places < 0).any(axis=1)
        order = np.lexsort((places, distances))
        hits.keys[:, :found] = self.keys[np.take_along_axis(places, order, 1)]
        hits.distances[:, :found] = np.take_along_axis(distances, order, 1)
        if short.any():
            again = self._exact.search(queries[short], k)
            hits.keys[short], hits.distances[short] = again.keys, again.distances
        return hits

    def at(self, effort: int) -> None:
        """Searches with another effort from now on; what is built stays."""
        self.effort = effort
        if self._near is None:
            return
        match self.kind:
            case "ivf":
                self._near.nprobe = effort
            case "hnsw":
                self._near.hnsw.efSearch = effort
            case "multi-hash":
                self._near.nflip = effort

    def _changed(self) -> None:
        self._near, self._parts = None, []
        if len(self) < FEWEST:
            return
        match self.kind:
            case "ivf":
                self._near = self._ivf()
            case "hnsw":
                self._near = faiss.IndexBinaryHNSW(self.bits, LINKS)
                self._near.hnsw.efConstruction = WALK
            case "multi-hash":
                piece = min(PIECE, self.bits, round(math.log2(len(self))))
                self._near = faiss.IndexBinaryMultiHash(self.bits, self.bits // piece, piece)
        self._near.add(self.codes)
        self.at(self.effort)

    def _ivf(self) -> Any:
        groups = round(GROUPS * math.sqrt(len(self)))
        centroids = faiss.IndexBinaryFlat(self.bits)
        near = faiss.IndexBinaryIVF(centroids, self.bits, groups)
        self._parts.append(centroids)
        near.cp.seed, near.cp.min_points_per_centroid = 0, 1  # few are enough: FAISS would warn
        few = np.random.default_rng(0).permutation(len(self))[: groups * SAMPLES]
        near.train(self.codes[np.sort(few)])
        return near


def recall(found: Distances, exact: Distances, k: int = 10) -> float:
    """Share of the first k places [B, K] with an item as near as the exact search has at its k-th."""
    return float((found[:, :k] <= exact[:, k - 1 : k]).mean())
