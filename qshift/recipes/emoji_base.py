"""A base model of named pictures: two packaged towers joined by two heads trained here, in two minutes.

The image tower takes pictures of the side that the set has: 112 pixels in the demo, 80 in the benchmark.
Everything is measured on the base's own clean pictures, jittered by seeds that no query stream uses.
Deterministic for one seed and thread count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from adapters.offline.two_tower import TwoTowerConfig
from core.errors import ConfigError
from core.references import SourcePairs
from core.seeds import generator
from core.types import Floats, Modality
from encoders.base_model import Base, Parts
from encoders.clip import Towers
from encoders.images import Content
from encoders.norms import calibrate
from encoders.repair import count_words
from encoders.vision import ImageTower
from qshift.data.emoji import TEMPLATES, EmojiSet
from qshift.recipes.asked import CleanQueries, batches_asked
from qshift.recipes.composed import composed_clean, composed_pairs
from qshift.recipes.encode import (
    BATCH,
    Count,
    Progress,
    batches_of,
    collated,
    encoded_raw,
    jittered,
    prepared_pictures,
)
from qshift.recipes.expected import Curves, curves_of, gallery_of
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import MENDED, Step, forward_only
from qshift.recipes.packaged import TwoHeads, packaged_towers
from qshift.shifts.images import Picture

COPIES = 2  # jittered copies to train on
CLEAN_QUERIES = 448  # seven batches, never trained on
VIEWS = 1 + COPIES + len(TEMPLATES)
MEMORY = 128  # training pairs kept for gradient decoupling
ASKED: tuple[Modality, ...] = ("image", "text", "composed")
"""Of which the quality to expect is measured."""
PURPOSE = "emoji base"
"""Part of the key of every training draw: query streams use other purposes, so no draw is shared."""


def choose_step(modality: Modality) -> Step:
    """Learning rate and temperature of a modality: starting values, not yet chosen on this base's data."""
    return forward_only(3e-4, 0.05, MENDED) if modality == "text" else forward_only(1e-3, 0.02)


def fit_emoji_base(
    folder: Path,
    data: EmojiSet,
    bits: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "emoji",
) -> None:
    """Trains and writes a base model on all pictures and names of a set.

    Args:
        folder: where the base goes.
        data: at least two batches of items; its side becomes the tower's.
        bits: width of the codes, a multiple of 8.
        seed: of jitter, heads and hash head.
        progress: called with (done, total, text).
        name: of the base.

    Raises:
        ConfigError: fewer than 128 items.
        ArtifactError: the packages of the demo extra are missing.
    """
    if len(data) < 2 * BATCH:
        raise ConfigError(f"{len(data)} {data.noun} are too few for a base: expected at least {2 * BATCH}")
    config, asking = TwoTowerConfig(seed=seed), _asking(data, seed)
    encoded = batches_of(*[len(data)] * VIEWS, len(asking))
    count = Count(encoded + config.epochs + batches_asked(*ASKED), progress)
    with tempfile.TemporaryDirectory() as scratch:
        towers = packaged_towers(Path(scratch), data.side)
        looks, phrases = views(towers, data, seed, count)
        heads = TwoHeads.fitted(looks, phrases, config, count)
        gallery, texts = heads.unit("image", looks[0]), heads.unit("text", phrases[0])
        image = heads.served(Path(scratch)).image
        queries = _jittered(data, asking, seed, COPIES)
        calibration = calibrate(image, collated(image, queries, count))
        parts = Parts(
            name=name,
            towers=Path(scratch),
            head=hash_head({"image": gallery, "text": texts}, bits, seed),
            projections=heads.projections(),
            calibration={"image": calibration},
            provenance={"pictures": data.attribution, "items": len(data), **heads.provenance()},
            memory=memory_of(image, data, gallery, seed),
            vocabulary=count_words(text for item in range(len(data)) for text in data.captions(item)),
            preprocess=image.preprocess,
        )
        clean: dict[Modality, Clean] = {
            "image": Clean(calibration.features, gallery, choose_step("image")),
            "text": Clean(texts[asking], gallery, choose_step("text")),
            "composed": composed_clean(calibration.features, texts[asking], gallery, choose_step("composed")),
        }

        def curves(base: Base) -> Curves:
            items = gallery_of(base, gallery, data.labels)
            return curves_of(base, items, clean_queries(data, seed), seed, count)

        finish_base(folder, parts, clean, curves)


def clean_queries(data: EmojiSet, seed: int) -> list[CleanQueries]:
    """Pictures taken once more, their names, and both composed.

    What the reference was measured with is nearer to it than new pictures are.
    """
    items = generator(seed, "expected", PURPOSE).permutation(len(data))[:CLEAN_QUERIES].tolist()
    looks, labels = _jittered(data, items, seed, COPIES + 2), [data.labels[item] for item in items]
    names = [data.captions(item)[0] for item in items]
    return [
        CleanQueries(looks, labels),
        CleanQueries(names, labels, modality="text"),
        composed_pairs(looks, names, labels),
    ]


def _asking(data: EmojiSet, seed: int) -> list[int]:
    """Items that clean queries ask for, in whole batches."""
    size = min(CLEAN_QUERIES, len(data) // BATCH * BATCH)
    drawn: list[int] = generator(seed, "clean queries", PURPOSE).permutation(len(data))[:size].tolist()
    return drawn


def memory_of(tower: ImageTower, data: EmojiSet, gallery: Floats, seed: int) -> dict[Modality, SourcePairs]:
    """Pictures taken again, and names, each with the gallery features [D] of its own item."""
    items = generator(seed, "memory", PURPOSE).permutation(len(data))[:MEMORY]
    looks = _jittered(data, items.tolist(), seed, COPIES + 1)
    names = [data.captions(item)[0] for item in items.tolist()]
    return {
        "image": SourcePairs(prepared_pictures(tower, looks), gallery[items]),
        "text": SourcePairs(tuple(names), gallery[items]),
    }


def views(towers: Towers, data: EmojiSet, seed: int, count: Count) -> tuple[list[Floats], list[Floats]]:
    """Raw tower features [n, raw width] of clean and jittered pictures, and of each phrasing of the names.

    Takes `batches_of(*[len(data)] * VIEWS)` steps of the count.
    """
    everything = range(len(data))
    pictures: list[Iterable[Content]] = [map(data.content, everything)]
    pictures += [_jittered(data, everything, seed, copy) for copy in range(COPIES)]
    texts = [[data.captions(item)[phrasing] for item in everything] for phrasing in range(len(TEMPLATES))]
    looks = [encoded_raw(towers.image, view, count) for view in pictures]
    return looks, [encoded_raw(towers.text, view, count) for view in texts]


def _jittered(data: EmojiSet, items: Iterable[int], seed: int, copy: int) -> list[Picture]:
    return jittered(data, items, seed, f"{PURPOSE} {copy}")
