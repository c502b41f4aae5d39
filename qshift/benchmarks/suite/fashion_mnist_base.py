"""A base model of FashionMNIST: a small vision transformer trained from nothing, in minutes.

The base that alignment at LayerNorm is measured on (docs/methods/layernorm.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.errors import ConfigError
from core.references import SourcePairs
from core.seeds import generator
from core.types import Floats
from encoders.base_model import Base
from encoders.clip import Towers
from encoders.scratch import ScratchConfig
from qshift.benchmarks.suite.picture_base import crops_of
from qshift.benchmarks.suite.scratch_base import (
    LOOKS,
    MEMORY,
    Captioned,
    Material,
    Measured,
    fit_scratch_base,
    in_random_order,
)
from qshift.benchmarks.tasks.fashion_mnist import SIDE, Clothes
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.recipes.asked import batches_asked
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, encoded
from qshift.recipes.expected import Curves, curves_of, gallery_of
from qshift.recipes.finish import Clean, hash_head

# Five minutes; 1,500 steps of 128 would take twelve.
TRAINING = ScratchConfig(
    image_size=SIDE,
    patch=4,
    width=96,
    image_layers=4,
    text_layers=1,
    context=16,
    steps=1000,
    batch=64,
    learning_rate=1e-3,
    rotation=0.05,
    scale=0.08,
    shift=0.06,
)
PURPOSE = "fashion-mnist base"


def fit_fashion_mnist_base(
    task: Task,
    folder: Path,
    bits: int = 64,
    progress: Progress | None = None,
    config: ScratchConfig = TRAINING,
) -> None:
    """Trains, measures and writes the base of the FashionMNIST tasks, which serves pictures. On one thread.

    Captions are the ten names, so that what it learns is to tell these kinds.

    Args:
        task: brings `Clothes` as extra["clothes"].
        folder: where the base goes.
        bits: width of the codes, a multiple of 8.
        progress: called with (done, total, text).
        config: sizes and steps of the model.

    Raises:
        ConfigError: no pictures, or too few clean ones.
        ArtifactError: the training diverged, or fewer gallery pictures than bits.
    """
    data = task.extra.get("clothes")
    if not isinstance(data, Clothes):
        raise ConfigError(f"{task.name} brings no pictures: its loader must give extra['clothes']")
    clean = in_random_order(data.clean, bits, PURPOSE)
    clean = clean[: len(clean) // BATCH * BATCH]
    pictures = [sample.content for sample in clean]
    fit = [Captioned(sample.content, (sample.title,)) for sample in data.fit]
    material = Material(task.base, "FashionMNIST (Zalando), MIT", fit, pictures)

    def measured(towers: Towers, count: Count) -> Measured:
        gallery = encoded(towers.image, (sample.content for sample in data.gallery), count)
        looks = encoded(towers.image, pictures, count)

        def curves(base: Base) -> Curves:
            items = gallery_of(base, gallery, [sample.label for sample in data.gallery])
            return curves_of(base, items, [crops_of(data.gallery)], count=count)

        return Measured(
            hash_head({"image": gallery}, bits),
            {"image": Clean(looks, gallery, LOOKS)},
            {"image": _memory(data, gallery)},
            {"clean_r1": _right(clean, looks, data.gallery, gallery)},
            curve=curves,
        )

    batches = batches_of(len(data.gallery), len(pictures)) + batches_asked("image")
    fit_scratch_base(folder, material, config, measured, batches, progress)


def _right(asked: Sequence[Sample], looks: Floats, items: Sequence[Sample], features: Floats) -> float:
    """Share of the pictures whose most similar item is of their kind."""
    nearest = (looks @ features.T).argmax(1).tolist()
    return float(
        np.mean([items[found].label == one.label for one, found in zip(asked, nearest, strict=True)])
    )


def _memory(data: Clothes, features: Floats) -> SourcePairs:
    """Training pictures, each with the features of another of its kind in the gallery, drawn at random."""
    draw = generator(0, "memory", PURPOSE)
    labels = np.array([sample.label for sample in data.gallery])
    others = [sample for sample in data.fit[len(data.gallery) :] if sample.label in labels]
    shown = [others[i] for i in draw.permutation(len(others))[:MEMORY].tolist()]
    items = [int(draw.choice(np.flatnonzero(labels == sample.label))) for sample in shown]
    return SourcePairs(tuple(sample.content for sample in shown), features[items])
