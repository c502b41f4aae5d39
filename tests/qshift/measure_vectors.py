"""What the default method gains on made-up embeddings: the table of docs/how-to/bring-your-vectors.md.

    python tests/qshift/measure_vectors.py FOLDER [SEEDS] [METHODS]

Seeds from 100 on were for choosing; 0, 1, 2 are reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "toys"))
from toy_embeddings import SHIFTS, World, write

from core.config import Config
from core.readers.vectors import read_vectors
from encoders.base_model import load_base
from qshift.recipes.vectors import build_vector_gallery, fit_vector_base
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.own_run import OwnRow, run_records

ITEMS, QUERIES = 4000, 1024


def rows_of(folder: Path, seed: int, methods: list[str]) -> dict[str, list[OwnRow]]:
    """A row a method, for every shift in random order and for two in the order of their labels."""
    world, base, gallery = World(seed), folder / "base", folder / "gallery"
    items = read_vectors(write(folder / "items.npy", *world.drawn(ITEMS, 0)))
    fit_vector_base(base, items)
    build_vector_gallery(load_base(base), items).save(gallery)
    config = Config(device="cpu").model_copy(update={"base": base, "gallery": gallery})
    clean, labels = world.drawn(QUERIES, 1)
    order = np.argsort(labels, kind="stable").tolist()
    found = {}
    for shift, queue in (*((shift, None) for shift in SHIFTS), ("none", order), ("offset of 1", order)):
        rows, said = world.shifted(clean, shift), labels
        if queue is not None:
            rows, said = rows[queue], [labels[place] for place in queue]
        path = write(folder / "queries.npy", rows, said)
        own = own_queries(path, *own_parts(gallery, base), config)
        name = shift if queue is None else f"{shift}, sorted by label"
        found[name] = run_records(own.records, own.labels, config, ["frozen", *methods])
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    seeds = [int(seed) for seed in (sys.argv[2] if len(sys.argv) > 2 else "0,1,2").split(",")]
    methods = (sys.argv[3] if len(sys.argv) > 3 else "default").split(",")
    folder.mkdir(parents=True, exist_ok=True)
    runs = [rows_of(folder, seed, methods) for seed in seeds]
    print(f"| shift | frozen mAP | {' | '.join(f'{name}: served, alone' for name in methods)} |")
    for shift in runs[0]:
        cells = [f"{np.mean([run[shift][0].map for run in runs]):.1f}"]
        for number in range(1, len(methods) + 1):
            gains = [run[shift][number].map - run[shift][0].map for run in runs]
            alone = [run[shift][number].map_adapted - run[shift][0].map for run in runs]
            cells.append(
                f"{np.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f}), {np.mean(alone):+.1f}"
            )
        print(f"| {shift} | {' | '.join(cells)} |", flush=True)
