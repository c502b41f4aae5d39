"""Base models of plain pictures: the packaged image tower as it is, and a hash head fitted on the gallery.

Nothing is trained and no label decides anything (the quality to expect is measured with those of the
gallery). What clean queries look like is measured on gallery pictures, each of
which leaves itself out as its own neighbour: queries of these tasks are other pictures of the same kind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import ConfigError
from core.references import SourcePairs
from core.seeds import generator
from core.types import Floats
from encoders.base_model import Base, Parts
from encoders.norms import calibrate
from qshift.benchmarks.tasks.types import Picture, Sample, Task
from qshift.recipes.asked import CleanQueries, batches_asked
from qshift.recipes.encode import Count, Progress, batches_of, collated, encoded
from qshift.recipes.expected import Curves, curves_of, gallery_of
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import forward_only
from qshift.recipes.packaged import IMAGE_TOWER, packaged_towers

STEP = forward_only(1e-3, 0.02)
CLEAN_QUERIES = 384  # six batches
MEMORY = 128
LEAST = 0.85  # share of a side that a crop keeps
PURPOSE = "picture base"
"""Part of the key of every draw: query streams use other purposes, so no draw is shared."""


def fit_picture_base(task: Task, folder: Path, bits: int = 64, progress: Progress | None = None) -> None:
    """Measures and writes the base of a picture-to-picture task.

    Args:
        task: its gallery is all that is looked at: square pictures of one size, with their labels.
        folder: where the base goes.
        bits: width of the codes, a multiple of 8, at most the number of gallery pictures.
        progress: called with (done, total, text).

    Raises:
        ConfigError: pictures of several sizes, or fewer than bits or than a batch.
        ArtifactError: the packages of the demo extra are missing.
    """
    pictures: list[Picture] = [sample.content for sample in task.gallery]
    side = _side(task, pictures, bits)
    items, queries = _clean_queries(pictures)
    judged = len({sample.label for sample in task.gallery}) < len(pictures)
    count = Count(batches_of(len(pictures), len(queries)) + batches_asked("image") * judged, progress)
    with tempfile.TemporaryDirectory() as scratch:
        tower = packaged_towers(Path(scratch), side).image
        gallery = encoded(tower, pictures, count)
        calibration = calibrate(tower, collated(tower, queries, count))
        parts = Parts(
            name=task.base,
            towers=Path(scratch),
            head=hash_head({"image": gallery}, bits),
            calibration={"image": calibration},
            provenance={
                "pictures": f"gallery of {task.name}",
                "image_tower": IMAGE_TOWER,
                "side": side,
                "items": len(pictures),
            },
            memory={"image": _memory(pictures, gallery)},
            preprocess=tower.preprocess,
        )
        own = np.array(items, dtype=np.int64)
        clean = Clean(calibration.features, gallery, STEP, own=own)

        def curves(base: Base) -> Curves:
            items = gallery_of(base, gallery, [sample.label for sample in task.gallery])
            return curves_of(base, items, [crops_of(task.gallery)], count=count)

        finish_base(folder, parts, {"image": clean}, curves if judged else None)


def cropped(picture: Picture, draw: np.random.Generator) -> Picture:
    """A window of at least 85 % of both sides, anywhere, stretched to the whole: leaves no margin to fill."""
    height, width = picture.shape[:2]
    share = draw.uniform(LEAST, 1.0)
    left, top = draw.uniform(0, 1 - share, 2) * (width, height)
    box = (left, top, left + share * width, top + share * height)
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, box)
    return np.asarray(image, dtype=np.uint8)


def _clean_queries(pictures: Sequence[Picture]) -> tuple[list[int], list[Picture]]:
    """Gallery pictures in random order and their positions; a small gallery goes on with crops of itself."""
    items: list[int] = []
    queries: list[Picture] = []
    for copy in range(-(-CLEAN_QUERIES // len(pictures))):
        for item in generator(0, f"clean queries {copy}", PURPOSE).permutation(len(pictures)).tolist():
            items.append(item)
            draw = generator(0, f"{copy}/{item}", PURPOSE)
            queries.append(cropped(pictures[item], draw) if copy else pictures[item])
    return items[:CLEAN_QUERIES], queries[:CLEAN_QUERIES]


def crops_of(gallery: Sequence[Sample]) -> CleanQueries:
    """Crops of items that ask for others of their label: it is looked at here and nowhere else."""
    items = generator(0, "expected", PURPOSE).permutation(len(gallery))[:CLEAN_QUERIES]
    crops = [
        cropped(gallery[item].content, generator(0, f"expected/{item}", PURPOSE)) for item in items.tolist()
    ]
    return CleanQueries(crops, [gallery[item].label for item in items.tolist()], items)


def _memory(pictures: Sequence[Picture], gallery: Floats) -> SourcePairs:
    """Crops of gallery pictures, each with the features [D] of the whole."""
    items = generator(0, "memory", PURPOSE).permutation(len(pictures))[:MEMORY]
    crops = [cropped(pictures[item], generator(0, f"memory/{item}", PURPOSE)) for item in items.tolist()]
    return SourcePairs(tuple(crops), gallery[items])


def _side(task: Task, pictures: Sequence[Picture], bits: int) -> int:
    if len(pictures) < max(bits, 2):
        raise ConfigError(
            f"{task.name} has {len(pictures)} gallery pictures, too few for {bits} bits: expected at least "
            f"{max(bits, 2)}"
        )
    shapes = {picture.shape for picture in pictures}
    height, width, _ = next(iter(shapes))
    if len(shapes) > 1 or height != width:
        raise ConfigError(f"{task.name} has pictures of {sorted(shapes)}: expected squares of one size")
    return int(height)
