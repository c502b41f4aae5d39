"""`qshift fit distil`: a base with LayerNorm towers of useful quality, without any download.

The teacher is what `qshift fit` alone makes: EfficientNet-Lite0 and MiniLM, joined by two heads. A small
open_clip model, a ViT and a text transformer, learns where the teacher puts the pictures and their captions.
Deterministic for one seed and thread count, on a CPU.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from adapters.offline.two_tower import TwoTowerConfig
from core.errors import ConfigError
from core.types import Floats
from encoders.base_model import Parts
from encoders.clip import open_clip_towers
from encoders.distil import DistilConfig, Taught, distil_clip
from encoders.repair import count_words
from encoders.scratch import ScratchConfig
from encoders.threads import one_thread
from qshift.data.emoji import TEMPLATES, EmojiSet
from qshift.recipes.captioned import captioned, check_bits, drawn, encodings, retaken
from qshift.recipes.emoji_base import VIEWS, memory_of, views
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, encoded_raw
from qshift.recipes.finish import finish_base
from qshift.recipes.measure import MENDED, first_hits, forward_only
from qshift.recipes.packaged import TwoHeads, packaged_towers

STUDENT = ScratchConfig(width=96, text_layers=1, context=24, embed=128, steps=1000)
LOOKS, WORDS = forward_only(3e-3, 0.05), forward_only(3e-3, 0.05, MENDED)
TOWERS = "trained here, to the features of the teacher on these pictures"
PURPOSE = "distil base"
"""Part of the key of every draw of clean queries: query streams use other purposes, the teacher too."""


def fit_distil_base(
    folder: Path,
    data: EmojiSet,
    bits: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    config: DistilConfig | None = None,
    name: str = "distil",
) -> None:
    """Fits the teacher, trains the student and writes it as a base model. On one thread, or on a GPU.

    Args:
        folder: where the base goes.
        data: pictures and captions, at least 128.
        bits: width of the codes, a multiple of 8.
        seed: of teacher, weights, batches, jitter and hash head.
        progress: called with (done, total, text).
        config: of the student; it is as wide as the teacher, 128.
        name: of the base.

    Raises:
        ConfigError: too few pictures, bits no multiple of 8, or a student of another width.
        ArtifactError: the packages of the demo extra are missing, or the training diverged.
    """
    config = config or DistilConfig(STUDENT)
    n, heads = len(data), TwoTowerConfig(seed=seed)
    _check(data, bits, config, heads)
    steps = batches_of(*[n] * VIEWS) + heads.epochs + config.student.steps + encodings(n)
    count = Count(steps + batches_of(len(drawn(n, seed, PURPOSE))), progress)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def stepped(*_: object) -> None:
        count.step("training the student")

    with tempfile.TemporaryDirectory() as teacher, tempfile.TemporaryDirectory() as scratch, one_thread():
        taught, about = _taught(Path(teacher), data, heads, seed, count)
        contents = [data.content(item) for item in range(n)]
        losses = distil_clip(Path(scratch), contents, taught, config, seed, stepped, device)
        towers = open_clip_towers(f"local-dir:{scratch}")
        seen = captioned(towers, data, seed, PURPOSE, count)
        told = {"teacher": about, "training": asdict(config), "loss": losses[-1], **seen.found(data)}
        parts = Parts(
            name=name,
            towers=Path(scratch),
            head=seen.head(bits, seed),
            calibration={"image": seen.calibration},
            provenance={"pictures": data.attribution, "towers": TOWERS, "items": n, "seed": seed, **told},
            memory=memory_of(towers.image, data, seen.gallery, seed),
            vocabulary=count_words(text for item in range(n) for text in data.captions(item)),
            preprocess=towers.image.preprocess,
        )
        curve = seen.curve(data, seed, PURPOSE, count)
        finish_base(folder, parts, seen.clean(LOOKS, WORDS), curve)


def _taught(
    folder: Path, data: EmojiSet, config: TwoTowerConfig, seed: int, count: Count
) -> tuple[Taught, dict[str, object]]:
    """What the teacher says of the set, and what is to be known of the teacher."""
    towers = packaged_towers(folder, data.side)
    looks, phrases = views(towers, data, seed, count)
    heads = TwoHeads.fitted(looks, phrases, config, count)
    images = [heads.unit("image", view) for view in looks]
    texts = [heads.unit("text", view) for view in phrases]
    asked = drawn(len(data), seed, PURPOSE)
    queries = heads.unit("image", encoded_raw(towers.image, retaken(data, asked, seed, PURPOSE), count))
    labels = [data.labels[item] for item, _ in asked]
    about = {
        **heads.provenance(),
        "side": data.side,
        "image_to_image_r1": first_hits(queries, images[0], data.labels, labels),
        "text_to_image_r1": first_hits(texts[0], images[0], data.labels),
    }
    spoken = [[data.captions(item)[k] for item in range(len(data))] for k in range(len(TEMPLATES))]
    return Taught(_middle(images), spoken, texts), about


def _middle(views: list[Floats]) -> Floats:
    """Unit means [n, D] of an item's views: an item taken again should lie where all its pictures do."""
    total = np.sum(views, axis=0)
    found: Floats = (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
    return found


def _check(data: EmojiSet, bits: int, config: DistilConfig, heads: TwoTowerConfig) -> None:
    if len(data) < 2 * BATCH:
        raise ConfigError(f"{len(data)} {data.noun} are too few for a base: expected at least {2 * BATCH}")
    check_bits(len(data), bits, config.student.embed)
    if config.student.embed != heads.width:
        raise ConfigError(f"the student gives {config.student.embed} numbers, the teacher {heads.width}")
