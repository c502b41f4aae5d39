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
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return 1000 * min(found)


def main(count: int = 200_000) -> None:
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(count)]
    rows = [{"n": i, "tenth": i % 10, "tags": ["a", "b"][: 1 + i % 2]} for i in range(count)]
    codes = rng.integers(0, 256, (count, BITS // 8), dtype=np.uint8)
    gallery = VersionedGallery(BITS, names, codes, names, attributes=rows, threads=1)
    queries = rng.integers(0, 256, (ROWS, BITS // 8), dtype=np.uint8)
    print(f"{count:,} items of {BITS} bits, batches of {ROWS}, one thread, CPU milliseconds")
    print(f"all items, {ROWS} rows: {best(lambda: gallery.search(queries, K)):.1f}")
    for name in ("n", "tenth", "tags"):
        began = time.process_time()
        gallery.allowed(filter_of({name: 1 if name != "tags" else "b"}))
        print(f"first filter by {name}: {1000 * (time.process_time() - began):.1f}")
    for said in ({"n": {"to": 99}}, {"tenth": 3}, {"tags": "b"}):
        keys = gallery.allowed(filter_of(said))
        one = best(lambda keys=keys: gallery.search(queries, K, keys))
        each = best(lambda keys=keys: [gallery.search(queries[i : i + 1], K, keys) for i in range(ROWS)])
        print(f"{len(keys):,} allowed: {one:.1f} for one filter of all rows, {each:.0f} for a filter a row")
    for after in (gallery, gallery.remove(names[:: count // 1000])):
        different(after, queries, count)


def different(gallery, queries, count):
    """A filter of its own for each row, three quarters of the items in the mean."""
    wanted = [filter_of({"n": {"from": count // 5 + 500 * row}}) for row in range(ROWS)]
    looked = best(lambda: [gallery.allowed(one) for one in wanted])
    found = [gallery.allowed(one) for one in wanted]
    each = best(lambda: [gallery.search(queries[i : i + 1], K, keys) for i, keys in enumerate(found)])
    share = sum(map(len, found)) / ROWS
    print(f"{ROWS} different filters that allow {share:,.0f}: {looked:.0f} to look up, {each:.0f} to search")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
