"""Base models of a labelled source and an unlabelled target: PSCA, COUPLE and TPSNet for the service.

The gallery will be the source, queries will come from the target. So the code is learnt from both, and what
clean queries look like is measured on target pictures that ask the source. The image tower is the packaged
one, or one of the user's; texts are not served.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.offline.parallel import Team
from core.references import Calibration, SourcePairs
from core.seeds import generator
from core.types import Modality
from encoders.base_model import Parts
from encoders.images import Pixels
from encoders.norms import calibrate
from encoders.phase import fused
from encoders.vision import ImageTower
from qshift.recipes.brought import PLAIN
from qshift.recipes.domains.checks import check_fit, check_towers
from qshift.recipes.domains.couple import couple_head
from qshift.recipes.domains.material import FitOptions, Learnt, Material, raw_features, unit_pictures
from qshift.recipes.domains.psca import psca_head
from qshift.recipes.domains.towers import Start, start
from qshift.recipes.domains.tpsnet import tpsnet_head
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, collated
from qshift.recipes.finish import Clean, finish_base
from qshift.recipes.learned import LEARNED, written
from qshift.recipes.measure import forward_only

CLEAN_QUERIES = 384  # six batches
HELD = 5  # one of so many target pictures is held out to measure them
MEMORY = 128
STEP = forward_only(1e-3, 0.02)
PURPOSE = "domain base"
VERSIONS = ("numpy", "torch", "timm", "open_clip_torch", "torchvision")

HEADS: Mapping[str, Callable[[Material], Learnt]] = MappingProxyType(
    {"psca": psca_head, "couple": couple_head, "tpsnet": tpsnet_head}
)
"""Name of a method -> how its code is learnt."""


def fit_domain_base(
    method: str,
    source: Sequence[Any],
    labels: Sequence[str],
    target: Sequence[Any],
    folder: Path,
    options: FitOptions | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Fits, measures and writes a base model, all or nothing.

    Args:
        method: one of `HEADS`.
        source: pictures, encoded or uint8 [H, W, 3].
        labels: their classes.
        target: pictures of the other domain. A fifth of them in whole batches, 384 at most, is not fitted to
            and measures what clean queries look like; of less than 320 pictures some that were fitted to do.
        folder: where the base goes.
        options: see there.
        progress: called with (done, total, text).

    Returns:
        What whoever fits should know, as sentences.

    Raises:
        ConfigError: an unknown method, too few pictures or classes, a width of codes that cannot be made.
        ArtifactError: the packages of the demo extra are missing.
    """
    options, told = options or FitOptions(), progress or (lambda done, total, text: None)
    check_fit(method, HEADS, source, labels, target, options)
    team, split = Team.of_environment(), Split.of(len(target), options.seed)
    count = Count(batches_of(len(source), len(target), len(split.asking)), told)
    checkpoint = folder.with_name(f".{folder.name}-unfinished")
    with tempfile.TemporaryDirectory() as scratch:
        begun = start(Path(scratch) / "towers", options)
        check_towers(method, begun.text, options)
        sides = Sides.prepared(begun.image, source, labels, target)
        learnt = HEADS[method](_material(begun, sides, split, options, checkpoint, team, told, count))
        if team.rank:
            return ()  # the first process writes
        image = _served(begun, learnt)
        asking = sides.unit(image, split.asking)
        calibration = _calibration(image, collated(image, sides.pictures(split.asking), count))
        parts = Parts(
            name=options.name or method,
            towers=begun.folder,
            head=learnt.head,
            projections={"image": learnt.projection},
            calibration=calibration,
            provenance=_provenance(method, begun, learnt, sides, split, options),
            memory={"image": SourcePairs(sides.pictures(split.kept), sides.unit(image, split.kept))},
            extras={**learnt.extras, **_learned(sides.source, learnt)},
            fusion=learnt.fusion,
            preprocess=image.preprocess,
        )
        step = STEP if calibration else PLAIN
        finish_base(folder, parts, {"image": Clean(asking, learnt.source, step, codes=learnt.codes)})
    shutil.rmtree(checkpoint, ignore_errors=True)
    return learnt.notes


@dataclass(frozen=True, slots=True)
class Split:
    """Places of target pictures.

    What was fitted to lies nearer to the gallery than what will ask: so some are held out.

    Args:
        asking: in random order, that measure clean queries.
        trained: ascending, that the method sees.
        kept: for the base's memory.
        held: how many of `asking` are held out.
    """

    asking: NDArray[np.int64]
    trained: NDArray[np.int64]
    kept: NDArray[np.int64]
    held: int

    @classmethod
    def of(cls, targets: int, seed: int) -> Split:
        held = min(CLEAN_QUERIES, targets // HELD) // BATCH * BATCH
        asked = held or min(CLEAN_QUERIES, targets // BATCH * BATCH)
        order = generator(seed, "clean queries", PURPOSE).permutation(targets)
        return cls(order[:asked], np.sort(order[held:]), order[-MEMORY:], held)


@dataclass(frozen=True, slots=True)
class Sides:
    """Both domains: pictures as the tower takes them, the classes, and of each source picture its own."""

    source: Sequence[Pixels]
    target: Sequence[Pixels]
    classes: Sequence[str]
    y: NDArray[np.intp]

    @classmethod
    def prepared(
        cls, tower: ImageTower, source: Sequence[Any], labels: Sequence[str], target: Sequence[Any]
    ) -> Sides:
        """Raises Refused for a picture that cannot be read."""
        classes, y = np.unique(np.asarray(labels), return_inverse=True)
        own, other = ([tower.prepare(content) for content in side] for side in (source, target))
        return cls(own, other, classes.tolist(), y)

    def pictures(self, places: NDArray[np.int64]) -> tuple[NDArray[np.uint8], ...]:
        """Of the target: [H, W, 3]."""
        return tuple(np.ascontiguousarray(self.target[row].transpose(1, 2, 0)) for row in places.tolist())

    def unit(self, tower: ImageTower, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features [n, D] of target pictures, as the service makes them."""
        return unit_pictures(tower, [self.target[row] for row in places.tolist()])

    def hash(self) -> str:
        sha = hashlib.sha256(self.y.tobytes())
        for row in (*self.source, *self.target):
            sha.update(row.tobytes())
        return sha.hexdigest()[:16]


def _material(
    begun: Start,
    sides: Sides,
    split: Split,
    options: FitOptions,
    checkpoint: Path,
    team: Team,
    told: Progress,
    count: Count,
) -> Material:
    source, target = (
        raw_features(begun.image, side, lambda: count.step("encoding pictures"))
        for side in (sides.source, sides.target)
    )
    pixels = (sides.source, [sides.target[row] for row in split.trained.tolist()])
    y = sides.y.astype(np.int64)
    return Material(
        begun.image, begun.text, source, y, target[split.trained], pixels, options, checkpoint, team, told
    )


def _calibration(image: ImageTower, batches: Iterable[Any]) -> dict[Modality, Calibration]:
    """Of target pictures; none of a tower without a normalisation layer, which nothing aligns."""
    return {"image": calibrate(image, batches)} if image.hook_points().widths else {}


def _served(begun: Start, learnt: Learnt) -> ImageTower:
    """The image tower as the base model will load it."""
    tower = begun.served(learnt.tower, learnt.projection)
    if learnt.fusion is None:
        return tower
    tensors = {name: torch.from_numpy(array) for name, array in learnt.fusion.tensors.items()}
    return fused(tower, tensors, learnt.fusion.settings)


def _learned(source: Sequence[Pixels], learnt: Learnt) -> dict[str, dict[str, NDArray[Any]]]:
    return {} if learnt.codes is None else {LEARNED: written(source, learnt.codes)}


def _provenance(
    method: str, begun: Start, learnt: Learnt, sides: Sides, split: Split, options: FitOptions
) -> dict[str, Any]:
    return {
        "method": method,
        "seed": options.seed,
        "settings": dict(learnt.config),
        "gauges": {key: round(value, 6) for key, value in learnt.gauges.items()},
        "classes": list(sides.classes),
        "source_items": len(sides.source),
        "target_items": len(sides.target),
        "target_items_held_out": split.held,
        "data": sides.hash(),
        "preset": options.preset or ("paper" if method == "tpsnet" else "plus"),
        "side": begun.image.preprocess.size[0],
        "image_tower": begun.name + (", trained along" if learnt.tower is not None else ""),
        "versions": {part: version(part) for part in VERSIONS},
    }
