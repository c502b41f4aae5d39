"""What filters cost: the figures of "Cost" in docs/reference/queries.md.

python tests/index/measure_filters.py [ITEMS]
"""

import sys
import time

import numpy as np

from core.filters import filter_of
from index.gallery import VersionedGallery

BITS, ROWS, K, TIMES = 128, 64, 100, 5


def best(call):
    """Milliseconds, the best of a few."""
    found = []
    for _ in range(TIMES):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return 1000 * min(found)


def main(count: int = 200_000) -> None:
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(count)]
    rows = [{"n": i, "tenth": i % 10, "tags": ["a", "b"][: 1 + i % 2]} for i in range(count)]
    codes = rng.integers(0, 256, (count, BITS // 8), dtype=np.uint8)
    gallery = VersionedGallery(BITS, names, codes, names, attributes=rows, threads=1)
    queries = rng.integers(0, 256, (ROWS, BITS // 8), dtype=np.uint8)
    print(f"{count:,} items of {BITS} bits, batches of {ROWS}, one thread, milliseconds")
    print(f"all items, {ROWS} rows: {best(lambda: gallery.search(queries, K)):.1f}")
    for name in ("n", "tenth", "tags"):
        began = time.perf_counter()
        gallery.allowed(filter_of({name: 1 if name != "tags" else "b"}))
        print(f"first filter by {name}: {1000 * (time.perf_counter() - began):.1f}")
    for said in ({"n": {"to": 99}}, {"tenth": 3}, {"tags": "b"}):
        keys = gallery.allowed(filter_of(said))
        one = best(lambda keys=keys: gallery.search(queries, K, keys))
        each = best(lambda keys=keys: [gallery.search(queries[i : i + 1], K, keys) for i in range(ROWS)])
        print(f"{len(keys):,} allowed: {one:.1f} for one filter of all rows, {each:.0f} for a filter a row")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
