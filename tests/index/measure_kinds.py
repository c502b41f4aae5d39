"""Recall, speed, memory and build of each kind of index; no test. Figures: docs/lab/performance.md.

    python tests/index/measure_kinds.py ITEMS [KIND ...]

Codes of 64 bits of clustered features, 200 items a cluster; 256 queries of the same clusters. CPU time.
Bytes an item: growth of the process while the index was made, the exact one beside it included.
"""

import ctypes
import gc
import sys
import time
from functools import partial
from pathlib import Path
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


def resident() -> int:
    """Bytes of the process in memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


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
    before, flat = resident(), FaissIndex(BITS)
    seconds, _ = timed(lambda: flat.add(keys, items))
    size = (resident() - before) / count
    took = min(timed(lambda: flat.search(queries, K))[0] for _ in range(3))
    exact = flat.search(queries, K).distances
    print(f"{count:,} items")
    print(
        f"flat              {1e3 * took / QUERIES:.3f} ms a query, {QUERIES / took:,.0f} queries/s, "
        f"{size:.0f} bytes an item, built in {seconds:.0f} s",
        flush=True,
    )
    for kind in kinds:
        before = resident()
        seconds, index = timed(partial(made, kind, keys, items))
        size = (resident() - before) / count
        for effort in EFFORTS[kind]:
            index.at(effort)
            took = min(timed(partial(index.search, queries, K))[0] for _ in range(3))
            found = index.search(queries, K).distances
            ten, hundred = (recall(found, exact, k) for k in (10, K))
            print(
                f"{kind:10} {effort:>4}   {1e3 * took / QUERIES:.3f} ms a query, {QUERIES / took:,.0f} "
                f"queries/s, recall@10 {ten:.3f}, @{K} {hundred:.3f}, {size:.0f} bytes an item, "
                f"built in {seconds:.0f} s",
                flush=True,
            )
        del index


def made(kind: Any, keys: Any, items: Any) -> ApproximateIndex:
    index = ApproximateIndex(BITS, kind)
    index.add(keys, items)
    return index


if __name__ == "__main__":
    main()
