"""What the default method gains on made-up embeddings: the table of docs/how-to/bring-your-vectors.md.

    python tests/qshift/measure_vectors.py FOLDER [SEEDS] [METHODS]
    python tests/qshift/measure_vectors.py recall

Seeds from 100 on were for choosing; 0, 1, 2 are reported. The second says how many of the ten items with the
largest cosine are in the shortlist that codes give.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "toys"))
from toy_embeddings import SHIFTS, World, write

from core.config import Config
from core.readers.vectors import read_vectors
from encoders.base_model import load_base
from encoders.head import HashHead, itq
from index.binary import FaissIndex
from qshift.recipes.vectors import build_vector_gallery, fit_vector_base
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.own_run import OwnRow, run_records

ITEMS, QUERIES = 3000, 768


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


def recall() -> None:
    """Width 256, 500 clusters, 200 queries, bits learnt from 20,000 items."""
    world = World(0, width=256, clusters=500)
    queries = world.drawn(200, 1)[0].astype(np.float32)
    print("| items | bits | in a shortlist of 100 | of 1,000 |")
    for count in (10_000, 100_000):
        items = world.drawn(count, 0)[0].astype(np.float32)
        mean, best = items.mean(0), np.argsort(-(queries @ items.T), axis=1)[:, :10]
        for bits in (64, 128, 256):
            head = HashHead(itq(items[:20_000], mean, bits), np.zeros(bits, np.float32), {"vector": mean})
            index = FaissIndex(bits)
            index.add(np.arange(count), head.codes(torch.from_numpy(items), "vector"))
            shares = []
            for shortlist in (100, 1000):
                near = index.search(head.codes(torch.from_numpy(queries), "vector"), shortlist).keys
                shares.append(np.mean([np.isin(ten, row).mean() for ten, row in zip(best, near)]))
            print(f"| {count:,} | {bits} | {shares[0]:.0%} | {shares[1]:.0%} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["recall"]:
        recall()
        raise SystemExit
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
