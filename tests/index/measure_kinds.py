"""Recall, speed, memory and build of each kind of index; no test. Figures: docs/lab/performance.md.

    python tests/index/measure_kinds.py ITEMS [KIND ...]

Codes of 64 bits of clustered features, 200 items a cluster; 256 queries of the same clusters. CPU time.
"""

import sys
import time
from functools import partial
from typing import Any

import faiss
import numpy as np

from index.approximate import KINDS, ApproximateIndex, recall
from index.binary import FaissIndex

BITS, WIDTH, SPREAD, BLOCK, QUERIES, K = 64, 48, 0.6, 100_000, 256, 100
EFFORTS: dict[str, tuple[int, ...]] = {
    "ivf": (8, 16, 32, 64, 128), "hnsw": (64, 128, 256), "multi-hash": (0, 1, 2),
}  # fmt: skip


def codes(count: int, clusters: int, draw: np.random.Generator) -> Any:
    fixed = np.random.default_rng(0)
    centres, planes = fixed.normal(size=(clusters, WIDTH)), fixed.normal(size=(WIDTH, BITS))
    rows = centres[draw.integers(clusters, size=count)] + SPREAD * draw.normal(size=(count, WIDTH))
    return np.packbits(rows @ planes >= 0, axis=1, bitorder="little")


def timed(work: Any) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    count, kinds = int(float(sys.argv[1])), sys.argv[2:] or KINDS
    faiss.omp_set_num_threads(1)
    draw, clusters = np.random.default_rng(1), max(100, count // 200)
    items = np.concatenate([codes(BLOCK, clusters, draw) for _ in range(-(-count // BLOCK))])[:count]
    queries, keys = codes(QUERIES, clusters, draw), np.arange(count, dtype=np.int64)
    flat = FaissIndex(BITS)
    flat.add(keys, items)
    took = min(timed(lambda: flat.search(queries, K))[0] for _ in range(3))
    exact = flat.search(queries, K).distances
    print(f"{count:,} items\nflat              {1e3 * took / QUERIES:.3f} ms a query", flush=True)
    for kind in kinds:
        seconds, index = timed(partial(made, kind, keys, items))
        for effort in EFFORTS[kind]:
            index.at(effort)
            took = min(timed(partial(index.search, queries, K))[0] for _ in range(3))
            found = index.search(queries, K).distances
            ten, hundred = (recall(found, exact, k) for k in (10, K))
            print(
                f"{kind:10} {effort:>4}   {1e3 * took / QUERIES:.3f} ms a query, recall@10 {ten:.3f}, "
                f"@{K} {hundred:.3f}, built in {seconds:.0f} s",
                flush=True,
            )


def made(kind: Any, keys: Any, items: Any) -> ApproximateIndex:
    index = ApproximateIndex(BITS, kind)
    index.add(keys, items)
    return index


if __name__ == "__main__":
    main()
