"""A base model on disk: towers, projections, hash head and what the source's own data say about it.

Recipes make `Parts` of one, `write_base` writes them into a folder (`base_files` names its files),
`load_base` gives the `Base` back that everything else works with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from core.artifacts import MANIFEST, digest, read_manifest
from core.errors import ArtifactError
from core.protocols import Encoder
from core.references import Calibration, DriftReference, SourceConstants, SourcePairs
from core.types import Modality
from encoders.base_files import HEAD, KIND, TEXTS, VOCABULARY, Arrays, of_modality, read_arrays
from encoders.base_parts import (
    Fusion,
    Parts,
    check_calibration,
    check_memory,
    check_reference,
    check_vocabulary,
    check_width,
)
from encoders.base_towers import read_encoders
from encoders.base_writing import write_base
from encoders.composed import composed_calibration, composed_mean
from encoders.head import HashHead

__all__ = ["KIND", "Base", "Fusion", "Parts", "load_base", "write_base"]

Measured = TypeVar("Measured", SourceConstants, Calibration, DriftReference)


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base model. `version` is the sha256 of its manifest, and so of everything in it."""

    name: str
    bits: int
    width: int
    encoders: dict[Modality, Encoder]
    head: HashHead
    constants: dict[Modality, SourceConstants]
    calibration: dict[Modality, Calibration]
    reference: dict[Modality, DriftReference]
    version: str
    provenance: dict[str, Any] = field(default_factory=dict)
    memory: dict[Modality, SourcePairs] = field(default_factory=dict)
    """Training pairs by modality of the query; empty where the base brings none."""
    vocabulary: dict[str, int] = field(default_factory=dict)
    """Word -> count in the base's training texts; empty where it brings none."""
    extras: dict[str, Arrays] = field(default_factory=dict)
    """Further tensors, by the name of what reads them; empty where the base brings none."""
    missed: set[Modality] = field(default_factory=set)
    """Modalities of which somebody has said that their clean queries are not known."""


def load_base(folder: Path, device: str = "cpu", precision: str = "fp32") -> Base:
    """Loads a base model after checking every file's sha256.

    Raises:
        ArtifactError: missing, damaged, or parts that do not fit each other.
        ConfigError: a precision that cannot adapt.
    """
    manifest = read_manifest(folder, KIND)
    try:
        return _load(folder, manifest, device, precision)
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST} lacks or misnames {error}: build the base again") from error


def _load(folder: Path, manifest: Mapping[str, Any], device: str, precision: str) -> Base:
    head = _head(folder, manifest, device)
    encoders = read_encoders(folder, manifest, head, device, precision)
    base = Base(
        name=manifest["name"],
        bits=head.bits,
        width=head.width,
        encoders=encoders,
        head=head,
        constants={key: SourceConstants(**value) for key, value in manifest["constants"].items()},
        calibration=_calibration(folder, manifest, encoders, head.width),
        reference=_reference(folder, manifest, head.width),
        version=digest(folder / MANIFEST),
        provenance=dict(manifest["provenance"]),
        memory=_memory(folder, manifest, head.width),
        vocabulary=_vocabulary(folder, manifest),
        extras={extra: read_arrays(folder / f"{extra}.safetensors") for extra in manifest.get("extras", ())},
    )
    _lend(base)
    return base


def _head(folder: Path, manifest: Mapping[str, Any], device: str) -> HashHead:
    parts = read_arrays(folder / HEAD)
    means: dict[Modality, Any] = {modality: parts[f"mean.{modality}"] for modality in manifest["modalities"]}
    # Composed and sequence queries come with the towers; what the base has measured of them itself wins.
    if manifest["towers"] and "image" in means:
        means.setdefault("sequence", means["image"])
        if "text" in means:
            means.setdefault("composed", composed_mean(means["image"], means["text"]))
    head = HashHead(parts["weight"], parts["bias"], means, device)
    if (head.bits, head.width) != (manifest["bits"], manifest["width"]):
        raise ArtifactError(
            f"{folder} announces {manifest['bits']} bits of width {manifest['width']}, its head has "
            f"{head.bits} and {head.width}: build the base again"
        )
    return head


def _calibration(
    folder: Path, manifest: Mapping[str, Any], encoders: Mapping[Modality, Encoder], width: int
) -> dict[Modality, Calibration]:
    found: dict[Modality, Calibration] = {}
    for modality, widths in manifest["bn_widths"].items():
        arrays = read_arrays(folder / of_modality("calibration", modality))
        half = {key: arrays[key].astype(np.float32) for key in ("mean", "sd")}
        found[modality] = Calibration(arrays["features"], half["mean"], half["sd"], tuple(widths))
        check_calibration(modality, found[modality])
        check_width(f"{modality} calibration features", arrays["features"], width)
        tower = encoders.get(modality)
        if tower is None or tower.hook_points().widths != found[modality].widths:
            raise ArtifactError(
                f"the {modality} tower's normalisation layers are not those of its calibration: fit it again"
            )
    return found


def _reference(folder: Path, manifest: Mapping[str, Any], width: int) -> dict[Modality, DriftReference]:
    found: dict[Modality, DriftReference] = {}
    for modality, batch in manifest["reference_batch"].items():
        arrays = read_arrays(folder / of_modality("reference", modality))
        own = arrays.get("own")  # none in older bases, and where no query is made of an item
        found[modality] = DriftReference(
            arrays["features"], arrays["entropy"], arrays["nearest"], int(batch), own
        )
        check_reference(modality, found[modality], width)
    return found


def _memory(folder: Path, manifest: Mapping[str, Any], width: int) -> dict[Modality, SourcePairs]:
    found: dict[Modality, SourcePairs] = {}
    for modality in manifest["modalities"]:
        name = of_modality("memory", modality)
        if name in manifest["files"]:  # not path.exists(): only what the manifest lists is checked
            arrays = read_arrays(folder / name)
            contents = json.loads((folder / TEXTS).read_text()) if modality == "text" else arrays["contents"]
            found[modality] = SourcePairs(tuple(contents), arrays["targets"])
            check_memory(modality, found[modality], width)
    return found


def _vocabulary(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    if VOCABULARY not in manifest["files"]:
        return {}
    found: dict[str, int] = json.loads((folder / VOCABULARY).read_text())
    check_vocabulary(found)
    return found


def _lend(base: Base) -> None:
    """What was measured of pictures stands in for the queries that are made of pictures."""
    if "sequence" in base.encoders:
        _to_sequences(base.constants)
        _to_sequences(base.calibration)
        _to_sequences(base.reference)
    # Nothing stands in for clean composed queries: where none were measured the frozen twin answers alone.
    if "image" in base.calibration and "composed" in base.encoders:
        text = base.head.means["text"].cpu().numpy()
        base.calibration.setdefault("composed", composed_calibration(base.calibration["image"], text))


def _to_sequences(measured: dict[Modality, Measured]) -> None:
    if "image" in measured:
        measured.setdefault("sequence", measured["image"])
