"""A base model of texts that ask for texts: the packaged text tower as it is, and a hash head.

Nothing is trained. All is measured on captions of pictures that the tasks do not use: one caption of each
asks, its others are the items.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError
from core.references import SourcePairs
from core.seeds import generator
from core.types import Floats
from encoders.base_model import Base, Parts
from encoders.repair import count_words
from qshift.benchmarks.tasks.coco import Captioned, Captions
from qshift.benchmarks.tasks.types import Task
from qshift.recipes.asked import CleanQueries, batches_asked
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, encoded
from qshift.recipes.expected import Curves, curves_of, gallery_of
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import MENDED, forward_only
from qshift.recipes.packaged import TEXT_TOWER, packaged_towers

STEP = forward_only(3e-4, 0.05, MENDED)  # at temperature .02 the entropy is nearly 0 on MiniLM: no signal
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
    count = Count(batches_of(len(questions), len(answers)) + batches_asked("text"), progress)
    with tempfile.TemporaryDirectory() as scratch:
        tower = packaged_towers(Path(scratch)).text
        queries, items = encoded(tower, questions, count), encoded(tower, answers, count)
        parts = Parts(
            name=task.base,
            towers=Path(scratch),
            head=hash_head({"text": items}, bits, items="text"),
            provenance={
                "texts": "COCO captions, CC BY 4.0; see docs/data.md",
                "text_tower": TEXT_TOWER,
                "items": len(answers),
            },
            memory={"text": _memory(clean, items)},
            vocabulary=count_words([*questions, *answers]),
        )

        def curves(base: Base) -> Curves:
            labels = [c.key for c in clean for _ in c.texts[1:]]
            asking = CleanQueries(questions, [c.key for c in clean], modality="text")
            return curves_of(base, gallery_of(base, items, labels, "text"), [asking], count=count)

        finish_base(folder, parts, {"text": Clean(queries[:asked], items, STEP, items_are="text")}, curves)


def _memory(clean: Sequence[Captioned], items: Floats) -> SourcePairs:
    """What asks, each with the features of the first caption that it asks for."""
    each = len(clean[0].texts) - 1
    chosen = generator(0, "memory", PURPOSE).permutation(len(clean))[:MEMORY]
    return SourcePairs(tuple(clean[i].texts[0] for i in chosen.tolist()), items[chosen * each])
