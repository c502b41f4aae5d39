"""A Milvus in memory, which may be away: calls as pymilvus has them, brute force behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from index.milvus import Library


@dataclass
class ToyMilvus:
    """Equal distances come in descending order of keys: unlike ours, as a server's may."""

    away: bool = False
    calls: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    made: list[tuple[int, str, int]] = field(default_factory=list)
    rows: dict[str, dict[int, bytes]] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    shortest: int = 0
    """So many fewer neighbours than asked for are found, as groups that are not looked into have them."""

    def library(self) -> Library:
        return Library(self._connect, (ConnectionError,), lambda *layout: (layout, None))

    def _connect(self, **given: Any) -> ToyMilvus:
        self.given = given
        self._called("connect")
        return self

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise ConnectionError(f"no route with {self.given.get('token')}\nand a page more")

    def list_collections(self, timeout: float) -> list[str]:
        self._called("list_collections")
        return list(self.rows)

    def has_collection(self, collection_name: str, timeout: float) -> bool:
        self._called("has_collection")
        return collection_name in self.rows

    def create_collection(self, collection_name: str, schema: Any, **_: Any) -> None:
        self._called("create_collection")
        self.made.append(schema)
        self.rows[collection_name] = {}

    def upsert(self, collection_name: str, data: list[dict[str, Any]], timeout: float) -> None:
        self._called("upsert")
        self.rows[collection_name] |= {row["key"]: row["code"] for row in data}

    def flush(self, collection_name: str, timeout: float) -> None:
        self._called("flush")

    def load_collection(self, collection_name: str, timeout: float) -> None:
        self._called("load_collection")

    def drop_collection(self, collection_name: str, timeout: float) -> None:
        self._called("drop_collection")
        self.rows.pop(collection_name, None)

    def query(self, collection_name: str, **_: Any) -> list[dict[str, int]]:
        self._called("query")
        return [{"count(*)": len(self.rows[collection_name])}]

    def search(self, collection_name: str, data: list[bytes], limit: int, **how: Any) -> Any:
        self._called("search")
        if collection_name not in self.rows:
            raise ConnectionError("collection not found")
        self.asked.append(how)
        rows = self.rows[collection_name]
        keys = np.array(sorted(rows, reverse=True))
        codes = np.frombuffer(b"".join(rows[key] for key in keys.tolist()), np.uint8).reshape(len(keys), -1)
        found = []
        for query in data:
            bits = np.bitwise_count(codes ^ np.frombuffer(query, np.uint8)).sum(axis=1)
            near = np.argsort(bits, kind="stable")[: limit - self.shortest]
            found.append([{"id": int(keys[at]), "distance": float(bits[at])} for at in near])
        return found
