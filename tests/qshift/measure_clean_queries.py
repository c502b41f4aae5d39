"""What a base of plain pictures should measure its clean queries on: the table in docs/reference/data.md.

python tests/qshift/measure_clean_queries.py DATA CACHE [TASK]
"""

import sys
from pathlib import Path

from core.seeds import generator
from encoders.base_model import load_base
from index.gallery import VersionedGallery
from qshift.benchmarks.suite.bases import prepare
from qshift.benchmarks.suite.picture_base import CLEAN_QUERIES, PURPOSE, STEP
from qshift.benchmarks.suite.tasks import load_task
from qshift.recipes.encode import BATCH, Count, encoded
from qshift.recipes.measure import measure
from qshift.shifts.images import jitter


def main(data: Path, cache: Path, name: str = "pacs/photo-art") -> None:
    task = load_task(name, data, cache)
    ready = prepare(task, cache)
    base, gallery = load_base(ready.base), VersionedGallery.load(ready.gallery)
    tower, items = base.encoders["image"], gallery.features(gallery.keys())

    def show(what, pictures, own=None):
        features = encoded(tower, pictures, Count(1, None))
        found, _ = measure(features, items, base.head, "image", STEP, own=own)
        print(f"{what:40} gap {found.source_gap:.4f}  entropy ceiling {found.entropy_ceiling:.4f}")

    def some(count, purpose):
        size = min(CLEAN_QUERIES, count) // BATCH * BATCH
        return generator(0, purpose, PURPOSE).permutation(count)[:size]

    clean = task.pools["clean"]
    show("held-out clean pictures", [clean[i].content for i in some(len(clean), "held out")])
    own = some(len(task.gallery), "clean queries 0")
    pictures = [task.gallery[i].content for i in own]
    show("gallery, themselves left out", pictures, own)
    for amount in (0.3, 1.0):
        taken = [jitter(p, amount, generator(0, int(i), "jitter")) for p, i in zip(pictures, own)]
        show(f"gallery, jittered by {amount}", taken)
        show(f"gallery, jittered by {amount}, left out", taken, own)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
