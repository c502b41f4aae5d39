"""`qshift fit open_clip`: a base model whose towers are one small open_clip model trained here.

Its towers have LayerNorms and no BatchNorm, as the large open_clip models have: the base for trying what
adapts there, without any download. It learns the given captions by heart and knows no other words.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from core.errors import ConfigError
from core.seeds import generator
from core.types import Modality
from encoders.base_model import Parts
from encoders.clip import open_clip_towers
from encoders.norms import calibrate
from encoders.scratch import ScratchConfig, train_clip
from encoders.threads import one_thread
from qshift.data.emoji import EmojiSet
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, collated, encoded, jittered
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import Step, first_hits, forward_only
from qshift.shifts.images import Picture

CLEAN_QUERIES = 448  # seven batches
FEWEST_QUERIES = 2 * BATCH
"""Part of the key of every draw of clean queries: query streams use other purposes."""
PURPOSE = "open_clip base"


def choose_step(modality: Modality) -> Step:
    """Learning rate and temperature of towers with LayerNorm: starting values, not chosen on these data."""
    return forward_only(3e-3, 0.05) if modality == "image" else Step(3e-3, 0.05)


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
    contents = [data.content(item) for item in range(len(data))]
    captions = [data.captions(item) for item in range(len(data))]
    asked = _drawn(len(data), seed)
    count = Count(config.steps + 2 * batches_of(len(data)) + 2 * batches_of(len(asked)), progress)
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        losses = train_clip(
            Path(scratch), contents, captions, config, seed, lambda *_: count.step("training the model")
        )
        towers = open_clip_towers(f"local-dir:{scratch}")
        gallery = encoded(towers.image, contents, count)
        texts = encoded(towers.text, [own[0] for own in captions], count)
        looks, words = _asking(data, asked, seed)
        calibration = calibrate(towers.image, collated(towers.image, looks, count))
        parts = Parts(
            name=name,
            towers=Path(scratch),
            head=hash_head({"image": gallery, "text": texts}, bits, seed),
            calibration={"image": calibration},
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
        asking: dict[Modality, Clean] = {
            "image": Clean(calibration.features, gallery, choose_step("image")),
            "text": Clean(encoded(towers.text, words, count), gallery, choose_step("text")),
        }
        finish_base(folder, parts, asking)


def _asking(data: EmojiSet, asked: list[tuple[int, int]], seed: int) -> tuple[list[Picture], list[str]]:
    """Pictures taken again, and captions in turn."""
    looks = [jittered(data, [item], seed, f"{PURPOSE} {copy}")[0] for item, copy in asked]
    words = [data.captions(item)[copy % len(data.captions(item))] for item, copy in asked]
    return looks, words


def _drawn(n: int, seed: int) -> list[tuple[int, int]]:
    """(item, copy) of each clean query: whole batches, small sets in several copies."""
    size = min(CLEAN_QUERIES, max(FEWEST_QUERIES, n // BATCH * BATCH))
    drawn: list[tuple[int, int]] = []
    for copy in range(-(-size // n)):
        order = generator(seed, f"clean queries {copy}", PURPOSE).permutation(n)
        drawn += [(int(item), copy) for item in order]
    return drawn[:size]


def _check(n: int, bits: int, width: int) -> None:
    """Before minutes of training, what the hash head would refuse after them."""
    if bits <= 0 or bits % 8:
        raise ConfigError(f"expected a number of bits divisible by 8, got {bits}")
    least = bits if bits <= width else 2
    if n < least:
        raise ConfigError(f"{n} pictures are too few for {bits} bits: expected at least {least}")
