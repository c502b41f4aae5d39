"""What a change of a gallery costs, and what segments cost a search, in processor time of one core.

OMP_NUM_THREADS=1 python tests/index/measure_changes.py [ITEMS]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from index.gallery import VersionedGallery
from index.merging import merge

BITS, WIDTH, BATCH, K, MORE, TURNS = 64, 64, 64, 100, 1000, 40


def columns(start: int, count: int) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    rng = np.random.default_rng(start)
    codes = rng.integers(0, 256, (count, BITS // 8), dtype=np.uint8)
    names = [f"item {number}" for number in range(start, start + count)]
    labels = [f"class {number % 100}" for number in range(count)]
    return names, codes, labels, rng.normal(size=(count, WIDTH)).astype(np.float16)


def milliseconds(work: Callable[[], object], turns: int) -> float:
    """Median."""
    took = []
    for _ in range(turns):
        began = time.process_time()
        work()
        took.append(1000 * (time.process_time() - began))
    return float(np.median(took))


def in_turns(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """p95 of one in milliseconds, and its share of the other's: in turns, so both see one machine."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for place, work in enumerate((one, other)):
            began = time.process_time()
            work()
            took[place].append(1000 * (time.process_time() - began))
    first, second = (float(np.percentile(times, 95)) for times in took)
    return first, first / second


def main(items: int) -> None:
    began = time.process_time()
    gallery = VersionedGallery(BITS, *columns(0, items), threads=1)
    print(f"{items:,} items of {BITS} bits built in {time.process_time() - began:.1f} s")
    queries = np.random.default_rng(9).integers(0, 256, (BATCH, BITS // 8), dtype=np.uint8)

    def ask(gallery: VersionedGallery) -> Callable[[], object]:
        return lambda: gallery.features(gallery.search(queries, K).keys)

    def say(what: str, other: VersionedGallery) -> None:
        p95, share = in_turns(ask(other), ask(gallery))
        print(f"{what}, {len(other.parts)} segments: p95 {p95:.1f} ms, {share:.2f} of the whole one's")

    say(f"a batch of {BATCH}, {K} nearest with features", gallery)
    took, grown, merging = [], gallery, 0.0
    for turn in range(20):
        more = columns(items + turn * MORE, MORE)
        began = time.process_time()
        grown = grown.add(*more)
        took.append(1000 * (time.process_time() - began))
        began = time.process_time()
        merged = merge(grown)
        merging += time.process_time() - began
        if turn in (0, 6):
            say(f"after {turn + 1} additions", grown)
        if merged is not None:
            began = time.process_time()
            grown = merged.into(grown)
            took[-1] += 1000 * (time.process_time() - began)
    print(
        f"{MORE} more: median {np.median(took):.1f} ms, most {max(took):.1f}; "
        f"merging, beside it: {merging / 20 * 1000:.1f} ms each"
    )
    names = [f"item {number}" for number in range(0, items, items // 1000)]
    print(f"{len(names)} removed: {milliseconds(lambda: gallery.remove(names), 5):.1f} ms")
    gone = grown.remove(names)
    say("with those removed", gone)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "g")
        print(f"saved in {milliseconds(lambda: gallery.save(place), 1):.0f} ms", end="; ")
        print(f"then the changes in {milliseconds(lambda: gone.save(place), 1):.0f} ms", end="; ")
        print(f"loaded in {milliseconds(lambda: VersionedGallery.load(place), 1):.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
