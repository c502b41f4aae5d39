"""`qshift fit open_clip`: a base model whose towers are one small open_clip model trained here.

Its towers have LayerNorms and no BatchNorm, as the large open_clip models have: the base for trying what
adapts there, without any download. It learns the given captions by heart and knows no other words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from core.errors import ConfigError
from core.protocols import Encoder
from core.seeds import generator
from core.types import Floats, Modality
from encoders.base_model import write_base
from encoders.clip import open_clip_towers
from encoders.head import HashHead, itq
from encoders.scratch import ScratchConfig, train_clip
from encoders.threads import one_thread
from qshift.data.emoji import EmojiSet
from qshift.recipes.measure import BATCH, Count, Progress, Step, collated, jittered, measure

CLEAN_QUERIES = 448  # seven batches
FEWEST_QUERIES = 2 * BATCH
"""Part of the key of every draw of clean queries: query streams use other purposes."""
PURPOSE = "open_clip base"


def choose_step() -> Step:
    """Learning rate and temperature of towers with LayerNorm: starting values, not chosen on these data."""
    return Step(3e-3, 0.05)


def fit_open_clip_base(
    folder: Path,
    data: EmojiSet,
    bits: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    config: ScratchConfig | None = None,
    name: str = "open_clip",
) -> None:
    """Trains a small CLIP on captioned pictures and writes it as a base model. On one thread.

    Args:
        folder: where the base goes.
        data: pictures and captions.
        bits: width of the codes, a multiple of 8.
        seed: of weights, batches, jitter and hash head; equal seeds write equal files.
        progress: called with (done, total, text).
        config: sizes and steps of the model.
        name: of the base.

    Raises:
        ConfigError: bits no multiple of 8, or fewer pictures than the hash head needs.
        ArtifactError: the training diverged.
    """
    config = config or ScratchConfig()
    _check(len(data), bits, config.embed)
    everything = range(len(data))
    queries = _drawn(len(data), seed)
    per_pass = -(-len(data) // BATCH)
    count = Count(config.steps + 2 * per_pass + 2 * len(queries) // BATCH, progress)
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        towers_folder = Path(scratch)
        contents = [data.content(item) for item in everything]
        captions = [data.captions(item) for item in everything]
        losses = train_clip(
            towers_folder, contents, captions, config, seed, lambda *_: count.step("training the model")
        )
        towers = open_clip_towers(f"local-dir:{towers_folder}")
        gallery = _features(towers.image, contents, count)
        texts = _features(towers.text, [own[0] for own in captions], count)
        mean = gallery.mean(0)
        means: dict[Modality, Floats] = {"image": mean, "text": texts.mean(0)}
        hashing = HashHead(itq(gallery, mean, bits, seed=seed), np.zeros(bits, np.float32), means)
        looks = [jittered(data, [item], seed, f"{PURPOSE} {copy}")[0] for item, copy in queries]
        words = [captions[item][copy % len(captions[item])] for item, copy in queries]
        clean: dict[Modality, Floats] = {
            "image": _features(towers.image, looks, count),
            "text": _features(towers.text, words, count),
        }
        measured = {name: measure(q, gallery, hashing, name, choose_step()) for name, q in clean.items()}
        write_base(
            folder,
            name=name,
            towers=towers_folder,
            projections={},
            head=hashing,
            constants={name: constants for name, (constants, _) in measured.items()},
            calibration={},
            reference={name: reference for name, (_, reference) in measured.items()},
            provenance={
                "pictures": data.attribution,
                "towers": "trained from scratch on these pictures",
                "training": asdict(config),
                "seed": seed,
                "loss": losses[-1],
                "text_to_image_r1": first_hits(texts, gallery, data.labels),
                "items": len(data),
            },
            preprocess=towers.image.preprocess,
        )


def first_hits(texts: Floats, gallery: Floats, labels: Sequence[str]) -> float:
    """Share of texts [n, D] whose most similar picture [n, D] has their own label."""
    nearest = (texts @ gallery.T).argmax(1)
    return float(np.mean([labels[int(found)] == labels[own] for own, found in enumerate(nearest)]))


def _drawn(n: int, seed: int) -> list[tuple[int, int]]:
    """(item, copy) of each clean query: whole batches, small sets in several copies."""
    size = min(CLEAN_QUERIES, max(FEWEST_QUERIES, n // BATCH * BATCH))
    drawn: list[tuple[int, int]] = []
    for copy in range(-(-size // n)):
        order = generator(seed, f"clean queries {copy}", PURPOSE).permutation(n)
        drawn += [(int(item), copy) for item in order]
    return drawn[:size]


def _features(tower: Encoder, contents: Sequence[object], count: Count) -> Floats:
    found: Floats = torch.cat([tower.encode(inputs) for inputs in collated(tower, contents, count)]).numpy()
    return found


def _check(n: int, bits: int, width: int) -> None:
    """Before minutes of training, what the hash head would refuse after them."""
    if bits <= 0 or bits % 8:
        raise ConfigError(f"expected a number of bits divisible by 8, got {bits}")
    least = bits if bits <= width else 2
    if n < least:
        raise ConfigError(f"{n} pictures are too few for {bits} bits: expected at least {least}")
