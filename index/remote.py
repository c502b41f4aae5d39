"""A binary index that Milvus searches, with all it takes to answer alike where Milvus is away.

The codes are in memory anyway, because an answer compares them; 24 bytes an item more make the exact search
here that filters, small segments and outages use. With BIN_FLAT Milvus is exact, and who searched does not
show: ties that its order may cut another way are settled here, so that a repeated batch has the same bytes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from core.config import IndexKind
from core.errors import GalleryError
from core.types import Codes, Hits, Keys
from index.approximate import FEWEST
from index.binary import settle
from index.codes import checked
from index.exact import checked_k, unused
from index.milvus import MOST, Milvus
from index.over_exact import OverExact

log = logging.getLogger("qshift.milvus")
TYPES: dict[str, str] = {"milvus": "BIN_FLAT", "milvus-ivf": "BIN_IVF_FLAT"}
PROBES = 64
"""Groups looked into by BIN_IVF_FLAT, as by "ivf"."""


class MilvusIndex(OverExact):
    """Codes by key, as `FaissIndex`. Searches may run side by side, changes not.

    Args:
        bits: L, a multiple of 8.
        kind: which.
        server: where they are searched. It may be away: what it misses is written when it is back.
        effort: groups that "milvus-ivf" looks into; None: 64.
        threads: of FAISS, see `FaissIndex`.
        fewest: items below which all are searched here.
    """

    def __init__(
        self, bits: int, kind: IndexKind, server: Milvus, effort: int | None = None,
        threads: int | None = None, fewest: int = FEWEST,
    ) -> None:  # fmt: skip
        super().__init__(bits, threads)
        self._type, self._server, self._fewest = TYPES[kind], server, fewest
        self._effort = (effort or PROBES) if kind == "milvus-ivf" else None
        self._name = ""  # of the collection; empty: it is not known to hold these codes
        self._held = ""  # the collection that is kept for us
        self._release: Callable[[], object] = _nothing
        self._writing = threading.Lock()

    @property
    def served(self) -> bool:
        """Whether Milvus is searched now."""
        return bool(self._name)

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K near [B, K] by (distance, key); filters, and what Milvus does not answer, are searched here."""
        queries = checked(codes, self.bits)
        checked_k(k)
        name, found = self._name, min(k, len(self))
        fetched = min(len(self), max(2 * found, found + 64))
        if allowed is not None or not len(queries) or fetched > MOST or not self._at_hand(name):
            return self._exact.search(queries, k, allowed)
        try:
            near = self._server.search(name, queries, fetched, self._effort)
        except GalleryError as error:
            self._away(error)
            return self._exact.search(queries, k)
        full = near.keys[:, -1] >= 0
        distances, keys, settled = settle(near.distances, near.keys, found, len(self))
        hits, sure = unused(len(queries), k), settled & full
        hits.keys[sure, :found], hits.distances[sure, :found] = keys[sure], distances[sure]
        if not sure.all():
            again = self._exact.search(queries[~sure], k)
            hits.keys[~sure], hits.distances[~sure] = again.keys, again.distances
        return hits

    def _at_hand(self, name: str) -> bool:
        """Whether Milvus can be asked now; where not, and it may be back, a thread looks after it."""
        if name or len(self) < self._fewest:
            return bool(name)
        if self._server.rested and self._writing.acquire(blocking=False):
            threading.Thread(target=self._return, name="qshift-milvus", daemon=True).start()
        return False

    def _return(self) -> None:
        try:
            self._publish()
        finally:
            self._writing.release()

    def _changed(self) -> None:
        self._name = ""
        if len(self) >= self._fewest:
            with self._writing:
                self._publish()

    def _publish(self) -> None:
        try:
            self._name = self._server.publish(self.keys, self.codes, self._type)
        except GalleryError as error:
            self._away(error)
        else:
            if self._name != self._held:
                self._release()
                self._held, self._release = self._name, self._server.hold(self._name, self)
            log.info("Milvus searches", extra={"items": len(self), "collection": self._name})

    def _away(self, error: GalleryError) -> None:
        self._name = ""
        log.warning("Milvus is away: items are searched here", extra={"error": str(error)})


def _nothing() -> object:
    """Releases nothing."""
    return None
