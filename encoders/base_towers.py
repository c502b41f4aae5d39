"""The encoders of a base model: its towers, what follows them, and what is made of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import from_numpy

from core.errors import ArtifactError, ConfigError
from core.protocols import Encoder
from core.types import Modality
from encoders.base_files import FUSION, TOWERS, of_modality, read_arrays
from encoders.composed import Composed
from encoders.head import HashHead
from encoders.images import Preprocess
from encoders.projection import Projection
from encoders.sequence import FrameSequence
from encoders.vector import VectorEncoder


def read_encoders(
    folder: Path, manifest: Mapping[str, Any], head: HashHead, device: str, precision: str
) -> dict[Modality, Encoder]:
    """Encoders of the modalities that the head serves. Raises ArtifactError, ConfigError."""
    found = _towers(folder, manifest, device, precision)
    if "fusion" in manifest:
        found["image"] = _fused(found["image"], folder, manifest["fusion"], precision)
    found["vector"] = VectorEncoder(head.width, device)
    if "image" in found:
        found["sequence"] = FrameSequence(found["image"])
        if "text" in found and found["text"].width == found["image"].width:
            found["composed"] = Composed(found["image"], found["text"])
    served = {modality: found[modality] for modality in head.means if modality in found}
    if set(manifest["modalities"]) - set(served):
        raise ArtifactError(
            f"{folder} serves {manifest['modalities']}, but has towers only for {sorted(found)}"
        )
    for modality, encoder in served.items():
        if encoder.width != head.width:
            raise ArtifactError(
                f"the {modality} encoder gives width {encoder.width}, the head takes {head.width}: fit a "
                "projection, or build the base again"
            )
    return served


def _towers(
    folder: Path, manifest: Mapping[str, Any], device: str, precision: str
) -> dict[Modality, Encoder]:
    if not manifest["towers"]:
        return {}
    towers, projections = folder / TOWERS, _projections(folder)
    # Bases of before 0.2.1 do not say it themselves: their towers do, and were fitted with that.
    said = manifest.get("preprocess")
    preprocess = Preprocess.written(said) if said is not None else None
    # Imported late: a base of vectors starts without open_clip, timm and transformers.
    if (towers / "backbone.json").exists():
        from encoders.vision import read_backbone

        return {"image": read_backbone(towers, projections.get("image"), device, precision, preprocess)}
    from encoders.clip import open_clip_towers

    pair = open_clip_towers(
        f"local-dir:{towers}", device, precision, projections=projections, preprocess=preprocess
    )
    return {"image": pair.image, "text": pair.text}


def _projections(folder: Path) -> dict[Modality, Projection | None]:
    found: dict[Modality, Projection | None] = {}
    names: tuple[Modality, ...] = ("image", "text")
    for modality in names:
        path = folder / of_modality("projection", modality)
        if path.exists():
            tensors = {key: from_numpy(value) for key, value in read_arrays(path).items()}
            found[modality] = Projection.from_tensors(tensors)
    return found


def _fused(image: Encoder, folder: Path, settings: Mapping[str, Any], precision: str) -> Encoder:
    from encoders.phase import fused
    from encoders.vision import ImageTower

    if precision != "fp32":
        raise ConfigError(f'precision {precision!r} is not for bases with a fusion: take "fp32"')
    if not isinstance(image, ImageTower):
        raise ArtifactError(f"{folder} has a fusion without an image tower: build the base again")
    arrays = read_arrays(folder / FUSION)
    return fused(
        image, {name: from_numpy(array).to(image.device) for name, array in arrays.items()}, settings
    )
