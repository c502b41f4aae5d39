"""`qshift fit open_clip`: a base model whose towers are one small open_clip model trained here.

Its towers have LayerNorms and no BatchNorm, as the large open_clip models have: the base for trying what
adapts there, without any download. It learns the given captions by heart and knows no other words.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from core.types import Modality
from encoders.base_model import Parts
from encoders.clip import open_clip_towers
from encoders.scratch import ScratchConfig, train_clip
from encoders.threads import one_thread
from qshift.data.emoji import EmojiSet
from qshift.recipes.captioned import captioned, check_bits, encodings
from qshift.recipes.encode import Count, Progress
from qshift.recipes.finish import finish_base
from qshift.recipes.measure import ALIGNED, MENDED, Step, first_hits, forward_only

PURPOSE = "open_clip base"
"""Part of the key of every draw of clean queries: query streams use other purposes."""


def choose_step(modality: Modality) -> Step:
    """Learning rate and temperature of towers with LayerNorm: starting values, not chosen on these data."""
    return forward_only(3e-3, 0.05, MENDED if modality == "text" else ALIGNED)


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
    check_bits(len(data), bits, config.embed)
    contents = [data.content(item) for item in range(len(data))]
    captions = [data.captions(item) for item in range(len(data))]
    count = Count(config.steps + encodings(len(data)), progress)
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        losses = train_clip(
            Path(scratch), contents, captions, config, seed, lambda *_: count.step("training the model")
        )
        towers = open_clip_towers(f"local-dir:{scratch}")
        seen = captioned(towers, data, seed, PURPOSE, count)
        parts = Parts(
            name=name,
            towers=Path(scratch),
            head=seen.head(bits, seed),
            calibration={"image": seen.calibration},
            provenance={
                "pictures": data.attribution,
                "towers": "trained from scratch on these pictures",
                "training": asdict(config),
                "seed": seed,
                "loss": losses[-1],
                "text_to_image_r1": first_hits(seen.texts, seen.gallery, data.labels),
                "items": len(data),
            },
            preprocess=towers.image.preprocess,
        )
        clean = seen.clean(choose_step("image"), choose_step("text"))
        curve = seen.curve(data, seed, PURPOSE, count)
        finish_base(folder, parts, clean, curve)
