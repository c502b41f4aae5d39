"""Build a gallery of vectors, search it by binary codes, fuse two views of a query, judge both.

Run: python examples/compare_codes.py
"""

import numpy as np
import torch

from encoders.head import HashHead, itq
from index.fuse import fuse
from index.gallery import VersionedGallery
from monitoring.ranking import average_precision

BITS, WIDTH, ITEMS = 64, 96, 500


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def main() -> float:
    rng = np.random.default_rng(0)
    items = unit(rng.normal(size=(ITEMS, WIDTH)))
    mean = items.mean(0)
    head = HashHead(itq(items, mean, BITS), np.zeros(BITS, np.float32), {"vector": mean})
    names = [f"item {i}" for i in range(ITEMS)]
    gallery = VersionedGallery(BITS, names, head.codes(torch.from_numpy(items), "vector"), names, items)

    # Two noisy views of the same 50 items: as two encoders would see one query each.
    wanted = rng.choice(ITEMS, 50, replace=False)
    views = [unit(items[wanted] + 0.12 * rng.normal(size=(50, WIDTH))) for _ in range(2)]
    codes = [head.codes(torch.from_numpy(view), "vector") for view in views]
    hits = [gallery.search(code, 100) for code in codes]
    both = fuse(hits[0], hits[1], codes[0], codes[1], gallery.codes_of, 10, "sum")

    single = np.mean(
        [
            average_precision(d, gallery.relevant(names[i]))
            for d, i in zip(gallery.distances(codes[0]), wanted)
        ]
    )
    fused = gallery.distances(codes[0]) + gallery.distances(codes[1])
    together = np.mean([average_precision(d, gallery.relevant(names[i])) for d, i in zip(fused, wanted)])
    right = np.mean(both.keys[:, 0] == wanted)
    print(f"mAP of one view {100 * single:.1f}, of two views {100 * together:.1f}")
    print(f"first answer right for {100 * right:.0f} % of the queries")
    return float(together - single)


if __name__ == "__main__":
    main()
