"""What `fit clip --train heads` gains on captions that neither towers nor heads have seen.

OMP_NUM_THREADS=1 PYTHONPATH=. python tests/encoders/measure_heads.py CACHE FASHION_PRODUCT [SEEDS [STEPS]]

A small CLIP is trained from nothing on half of the emoji. Brought are names of the others, and titles of
fashion products, which such a tower knows nothing of. Of each four fifths go into the heads (one of them
chooses the epoch), five times, so that every picture is held out once. A caption asks the pictures held out
with it, and the other way round. Intervals: 95 %, bootstrap over pictures, of all seeds together.
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.seeds import generator
from encoders.clip import open_clip_towers
from encoders.linear_heads import HeadsConfig, Pairs, fit_heads
from encoders.projection import Projection
from encoders.scratch import ScratchConfig, train_clip
from qshift.benchmarks.tasks.fashion import read_products
from qshift.data.emoji import load_emoji
from qshift.recipes.encode import Count, encoded

SIDE, PRODUCTS, FOLDS, DRAWS = 64, 600, 5, 2000
Ranks = NDArray[np.float64]


def told(towers: Any, pictures: Sequence[Any], captions: Sequence[Sequence[str]]) -> Pairs:
    said = [(place, text) for place, several in enumerate(captions) for text in several]
    count = Count(1 << 30, None)
    numbers: dict[str, int] = {}
    same = [numbers.setdefault(text, len(numbers)) for _, text in said]
    return Pairs(
        encoded(towers.image, pictures, count),
        encoded(towers.text, [text for _, text in said], count),
        np.array([place for place, _ in said]),
        np.array(same),
    )


def ranks(pairs: Pairs, rows: NDArray[np.int64], maps: Sequence[Projection] | None) -> tuple[Ranks, Ranks]:
    """Of the right picture for each first caption, and the other way round; equal ones count half."""
    pictures, first = np.unique(pairs.picture[rows], return_index=True)
    images, texts = (torch.from_numpy(found) for found in (pairs.images[pictures], pairs.texts[rows[first]]))
    if maps is not None:
        with torch.no_grad():
            images, texts = maps[0](images), maps[1](texts)
    like = (texts @ images.T).numpy()
    own = np.diag(like)
    return tuple(  # type: ignore[return-value]
        1 + (other > mine).sum(axis) + ((other == mine).sum(axis) - 1) / 2
        for other, mine, axis in ((like, own[:, None], 1), (like, own[None], 0))
    )


def folds(pairs: Pairs, seed: int) -> list[tuple[NDArray[np.int64], ...]]:
    """(learn, choose, report) places of captions, by pictures: captions here are each of one picture."""
    pictures = int(pairs.picture[-1]) + 1
    fold = generator(seed, "heads measured", "folds").permutation(pictures) % FOLDS
    of = fold[pairs.picture]
    return [
        tuple(
            np.flatnonzero(part)
            for part in ((of != n) & (of != (n + 1) % FOLDS), of == (n + 1) % FOLDS, of == n)
        )
        for n in range(FOLDS)
    ]


def interval(change: Ranks) -> str:
    draw = np.random.default_rng(0)
    means = [change[draw.integers(0, len(change), len(change))].mean() for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * change.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def said(found: Mapping[tuple[str, str], Sequence[Sequence[Ranks]]]) -> None:
    """Of the seeds so far."""
    for (name, way), parts in found.items():
        old, new = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
        first, inverse = ((old <= 1.0, new <= 1.0), (1 / old, 1 / new))
        for figure, (was, now) in (("R@1", first), ("mAP", inverse)):
            change = interval(now.astype(float) - was.astype(float))
            print(
                f"{name}, {way} ask, {figure}: {100 * was.mean():.1f} -> {100 * now.mean():.1f}, {change}",
                flush=True,
            )


def main(cache: Path, products: Path, seeds: int, steps: int) -> None:
    data = load_emoji(cache, SIDE)
    fashion = read_products(products)
    chosen = [*fashion.gallery][:PRODUCTS]
    looks = fashion.pictures(chosen)
    found: dict[tuple[str, str], list[list[Ranks]]] = defaultdict(list)
    for seed in range(seeds):
        order = generator(seed, "heads measured", "halves").permutation(len(data)).tolist()
        seen, unseen = order[: len(data) // 2], order[len(data) // 2 :]
        with tempfile.TemporaryDirectory() as folder:
            train_clip(
                Path(folder), [data.content(i) for i in seen], [data.captions(i) for i in seen],
                ScratchConfig(steps=steps), seed,
            )  # fmt: skip
            towers = open_clip_towers(f"local-dir:{folder}")
            sets = {
                "emoji": told(towers, [data.content(i) for i in unseen], [data.captions(i) for i in unseen]),
                "fashion": told(towers, looks, [[one.text] for one in chosen]),
            }
            for name, pairs in sets.items():
                epochs = []
                for number, (learn, choose, report) in enumerate(folds(pairs, seed)):
                    place = Path(folder, "kept")
                    heads = fit_heads(
                        pairs,
                        learn,
                        choose,
                        HeadsConfig(seed=seed),
                        place,
                        f"{name} {seed} {number}",
                        lambda: None,
                    )
                    epochs.append(heads.epoch)
                    maps = (heads.image, heads.text) if heads.epoch else None
                    before, after = ranks(pairs, report, None), ranks(pairs, report, maps)
                    for way, old, new in zip(("captions", "pictures"), before, after, strict=True):
                        found[name, way].append([old, new])
                print(f"seed {seed}, {name}: {len(pairs.images)} pictures, epochs {epochs}", flush=True)
        said(found)


if __name__ == "__main__":
    rest = [int(word) for word in sys.argv[3:]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(rest + [3, 120][len(rest) :]))
