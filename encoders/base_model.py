"""A base model on disk: towers, projections, hash head and what the source's own data say about it.

    manifest.json                      name, bits, preprocess, constants, provenance, sha256 of every file
    towers/                            open_clip's local-dir format, or a torchvision backbone; may be absent
    projection-<modality>.safetensors  where a tower needs one
    head.safetensors                   weight, bias, mean.<modality>
    calibration-<modality>.safetensors features, mean and sd (float16) in front of each BatchNorm
    reference-<modality>.safetensors   clean queries, for drift
    memory-<modality>.safetensors      targets of some training pairs; their pictures or vectors
    memory-text.json                   their texts
    vocabulary.json                    words of the training texts, with counts

The sd is stored, not the mean square: in float16 a difference of large squares would cancel.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import from_numpy

from core.artifacts import MANIFEST, digest, read_manifest, writing
from core.errors import ArtifactError, ConfigError
from core.protocols import Encoder
from core.references import Calibration, DriftReference, SourceConstants, SourcePairs
from core.types import Modality
from encoders.composed import Composed, composed_calibration, composed_mean
from encoders.head import HashHead
from encoders.images import Preprocess
from encoders.projection import Projection
from encoders.sequence import FrameSequence
from encoders.vector import VectorEncoder

Arrays = dict[str, NDArray[Any]]
KIND = "base"
HALF = 65504.0  # the largest float16
TEXTS = "memory-text.json"
VOCABULARY = "vocabulary.json"
FUSION = "fusion.safetensors"


@dataclass(frozen=True, slots=True)
class Fusion:
    """A trained `encoders.phase.PhaseFusion` without its image tower."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]


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


def write_base(
    folder: Path,
    *,
    name: str,
    towers: Path | None,
    projections: Mapping[Modality, Projection | None],
    head: HashHead,
    constants: Mapping[Modality, SourceConstants],
    calibration: Mapping[Modality, Calibration],
    reference: Mapping[Modality, DriftReference],
    provenance: Mapping[str, Any],
    memory: Mapping[Modality, SourcePairs] | None = None,
    vocabulary: Mapping[str, int] | None = None,
    extras: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
    fusion: Fusion | None = None,
    preprocess: Preprocess | None = None,
) -> None:
    """Writes a base model, all or nothing.

    Args:
        folder: where; an older base there is replaced.
        towers: a folder in local-dir format (or `vision.write_backbone`'s), copied in; None for vectors only.
        projections: by modality of the towers.
        head: its means say which modalities are served, "vector" among them if it has one.
        constants, calibration, reference: by modality, as far as measured.
        provenance: JSON-able; where weights and data come from. No clock, or no two builds are equal.
        memory: training pairs by modality of the query: texts, uint8 pictures [H, W, 3] of one size, or
            vectors [D]; each with its target.
        vocabulary: word -> count, at least 1, in the training texts.
        extras: further tensors, by the name of what reads them ("semantics").
        fusion: what image features go through behind the tower, in place of a projection.
        preprocess: how the pictures were prepared that the base was fitted to and measured with; the same
            holds for gallery items and queries. None leaves it to the towers' folder.

    Raises:
        ArtifactError: parts that do not fit each other.
    """
    for modality, measured in calibration.items():
        _check_width(f"{modality} calibration features", measured.features, head.width)
        _check_calibration(modality, measured)
    for modality, clean in reference.items():
        _check_width(f"{modality} reference features", clean.features, head.width)
    for modality, pairs in (memory or {}).items():
        if modality not in head.means:
            raise ArtifactError(
                f"a {modality} memory, but the head serves {sorted(head.means)}: leave it out"
            )
        _check_memory(modality, pairs, head.width)
    _check_vocabulary(vocabulary or {})
    manifest = {
        "name": name,
        "bits": head.bits,
        "width": head.width,
        "towers": towers is not None,
        "modalities": sorted(head.means),
        "constants": {modality: asdict(value) for modality, value in constants.items()},
        "bn_widths": {modality: list(value.widths) for modality, value in calibration.items()},
        "reference_batch": {modality: value.batch for modality, value in reference.items()},
        "provenance": dict(provenance),
    }
    if extras:  # bases without any keep their digest
        manifest["extras"] = sorted(extras)
    if preprocess is not None:
        manifest["preprocess"] = asdict(preprocess)
    if fusion is not None:
        manifest["fusion"] = dict(fusion.settings)
    with writing(folder, KIND, manifest) as draft:
        if towers is not None:
            shutil.copytree(towers, draft / "towers", copy_function=shutil.copyfile)
        for modality, projection in projections.items():
            if projection is not None:
                tensors = {
                    key: value.detach().cpu().numpy() for key, value in projection.state_dict().items()
                }
                _save(draft / f"projection-{modality}.safetensors", tensors)
        means = {f"mean.{modality}": mean.cpu().numpy() for modality, mean in head.means.items()}
        parts = {"weight": head.weight.cpu().numpy(), "bias": head.bias.cpu().numpy(), **means}
        _save(draft / "head.safetensors", parts)
        for modality, measured in calibration.items():
            halves = {"mean": measured.mean.astype(np.float16), "sd": measured.sd.astype(np.float16)}
            _save(draft / f"calibration-{modality}.safetensors", {"features": measured.features, **halves})
        for modality, clean in reference.items():
            arrays = {"features": clean.features, "entropy": clean.entropy, "nearest": clean.nearest}
            _save(draft / f"reference-{modality}.safetensors", arrays)
        for modality, pairs in (memory or {}).items():
            _write_memory(draft, modality, pairs)
        if fusion is not None:
            _save(draft / FUSION, fusion.tensors)
        for extra, further in (extras or {}).items():
            _save(draft / f"{extra}.safetensors", further)
        if vocabulary:
            (draft / VOCABULARY).write_text(json.dumps(dict(vocabulary), indent=0, sort_keys=True))


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
    parts = _read(folder / "head.safetensors")
    means: dict[Modality, NDArray[Any]] = {
        modality: parts[f"mean.{modality}"] for modality in manifest["modalities"]
    }
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
    encoders = _encoders(folder, manifest, head, device, precision)
    calibration: dict[Modality, Calibration] = {}
    for modality, widths in manifest["bn_widths"].items():
        arrays = _read(folder / f"calibration-{modality}.safetensors")
        half = {key: arrays[key].astype(np.float32) for key in ("mean", "sd")}
        found = Calibration(arrays["features"], half["mean"], half["sd"], tuple(widths))
        _check_calibration(modality, found)
        _check_width(f"{modality} calibration features", found.features, head.width)
        tower: Any = encoders.get(modality)
        if not hasattr(tower, "bn_widths") or tower.bn_widths() != found.widths:
            raise ArtifactError(
                f"the {modality} tower's BatchNorms are not those of its calibration: build it again"
            )
        calibration[modality] = found
    reference: dict[Modality, DriftReference] = {}
    for modality, batch in manifest["reference_batch"].items():
        arrays = _read(folder / f"reference-{modality}.safetensors")
        _check_width(f"{modality} reference features", arrays["features"], head.width)
        reference[modality] = DriftReference(
            arrays["features"], arrays["entropy"], arrays["nearest"], int(batch)
        )
    constants: dict[Modality, SourceConstants] = {
        key: SourceConstants(**value) for key, value in manifest["constants"].items()
    }
    if "sequence" in encoders and "image" in constants:
        constants.setdefault("sequence", constants["image"])
    if "sequence" in encoders and "image" in calibration:
        calibration.setdefault("sequence", calibration["image"])
    if "sequence" in encoders and "image" in reference:
        reference.setdefault("sequence", reference["image"])
    # Nothing stands in for the constants of composed queries: without measured ones they are only aligned.
    if "image" in calibration and "composed" in encoders:
        calibration.setdefault("composed", composed_calibration(calibration["image"], means["text"]))
    return Base(
        name=manifest["name"],
        bits=head.bits,
        width=head.width,
        encoders=encoders,
        head=head,
        constants=constants,
        calibration=calibration,
        reference=reference,
        version=digest(folder / MANIFEST),
        provenance=dict(manifest["provenance"]),
        memory=_memory(folder, manifest, head.width),
        vocabulary=_vocabulary(folder, manifest),
        extras={extra: _read(folder / f"{extra}.safetensors") for extra in manifest.get("extras", ())},
    )


def _write_memory(folder: Path, modality: Modality, pairs: SourcePairs) -> None:
    arrays = {"targets": pairs.targets}
    if modality == "text":
        (folder / TEXTS).write_text(json.dumps(list(pairs.contents), indent=0))
    else:
        arrays["contents"] = np.stack(pairs.contents)
    _save(folder / f"memory-{modality}.safetensors", arrays)


def _memory(folder: Path, manifest: Mapping[str, Any], width: int) -> dict[Modality, SourcePairs]:
    found: dict[Modality, SourcePairs] = {}
    for modality in manifest["modalities"]:
        name = f"memory-{modality}.safetensors"
        if name in manifest["files"]:  # not path.exists(): only what the manifest lists is checked
            arrays = _read(folder / name)
            contents = json.loads((folder / TEXTS).read_text()) if modality == "text" else arrays["contents"]
            found[modality] = SourcePairs(tuple(contents), arrays["targets"])
            _check_memory(modality, found[modality], width)
    return found


def _vocabulary(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    if VOCABULARY not in manifest["files"]:
        return {}
    found: dict[str, int] = json.loads((folder / VOCABULARY).read_text())
    _check_vocabulary(found)
    return found


def _encoders(
    folder: Path, manifest: Mapping[str, Any], head: HashHead, device: str, precision: str
) -> dict[Modality, Encoder]:
    """Encoders of the modalities that the head serves."""
    found: dict[Modality, Encoder] = {}
    projections: dict[Modality, Projection | None] = {}
    names: tuple[Modality, ...] = ("image", "text")
    for modality in names:
        path = folder / f"projection-{modality}.safetensors"
        if path.exists():
            tensors = {key: from_numpy(value) for key, value in _read(path).items()}
            projections[modality] = Projection.from_tensors(tensors)
    if manifest["towers"]:
        # Bases of before 0.2.1 do not say it themselves: their towers do, and were fitted with that.
        said = manifest.get("preprocess")
        preprocess = Preprocess.written(said) if said is not None else None
        found.update(_towers(folder / "towers", projections, device, precision, preprocess))
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
    folder: Path,
    projections: Mapping[Modality, Projection | None],
    device: str,
    precision: str,
    preprocess: Preprocess | None,
) -> dict[Modality, Encoder]:
    # Imported late: a base of vectors starts without open_clip, timm and transformers.
    if (folder / "backbone.json").exists():
        from encoders.vision import read_backbone

        return {"image": read_backbone(folder, projections.get("image"), device, precision, preprocess)}
    from encoders.clip import open_clip_towers

    pair = open_clip_towers(
        f"local-dir:{folder}", device, precision, projections=projections, preprocess=preprocess
    )
    return {"image": pair.image, "text": pair.text}


def _fused(image: Encoder, folder: Path, settings: Mapping[str, Any], precision: str) -> Encoder:
    from encoders.phase import fused
    from encoders.vision import ImageTower

    if precision != "fp32":
        raise ConfigError(f'precision {precision!r} is not for bases with a fusion: take "fp32"')
    if not isinstance(image, ImageTower):
        raise ArtifactError(f"{folder} has a fusion without an image tower: build the base again")
    tensors = {name: from_numpy(array).to(image.device) for name, array in _read(folder / FUSION).items()}
    return fused(image, tensors, settings)


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    # safetensors writes the memory as it lies: a transposed array would come back scrambled.
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, path)


def _read(path: Path) -> Arrays:
    try:
        arrays: Arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; build the base again") from error
    return arrays


def _check_width(what: str, features: NDArray[Any], width: int) -> None:
    if features.ndim != 2 or features.shape[1] != width:
        raise ArtifactError(
            f"{what} have shape {features.shape}, expected [n, {width}]: build the base again"
        )


def _check_calibration(modality: str, found: Calibration) -> None:
    expected = (len(found.features), sum(found.widths))
    if found.mean.shape != expected or found.sd.shape != expected:
        raise ArtifactError(f"{modality} calibration has mean {found.mean.shape}, expected {expected}")
    for values in (found.mean, found.sd):
        if not np.isfinite(values).all() or float(np.abs(values).max(initial=0)) > HALF:
            raise ArtifactError(f"{modality} calibration leaves the range of float16 or holds NaN")


def _check_memory(modality: Modality, pairs: SourcePairs, width: int) -> None:
    _check_width(f"{modality} memory targets", pairs.targets, width)
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


def _check_vocabulary(vocabulary: Mapping[str, int]) -> None:
    for word, count in vocabulary.items():
        if not isinstance(word, str) or not word or type(count) is not int or count < 1:
            raise ArtifactError(
                f"vocabulary has {word!r}: {count!r}, expected a word and its count, 1 or more"
            )
