"""A base model into its folder, all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from core.artifacts import writing
from core.references import Calibration, DriftReference, SourcePairs
from core.types import Modality
from encoders.base_files import (
    FUSION,
    HEAD,
    KIND,
    TEXTS,
    TOWERS,
    VOCABULARY,
    Arrays,
    of_modality,
    save_arrays,
)
from encoders.base_parts import Parts, check_parts
from encoders.head import HashHead


def write_base(folder: Path, parts: Parts, copy: Callable[[str, str], object] = shutil.copyfile) -> None:
    """Writes a base model; an older base there is replaced.

    Args:
        folder: where.
        parts: see there.
        copy: of each file of the towers, (from, to): a base that is read at once and thrown away may link.

    Raises:
        ArtifactError: parts that do not fit each other.
    """
    check_parts(parts)
    with writing(folder, KIND, _manifest(parts)) as draft:
        if parts.towers is not None:
            shutil.copytree(parts.towers.resolve(), draft / TOWERS, copy_function=copy)
        _write_model(draft, parts)
        _write_measured(draft, parts)
        for modality, pairs in parts.memory.items():
            _write_memory(draft, modality, pairs)
        for extra, further in parts.extras.items():
            save_arrays(draft / f"{extra}.safetensors", further)
        if parts.vocabulary:
            (draft / VOCABULARY).write_text(json.dumps(dict(parts.vocabulary), indent=0, sort_keys=True))


def _manifest(parts: Parts) -> dict[str, Any]:
    manifest = {
        "name": parts.name,
        "bits": parts.head.bits,
        "width": parts.head.width,
        "towers": parts.towers is not None,
        "modalities": sorted(parts.head.means),
        "constants": {modality: asdict(value) for modality, value in parts.constants.items()},
        "bn_widths": {modality: list(value.widths) for modality, value in parts.calibration.items()},
        "reference_batch": {modality: value.batch for modality, value in parts.reference.items()},
        "provenance": dict(parts.provenance),
    }
    if parts.extras:  # bases without any keep their digest
        manifest["extras"] = sorted(parts.extras)
    if parts.preprocess is not None:
        manifest["preprocess"] = parts.preprocess.document()
    if parts.fusion is not None:
        manifest["fusion"] = dict(parts.fusion.settings)
    return manifest


def _write_model(draft: Path, parts: Parts) -> None:
    """What follows the towers: projections, fusion, hash head."""
    for modality, projection in parts.projections.items():
        if projection is not None:
            tensors = {key: value.detach().cpu().numpy() for key, value in projection.state_dict().items()}
            save_arrays(draft / of_modality("projection", modality), tensors)
    if parts.fusion is not None:
        save_arrays(draft / FUSION, parts.fusion.tensors)
    _write_head(draft / HEAD, parts.head)


def _write_head(path: Path, head: HashHead) -> None:
    means = {f"mean.{modality}": mean.cpu().numpy() for modality, mean in head.means.items()}
    save_arrays(path, {"weight": head.weight.cpu().numpy(), "bias": head.bias.cpu().numpy(), **means})


def _write_measured(draft: Path, parts: Parts) -> None:
    for modality, measured in parts.calibration.items():
        save_arrays(draft / of_modality("calibration", modality), calibration_arrays(measured))
    for modality, clean in parts.reference.items():
        save_arrays(draft / of_modality("reference", modality), reference_arrays(clean))


def calibration_arrays(measured: Calibration) -> Arrays:
    """Statistics as they are stored."""
    halves = {"mean": measured.mean.astype(np.float16), "sd": measured.sd.astype(np.float16)}
    return {"features": measured.features, **halves}


def reference_arrays(clean: DriftReference) -> Arrays:
    """Clean queries as they are stored."""
    own = {} if clean.own is None else {"own": clean.own}
    return {"features": clean.features, "entropy": clean.entropy, "nearest": clean.nearest, **own}


def _write_memory(draft: Path, modality: Modality, pairs: SourcePairs) -> None:
    arrays = {"targets": pairs.targets}
    if modality == "text":
        (draft / TEXTS).write_text(json.dumps(list(pairs.contents), indent=0))
    else:
        arrays["contents"] = np.stack(pairs.contents)
    save_arrays(draft / of_modality("memory", modality), arrays)
