"""Base models of a labelled source and an unlabelled target: PSCA, COUPLE and TPSNet for the service.

The gallery will be the source, queries will come from the target. So the code is learnt from both, and what
clean queries look like is measured on target pictures that ask the source. The image tower is the packaged
one; texts are not served.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.offline.parallel import Team
from core.errors import ConfigError
from core.references import SourcePairs
from core.seeds import generator
from encoders.base_model import write_base
from encoders.images import Pixels
from encoders.norms import calibrate
from encoders.phase import fused
from qshift.recipes.domains.couple import couple_head
from qshift.recipes.domains.material import FitOptions, Learnt, Material, raw_features, unit_pictures
from qshift.recipes.domains.psca import psca_head
from qshift.recipes.domains.towers import start
from qshift.recipes.domains.tpsnet import tpsnet_head
from qshift.recipes.measure import BATCH, Count, Progress, Step, collated, measure

CLEAN_QUERIES = 384  # six batches
HELD = 5  # one of so many target pictures is held out to measure them
MEMORY = 128
STEP = Step(1e-3, 0.02)
PURPOSE = "domain base"

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
    options = options or FitOptions()
    _check(method, source, labels, target, options)
    team = Team.of_environment()
    told = progress or (lambda done, total, text: None)
    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    # What was fitted to lies nearer to the gallery than what will ask: so some are held out.
    held = min(CLEAN_QUERIES, len(target) // HELD) // BATCH * BATCH
    asked = held or min(CLEAN_QUERIES, len(target) // BATCH * BATCH)
    order = generator(options.seed, "clean queries", PURPOSE).permutation(len(target))
    queries, trained = order[:asked], np.sort(order[held:])
    count = Count(-(-len(source) // BATCH) + -(-len(target) // BATCH) + -(-asked // BATCH), told)
    with tempfile.TemporaryDirectory() as scratch:
        towers = Path(scratch) / "towers"
        begun = start(towers, options)
        tower = begun.image
        pixels = ([tower.prepare(content) for content in source], [tower.prepare(c) for c in target])
        raw = [raw_features(tower, rows, lambda: count.step("encoding pictures")) for rows in pixels]
        checkpoint = folder.with_name(f".{folder.name}-unfinished")
        material = Material(
            tower, begun.text, raw[0], y.astype(np.int64), raw[1][trained],
            (pixels[0], [pixels[1][row] for row in trained]), options, checkpoint, team, told,
        )  # fmt: skip
        learnt = HEADS[method](material)
        if team.rank:
            return ()  # the first process writes
        served = begun.served(learnt.tower, learnt.projection)
        if learnt.fusion is not None:
            tensors = {name: torch.from_numpy(array) for name, array in learnt.fusion.tensors.items()}
            served = fused(served, tensors, learnt.fusion.settings)
        clean = [_picture(pixels[1][row]) for row in queries.tolist()]
        calibration = calibrate(served, collated(served, clean, count))
        asking = unit_pictures(served, [pixels[1][row] for row in queries])
        constants, reference = measure(asking, learnt.source, learnt.head, "image", STEP)
        kept = order[-MEMORY:].tolist()
        write_base(
            folder,
            name=options.name or method,
            towers=towers,
            projections={"image": learnt.projection},
            head=learnt.head,
            constants={"image": constants},
            calibration={"image": calibration},
            reference={"image": reference},
            provenance={
                "method": method,
                "seed": options.seed,
                "settings": dict(learnt.config),
                "gauges": {key: round(value, 6) for key, value in learnt.gauges.items()},
                "classes": classes.tolist(),
                "source_items": len(source),
                "target_items": len(target),
                "target_items_held_out": held,
                "data": _data_hash(pixels, y),
                "side": options.side,
                "image_tower": begun.name + (", trained along" if learnt.tower is not None else ""),
                "versions": {
                    part: version(part)
                    for part in ("numpy", "torch", "timm", "open_clip_torch", "torchvision")
                },
            },
            memory={
                "image": SourcePairs(
                    tuple(_picture(pixels[1][row]) for row in kept),
                    unit_pictures(served, [pixels[1][row] for row in kept]),
                ),
            },
            extras=learnt.extras,
            fusion=learnt.fusion,
            preprocess=served.preprocess,
        )
    shutil.rmtree(checkpoint, ignore_errors=True)
    return learnt.notes


def _picture(pixels: Pixels) -> NDArray[np.uint8]:
    """[3, H, W] as prepared -> [H, W, 3]."""
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _data_hash(pixels: Sequence[Sequence[Pixels]], labels: NDArray[Any]) -> str:
    sha = hashlib.sha256(labels.tobytes())
    for rows in pixels:
        for row in rows:
            sha.update(row.tobytes())
    return sha.hexdigest()[:16]


def _check(
    method: str, source: Sequence[Any], labels: Sequence[str], target: Sequence[Any], options: FitOptions
) -> None:
    bits = options.bits
    if method not in HEADS:
        raise ConfigError(f"no method {method!r}: expected one of {', '.join(HEADS)}")
    if options.tower_rate and method == "psca":
        raise ConfigError("psca trains no tower: leave the tower's rate out, or take couple or tpsnet")
    if options.epochs is not None and (method == "psca" or options.epochs < 1):
        raise ConfigError("epochs of couple or tpsnet, at least 1, expected: leave them out")
    if options.backbone is None and options.weights is not None:
        raise ConfigError(f"{options.weights} are weights of a backbone: say which with --backbone")
    if options.backbone is not None and method == "tpsnet":
        raise ConfigError("tpsnet needs a text tower beside the image tower: leave the backbone out")
    if bits < 8 or bits % 8:
        raise ConfigError(f"bits must be a multiple of 8, at least 8, got {bits}")
    if len(labels) != len(source):
        raise ConfigError(f"expected a class for each of {len(source)} source pictures, got {len(labels)}")
    if len(set(labels)) < 2:
        raise ConfigError(
            f"the source has {len(set(labels))} class: sort its pictures into a folder for each "
            "class, two or more"
        )
    if len(target) < BATCH:
        raise ConfigError(f"the target has {len(target)} pictures: at least {BATCH} are needed to measure it")
    if len(source) + len(target) < bits:
        raise ConfigError(
            f"{len(source) + len(target)} pictures are fewer than {bits} bits: add pictures, or take fewer "
            "bits"
        )
