"""A base model of compositional digits: a small open_clip model trained from nothing, in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError
from core.protocols import Encoder
from core.references import SourcePairs
from core.seeds import generator
from core.types import Modality
from encoders.clip import Towers
from encoders.scratch import ScratchConfig
from qshift.benchmarks.suite.scratch_base import (
    LOOKS,
    MEMORY,
    WORDS,
    Captioned,
    Material,
    Measured,
    fit_scratch_base,
    in_random_order,
)
from qshift.benchmarks.tasks.composition import SIDE, Composition, Shown
from qshift.benchmarks.tasks.types import Task
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, encoded
from qshift.recipes.finish import Clean, hash_head
from qshift.recipes.measure import first_hits

# Less augmentation than the emoji take: with theirs clean R@1 after 400 steps is .63, with this .95.
TRAINING = ScratchConfig(
    image_size=SIDE, patch=8, context=20, text_layers=1, steps=400, rotation=0.1, scale=0.1, shift=0.05
)
CALIBRATION = 384  # six batches
PURPOSE = "composition base"


def fit_composition_base(
    task: Task,
    folder: Path,
    bits: int = 64,
    progress: Progress | None = None,
    config: ScratchConfig = TRAINING,
) -> None:
    """Trains, measures and writes the base that the composition tasks share. On one thread.

    Args:
        task: brings `Composition` as extra["composition"].
        folder: where the base goes.
        bits: width of the codes, a multiple of 8.
        progress: called with (done, total, text).
        config: sizes and steps of the model.

    Raises:
        ConfigError: no pictures, or too few clean ones.
        ArtifactError: the training diverged.
    """
    data = task.extra.get("composition")
    if not isinstance(data, Composition):
        raise ConfigError(f"{task.name} brings no pictures: its loader must give extra['composition']")
    clean = in_random_order(data.clean, bits, PURPOSE)
    whole = len(clean) // BATCH * BATCH
    pictures = [shown.picture for shown in clean]
    material = Material(
        task.base,
        "handwritten digits of scikit-learn (UCI ML), BSD-3-Clause",
        [Captioned(shown.picture, shown.scene.captions()) for shown in data.fit],
        pictures[: min(CALIBRATION, whole)],
    )

    def measured(towers: Towers, count: Count) -> Measured:
        looks = encoded(towers.image, pictures, count)
        texts = encoded(towers.text, _in_turn(clean), count)
        asking: dict[Modality, Clean] = {
            "image": Clean(looks[:whole], texts, LOOKS, items_are="text"),
            "text": Clean(texts[:whole], looks, WORDS),
        }
        right = first_hits(looks, texts, [shown.scene for shown in clean])
        head = hash_head({"image": looks, "text": texts}, bits)
        memory = _memory(towers.image, towers.text, data.fit)
        return Measured(head, asking, memory, {"clean_image_to_text_r1": right})

    fit_scratch_base(folder, material, config, measured, 2 * batches_of(len(clean)), progress)


def _in_turn(shown: Sequence[Shown]) -> list[str]:
    """One caption for each picture, in one template after the other."""
    return [item.scene.captions()[i % len(item.scene.captions())] for i, item in enumerate(shown)]


def _memory(image: Encoder, text: Encoder, fit: Sequence[Shown]) -> dict[Modality, SourcePairs]:
    """Training pictures with the features of their captions, and captions with those of their pictures."""
    drawn = generator(0, "memory", PURPOSE).permutation(len(fit))[:MEMORY].tolist()
    shown = [fit[i] for i in drawn]
    pictures, words, silent = [item.picture for item in shown], _in_turn(shown), Count(0, None)
    return {
        "image": SourcePairs(tuple(pictures), encoded(text, words, silent)),
        "text": SourcePairs(tuple(words), encoded(image, pictures, silent)),
    }
