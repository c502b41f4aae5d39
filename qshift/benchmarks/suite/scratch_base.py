"""A base model whose towers are a small open_clip model trained from nothing: what such recipes share.

Its towers have LayerNorms and no BatchNorm: the bases for what adapts there. A recipe brings `Material`, and
says how its own data ask (`Measured`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from core.errors import ConfigError
from core.references import Calibration, SourcePairs
from core.seeds import generator
from core.types import Modality
from encoders.base_model import Parts
from encoders.clip import Towers, open_clip_towers
from encoders.head import HashHead
from encoders.norms import calibrate
from encoders.repair import count_words
from encoders.scratch import ScratchConfig, train_clip
from encoders.threads import one_thread
from qshift.benchmarks.tasks.types import Picture
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, collated
from qshift.recipes.expected import Curve
from qshift.recipes.finish import Clean, finish_base
from qshift.recipes.measure import MENDED, forward_only

LOOKS, WORDS = forward_only(3e-3, 0.05), forward_only(3e-3, 0.05, MENDED)
MEMORY = 128
Shown = TypeVar("Shown")


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture and the captions that it may have, at least one."""

    picture: Picture
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """What a base is made of.

    Args:
        name: of the base.
        source: where the pictures come from, and their licence.
        fit: what the towers learn from.
        calibration: clean pictures that they do not learn from, in random order and whole batches of 64.
    """

    name: str
    source: str
    fit: Sequence[Captioned]
    calibration: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a recipe makes of the trained towers.

    Args:
        head: of the modalities that the base serves.
        asking: clean queries of each, as `finish_base` takes them.
        memory: training pairs by modality of the query.
        provenance: further figures.
        calibration: clean statistics of modalities besides pictures, where these do not stand for them.
        curve: measures the quality to expect; None: the base has none.
    """

    head: HashHead
    asking: Mapping[Modality, Clean]
    memory: Mapping[Modality, SourcePairs]
    provenance: Mapping[str, Any]
    calibration: Mapping[Modality, Calibration] = field(default_factory=dict)
    curve: Curve | None = None


def fit_scratch_base(
    folder: Path,
    material: Material,
    config: ScratchConfig,
    measured: Callable[[Towers, Count], Measured],
    batches: int,
    progress: Progress | None = None,
) -> None:
    """Trains, measures and writes a base. On one thread.

    Args:
        folder: where the base goes.
        material: what it is made of.
        config: sizes and steps of the model.
        measured: (trained towers, count) -> what they give for the recipe's own data.
        batches: how many batches `measured` counts.
        progress: called with (done, total, text).

    Raises:
        ConfigError: the pictures cannot be learned from.
        ArtifactError: the training diverged.
    """
    count = Count(config.steps + batches + batches_of(len(material.calibration)), progress)
    pictures, captions = ([getattr(one, part) for one in material.fit] for part in ("picture", "captions"))
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        losses = train_clip(
            Path(scratch), pictures, captions, config, 0, lambda *_: count.step("training the model")
        )
        towers = open_clip_towers(f"local-dir:{scratch}")
        found = measured(towers, count)
        inputs = collated(towers.image, material.calibration, count)
        parts = Parts(
            name=material.name,
            towers=Path(scratch),
            head=found.head,
            calibration={"image": calibrate(towers.image, inputs), **found.calibration},
            provenance={
                "pictures": material.source,
                "towers": "trained from scratch on these pictures",
                "training": asdict(config),
                "loss": losses[-1],
                "items": len(material.fit),
                **found.provenance,
            },
            memory=found.memory,
            vocabulary=count_words(text for one in material.fit for text in one.captions),
            preprocess=towers.image.preprocess,
        )
        finish_base(folder, parts, found.asking, found.curve)


def in_random_order(clean: Sequence[Shown], bits: int, purpose: str) -> list[Shown]:
    """The clean pictures, shuffled by a draw of this purpose. Raises ConfigError for too few."""
    least = max(BATCH, bits)
    if len(clean) < least:
        raise ConfigError(f"{len(clean)} clean pictures are too few: expected at least {least}")
    return [clean[i] for i in generator(0, "order", purpose).permutation(len(clean)).tolist()]
