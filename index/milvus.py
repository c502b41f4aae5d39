"""A connection to Milvus: collections of binary codes, written once and searched by Hamming distance.

A collection holds the codes of one segment, which never change, under a name made of them: several services
share it, and a second start finds it. Milvus keeps no names, labels or filters of ours.

Traps of pymilvus 3.0 and milvus-lite 2.5 this file stands in front of: calls raise gRPC's own errors beside
pymilvus's; without a timeout they are repeated 75 times; each error is logged with its traceback; a second
insert of a key makes a second row (upsert does not); milvus-lite 3 has no binary vectors at all.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, GalleryError
from core.milvus import MilvusConfig
from core.secrets import milvus_token
from core.types import Codes, Keys

log = logging.getLogger("qshift.milvus")
PREFIX = "qshift_"
ROWS = 10_000
"""Written at once: half a megabyte of 64-bit codes with their keys."""
WRITE_SECONDS = 600.0
"""Of one call that writes or loads: a server may have to build an index first."""
REST_SECONDS = (1.0, 30.0)
"""First and longest pause after a failure, as after failed deliveries."""
MOST = 16_384
"""Neighbours that Milvus gives at most."""
GROUPS, MOST_GROUPS = 4.0, 65_536
"""Of BIN_IVF_FLAT: so many times the root of the items, as "ivf" has them, and Milvus's most."""


class Near(NamedTuple):
    """Keys [B, F] and distances [B, F] in Milvus's order; -1 and 0 behind a row that is shorter."""

    keys: Keys
    distances: NDArray[np.int32]


class Library(NamedTuple):
    """What is used of pymilvus: what makes a client, what its calls raise, and how codes are described.

    `layout(bits, index, groups)` gives the schema and the index of a collection; 0 groups: it has none.
    """

    connect: Callable[..., Any]
    faults: tuple[type[Exception], ...]
    layout: Callable[[int, str, int], tuple[Any, Any]]


class Milvus:
    """Calls of a server that may be away: then they raise GalleryError, and it is left alone for a while.

    Args:
        settings: where it is.
        library: None: pymilvus.
        clock: monotonic seconds.

    Raises:
        ConfigError: pymilvus is not installed, or the token cannot be read.
    """

    def __init__(
        self, settings: MilvusConfig, library: Library | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings, self._clock, self._library = settings, clock, library or pymilvus()
        self._token = milvus_token(settings)
        self._client: Any = None
        self._until, self._pause = 0.0, 0.0
        self._lock = threading.Lock()
        self.outage: Callable[[], None] = lambda: None
        """Called when it stops answering; not again before it has answered."""
        self._held: Counter[str] = Counter()
        self._released: deque[str] = deque()

    @property
    def away(self) -> bool:
        """Whether its last call failed."""
        return self._pause > 0.0

    @property
    def rested(self) -> bool:
        """Whether it may be asked: it did not fail, or long enough ago."""
        return self._clock() >= self._until

    def reach(self) -> None:
        """Raises ConfigError where it cannot be reached: for a start, where a wrong setting is likely."""
        try:
            self._call("list_collections")
        except GalleryError as error:
            raise ConfigError(f'{error}: start it, correct [milvus], or set answer.index = "flat"') from None

    def publish(self, keys: Keys, codes: Codes, index: str) -> str:
        """Writes codes, where they are not there, and loads them; returns the name of their collection.

        Args:
            keys: [N].
            codes: [N, L/8].
            index: `BIN_FLAT`, or `BIN_IVF_FLAT`.
        """
        name = collection(keys, codes, index)
        if not self._call("has_collection", collection_name=name):
            self._create(name, 8 * codes.shape[1], index, len(keys))
        if self._count(name) != len(keys):  # new, or a writer ended half-way: keys are written once anyway
            for top in range(0, len(keys), ROWS):
                some = zip(keys[top : top + ROWS].tolist(), codes[top : top + ROWS], strict=True)
                rows = [{"key": key, "code": code.tobytes()} for key, code in some]
                self._call("upsert", WRITE_SECONDS, collection_name=name, data=rows)
            self._call("flush", WRITE_SECONDS, collection_name=name)
            self._call("load_collection", WRITE_SECONDS, collection_name=name)
            if (count := self._count(name)) != len(keys):
                raise self._failed(f"{name} holds {count:,} of {len(keys):,} codes after they were written")
        return name

    def search(self, name: str, codes: Codes, k: int, effort: int | None) -> Near:
        """The k nearest of codes [B, L/8]; k <= `MOST`."""
        params = {} if effort is None else {"nprobe": effort}
        found = self._call(
            "search", collection_name=name, data=[row.tobytes() for row in codes], limit=k,
            anns_field="code", search_params={"metric_type": "HAMMING", "params": params},
        )  # fmt: skip
        near = Near(np.full((len(codes), k), -1, np.int64), np.zeros((len(codes), k), np.int32))
        for row, hits in enumerate(found):
            near.keys[row, : len(hits)] = [hit["id"] for hit in hits]
            near.distances[row, : len(hits)] = [hit["distance"] for hit in hits]
        return near

    def hold(self, name: str, holder: object) -> Callable[[], object]:
        """Keeps a collection for as long as `holder` lives, or until what is returned is called."""
        self._held[name] += 1
        # A finaliser runs wherever memory is freed, under any lock: it only notes. At the end of the process
        # nothing is dropped: the next one finds what it wrote.
        release = finalize(holder, self._released.append, name)
        release.atexit = False
        return release

    def sweep(self) -> None:
        """Drops collections that were held and are no longer; what fails is tried at the next call.

        Other services may still search them: they write them again, and answer alike meanwhile.
        """
        while self._released and self.rested:
            name = self._released.popleft()
            self._held[name] -= 1
            if self._held[name] > 0:
                continue
            try:
                self.drop(name)
            except GalleryError as error:
                self._held[name] += 1
                self._released.append(name)
                log.warning("a collection is dropped later", extra={"error": str(error)})
            else:
                del self._held[name]
                log.info("no version uses a collection: dropped", extra={"collection": name})

    def drop(self, name: str) -> None:
        """Removes a collection, if it is there."""
        self._call("drop_collection", WRITE_SECONDS, collection_name=name)

    def collections(self) -> list[str]:
        """Names of those that are ours."""
        return sorted(name for name in self._call("list_collections") if name.startswith(PREFIX))

    def _create(self, name: str, bits: int, index: str, count: int) -> None:
        groups = 0 if index == "BIN_FLAT" else min(MOST_GROUPS, round(GROUPS * count**0.5))
        schema, how = self._library.layout(bits, index, groups)
        self._call(
            "create_collection", WRITE_SECONDS, collection_name=name, schema=schema, index_params=how,
            consistency_level="Strong",
        )  # fmt: skip

    def _count(self, name: str) -> int:
        self._call("load_collection", WRITE_SECONDS, collection_name=name)
        found = self._call(
            "query", WRITE_SECONDS, collection_name=name, filter="", output_fields=["count(*)"]
        )
        return int(found[0]["count(*)"])

    def _call(self, method: str, seconds: float | None = None, **given: Any) -> Any:
        """Asks the client, which is connected first. Raises GalleryError, after which it rests."""
        seconds = self._settings.timeout_seconds if seconds is None else seconds
        try:
            with self._lock:
                if self._client is None:
                    self._client = self._library.connect(
                        uri=self._settings.address, token=self._token, db_name=self._settings.database,
                        timeout=self._settings.timeout_seconds,
                    )  # fmt: skip
            found = getattr(self._client, method)(**given, timeout=seconds)
        except self._library.faults as error:
            raise self._failed(f"{method}: {_plain(error)}") from None
        self._until = self._pause = 0.0
        return found

    def _failed(self, reason: str) -> GalleryError:
        if not self.away:
            self.outage()
        first, longest = REST_SECONDS
        self._pause = min(longest, 2 * self._pause or first)
        self._until = self._clock() + self._pause
        if self._token:
            reason = reason.replace(self._token, "***")
        return GalleryError(f"Milvus at {self._settings.address} does not answer ({reason})")


def collection(keys: Keys, codes: Codes, index: str) -> str:
    """The name of what holds these codes, the same for whoever has the same ones."""
    content = hashlib.sha256(f"{codes.shape[1]} {index}".encode())
    content.update(keys.tobytes())
    content.update(codes.tobytes())
    return f"{PREFIX}{content.hexdigest()[:32]}"


def pymilvus() -> Library:
    """The real one. Raises ConfigError where it is not installed."""
    try:
        import grpc
        from pymilvus import DataType, MilvusClient, MilvusException
    except ImportError:
        raise ConfigError(
            "an index of kind milvus needs pymilvus, which is not installed: pip install 'qshift[milvus]'"
        ) from None
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # we say it ourselves, in one line

    def layout(bits: int, index: str, groups: int) -> tuple[Any, Any]:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.INT64, is_primary=True)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=bits)
        how = MilvusClient.prepare_index_params()
        params = {"nlist": groups} if groups else {}
        how.add_index("code", index_type=index, metric_type="HAMMING", params=params)
        return schema, how

    return Library(MilvusClient, (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, OSError), layout)


def _plain(error: Exception) -> str:
    """Its first line: gRPC's errors go on for a page."""
    message = getattr(error, "message", "") or getattr(error, "details", lambda: "")() or str(error)
    return str(message or type(error).__name__).strip().splitlines()[0][:200]
