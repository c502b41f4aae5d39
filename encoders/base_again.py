"""A base model whose clean queries were measured anew: every other file stays as it is, to the byte."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.artifacts import read_manifest, writing
from core.references import Calibration, DriftReference, SourceConstants
from core.types import Modality
from encoders.base_files import KIND, Arrays, of_modality, save_arrays
from encoders.base_parts import check_calibration, check_reference, check_width
from encoders.base_writing import calibration_arrays, reference_arrays

OWN = ("kind", "format", "files")
"""Keys of a manifest that its writing adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What takes the place of older measurements, by modality; modalities that are not named keep theirs.

    Args:
        constants, calibration, reference: as in `Parts`.
        extras: further tensors, by the name of what reads them.
        provenance: JSON-able; what the measurements are of.
    """

    constants: Mapping[Modality, SourceConstants] = field(default_factory=dict)
    calibration: Mapping[Modality, Calibration] = field(default_factory=dict)
    reference: Mapping[Modality, DriftReference] = field(default_factory=dict)
    extras: Mapping[str, Arrays] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_again(source: Path, folder: Path, measured: Measured) -> None:
    """Writes a base with other measurements, all or nothing; `folder` may be `source` itself.

    Raises:
        ArtifactError: no whole base in `source`, or measurements that do not fit it.
    """
    old = read_manifest(source, KIND)
    arrays = _arrays(measured, int(old["width"]))
    with writing(folder, KIND, _manifest(old, measured)) as draft:
        for name in old["files"]:
            if name not in arrays:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, draft / name)
        for name, tensors in arrays.items():
            save_arrays(draft / name, tensors)


def _manifest(old: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    kept = {key: value for key, value in old.items() if key not in OWN}
    found: dict[str, Mapping[str, Any]] = {
        "constants": {modality: asdict(value) for modality, value in measured.constants.items()},
        "bn_widths": {modality: list(value.widths) for modality, value in measured.calibration.items()},
        "reference_batch": {modality: value.batch for modality, value in measured.reference.items()},
        "provenance": measured.provenance,
    }
    manifest = {**kept, **{key: {**old[key], **value} for key, value in found.items()}}
    if extras := sorted({*old.get("extras", ()), *measured.extras}):
        manifest["extras"] = extras
    return manifest


def _arrays(measured: Measured, width: int) -> dict[str, Arrays]:
    """Tensors by the name of their file. Raises ArtifactError where they do not fit features of a width."""
    found: dict[str, Arrays] = {}
    for modality, statistics in measured.calibration.items():
        check_width(f"{modality} calibration features", statistics.features, width)
        check_calibration(modality, statistics)
        found[of_modality("calibration", modality)] = calibration_arrays(statistics)
    for modality, clean in measured.reference.items():
        check_reference(modality, clean, width)
        found[of_modality("reference", modality)] = reference_arrays(clean)
    return found | {f"{extra}.safetensors": dict(tensors) for extra, tensors in measured.extras.items()}
