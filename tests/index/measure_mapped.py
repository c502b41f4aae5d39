"""What features of a large gallery cost in memory and time: run it with the code of two commits to compare.

OMP_NUM_THREADS=1 PYTHONPATH=. python tests/index/measure_mapped.py FOLDER [ITEMS [WIDTH]]

FOLDER takes the gallery (1 GB for a million items of 512 numbers), and is made where it is not there.
"""

import sys
import time
from pathlib import Path

import numpy as np

from index.gallery import VersionedGallery

BITS, BATCH, K, TURNS = 64, 64, 100, 30


def memory() -> dict[str, int]:
    """MiB, now: anonymous, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    told = dict(line.split(":", 1) for line in lines)
    return {name: int(told[name].split()[0]) >> 10 for name in ("RssAnon", "RssFile", "VmHWM")}


def made(folder: Path, items: int, width: int) -> None:
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 256, (items, BITS // 8), dtype=np.uint8)
    rows = np.empty((items, width), np.float16)
    for start in range(0, items, 10_000):
        rows[start : start + 10_000] = draw.standard_normal(rows[start : start + 10_000].shape, np.float32)
    names = list(map(str, range(items)))
    VersionedGallery(BITS, names, codes, [()] * items, rows, backend="exact").save(folder)


def main(folder: Path, items: int, width: int) -> None:
    if not folder.exists():
        made(folder, items, width)
        print("made: run it again")
        return
    before, began = memory(), time.process_time()
    gallery = VersionedGallery.load(folder, threads=1)
    print(f"loaded in {time.process_time() - began:.1f} s of processor time")
    print(f"features {2 * items * width >> 20} MiB")
    print("growth in MiB", {name: value - before[name] for name, value in memory().items()})
    codes = np.random.default_rng(9).integers(0, 256, (TURNS, BATCH, BITS // 8), dtype=np.uint8)
    keys = [gallery.search(some, K).keys for some in codes]
    for turn in ("first", "again"):
        took = []
        for some in keys:
            began = time.process_time()
            gallery.features(some)
            took.append(1000 * (time.process_time() - began))
        print(f"features of {BATCH} x {K}, {turn}: median {np.median(took):.1f} ms, most {max(took):.1f}")
    print("growth in MiB", {name: value - before[name] for name, value in memory().items()})


if __name__ == "__main__":
    rest = [int(float(word)) for word in sys.argv[2:]]
    main(Path(sys.argv[1]), *(rest + [1_000_000, 512][len(rest) :]))
