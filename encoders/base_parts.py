"""What a base model is made of, and whether its parts fit each other: asked before writing, after reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ArtifactError
from core.references import Calibration, DriftReference, SourceConstants, SourcePairs
from core.types import Modality
from encoders.head import HashHead
from encoders.images import Preprocess
from encoders.projection import Projection

HALF = 65504.0  # the largest float16


@dataclass(frozen=True, slots=True)
class Fusion:
    """A trained `encoders.phase.PhaseFusion` without its image tower."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a recipe has made, for `write_base`.

    Args:
        name: of the base.
        towers: folder in local-dir format (or `vision.write_backbone`'s), copied in; None for vectors only.
        head: its means say which modalities are served, "vector" among them if it has one.
        provenance: JSON-able; where weights and data come from. No clock, or no two builds are equal.
        projections: by modality of the towers.
        constants, calibration, reference: by modality, as far as measured.
        memory: training pairs by modality of the query: texts, uint8 pictures [H, W, 3] of one size, or
            vectors [D]; each with its target.
        vocabulary: word -> count, at least 1, in the training texts.
        extras: further tensors, by the name of what reads them ("semantics").
        fusion: what image features go through behind the tower, in place of a projection.
        preprocess: how the pictures were prepared that the base was fitted to and measured with; the same
            holds for gallery items and queries. None leaves it to the towers' folder.
    """

    name: str
    towers: Path | None
    head: HashHead
    provenance: Mapping[str, Any]
    projections: Mapping[Modality, Projection | None] = field(default_factory=dict)
    constants: Mapping[Modality, SourceConstants] = field(default_factory=dict)
    calibration: Mapping[Modality, Calibration] = field(default_factory=dict)
    reference: Mapping[Modality, DriftReference] = field(default_factory=dict)
    memory: Mapping[Modality, SourcePairs] = field(default_factory=dict)
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    fusion: Fusion | None = None
    preprocess: Preprocess | None = None


def check_parts(parts: Parts) -> None:
    """Raises ArtifactError for parts that do not fit each other."""
    width = parts.head.width
    for modality, measured in parts.calibration.items():
        check_width(f"{modality} calibration features", measured.features, width)
        check_calibration(modality, measured)
    for modality, clean in parts.reference.items():
        check_reference(modality, clean, width)
    for modality, pairs in parts.memory.items():
        if modality not in parts.head.means:
            raise ArtifactError(
                f"a {modality} memory, but the head serves {sorted(parts.head.means)}: leave it out"
            )
        check_memory(modality, pairs, width)
    check_vocabulary(parts.vocabulary)


def check_width(what: str, features: NDArray[Any], width: int) -> None:
    """Features [n, width]."""
    if features.ndim != 2 or features.shape[1] != width:
        raise ArtifactError(
            f"{what} have shape {features.shape}, expected [n, {width}]: build the base again"
        )


def check_reference(modality: str, clean: DriftReference, width: int) -> None:
    """Clean queries [n, width], and the items that they were made of."""
    check_width(f"{modality} reference features", clean.features, width)
    if clean.own is not None:
        check_width(f"{modality} reference items", clean.own, width)
        if len(clean.own) != len(clean.features):
            raise ArtifactError(
                f"{modality} reference has {len(clean.features)} queries and {len(clean.own)} items: "
                "build the base again"
            )


def check_calibration(modality: str, found: Calibration) -> None:
    """A row of statistics for each picture, in the range of float16."""
    expected = (len(found.features), sum(found.widths))
    if found.mean.shape != expected or found.sd.shape != expected:
        raise ArtifactError(f"{modality} calibration has mean {found.mean.shape}, expected {expected}")
    for values in (found.mean, found.sd):
        if not np.isfinite(values).all() or float(np.abs(values).max(initial=0)) > HALF:
            raise ArtifactError(f"{modality} calibration leaves the range of float16 or holds NaN")


def check_memory(modality: Modality, pairs: SourcePairs, width: int) -> None:
    """A target [width] for each content, contents of the kind that their modality is asked with."""
    check_width(f"{modality} memory targets", pairs.targets, width)
    if not pairs.contents or len(pairs.contents) != len(pairs.targets):
        raise ArtifactError(
            f"{modality} memory has {len(pairs.contents)} contents, {len(pairs.targets)} targets; expected "
            "one target for each and at least one"
        )
    if modality == "text":
        if not all(isinstance(content, str) for content in pairs.contents):
            raise ArtifactError("text memory holds something that is no text: give texts")
        return
    kinds = {(np.shape(content), getattr(content, "dtype", None)) for content in pairs.contents}
    shape, dtype = kinds.pop()
    picture = len(shape) == 3 and shape[2] == 3 and dtype == np.uint8
    vector = len(shape) == 1 and dtype == np.float32
    if kinds or not (picture if modality == "image" else vector):
        expected = "uint8 pictures [H, W, 3]" if modality == "image" else "float32 vectors [D]"
        raise ArtifactError(f"{modality} memory has {shape} of {dtype}, expected {expected}, all of one size")


def check_vocabulary(vocabulary: Mapping[str, int]) -> None:
    """Words with counts of at least 1."""
    for word, count in vocabulary.items():
        if not isinstance(word, str) or not word or type(count) is not int or count < 1:
            raise ArtifactError(
                f"vocabulary has {word!r}: {count!r}, expected a word and its count, 1 or more"
            )
