"""A base model and a gallery around a model of the user's own, without folders: `qshift.Session.of`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from core.errors import ConfigError, Refused
from core.references import Calibration
from core.seeds import generator
from core.types import Floats, Modality
from encoders.base_model import Base
from encoders.head import HashHead, itq, random_rotation
from encoders.norms import calibrate
from encoders.tensors import TensorTower
from index.gallery import VersionedGallery
from qshift.recipes.encode import BATCH, Count, collated, encoded
from qshift.recipes.measure import Step, forward_only, measure

BITS = 128
NORMED, PLAIN = forward_only(1e-3, 0.02), Step(3e-3, 0.05)
"""Where towers with and without BatchNorm start, as in our own recipes: not chosen on the user's data."""


def base_in_memory(
    model: nn.Module,
    gallery: Floats,
    clean: Sequence[Tensor] | Tensor,
    bits: int = BITS,
    seed: int = 0,
    device: str = "cpu",
) -> Base:
    """Hash head from the gallery, constants and statistics from clean pictures; see `qshift.Session.of`.

    Args:
        model: pictures [B, 3, H, W] -> features [B, D]; copied.
        gallery: unit features [N, D] by this model.
        clean: n pictures [3, H, W], at least 64, in any order. What batches of 64 leave over is not
            measured.
        bits: L.
        seed: of the hash head and of the order in which clean pictures are measured.

    Raises:
        ConfigError: too few pictures, of several sizes, or features of another width.
    """
    tower = _tower(model, gallery, clean, device)
    head = _head(gallery, bits, seed, device)
    features, calibration = _seen(tower, clean)
    order = generator(seed, "clean pictures", "in memory").permutation(len(features))
    asking = features[order[: len(order) // BATCH * BATCH]]
    step = NORMED if calibration else PLAIN
    # `measure` works beside the towers, on the CPU: once, and small.
    constants, reference = measure(asking, gallery, head.to("cpu"), "image", step)
    version = _version(tower, head.weight.cpu().numpy(), gallery.mean(0), features)
    return Base(
        "in memory", bits, tower.width, {"image": tower}, head, {"image": constants}, calibration,
        {"image": reference}, version,
    )  # fmt: skip


def gallery_in_memory(
    base: Base, features: Floats, names: Sequence[str], device: str = "cpu", threads: int | None = None,
    attributes: Sequence[Mapping[str, Any]] | None = None,
) -> VersionedGallery:  # fmt: skip
    """Items by their unit features [N, D]; each name is its item's label, too. Raises GalleryError."""
    codes = base.head.codes(torch.from_numpy(features).to(device), "image")
    return VersionedGallery(
        base.bits, list(names), codes, list(names), features, base_version=base.version,
        device="auto" if device == "cuda" else "cpu", threads=threads, attributes=attributes,
    )  # fmt: skip


def unit_rows(features: ArrayLike | Tensor) -> Floats:
    """[N, D] of any length -> unit float32. Raises ConfigError for what is none, or zero rows."""
    array = features.detach().cpu() if isinstance(features, Tensor) else features
    rows = np.asarray(array, dtype=np.float32)
    if rows.ndim != 2 or len(rows) < 2:
        raise ConfigError(f"expected gallery features [N, D] of two items or more, got {list(rows.shape)}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise ConfigError("gallery features hold NaN, infinity or a row of zeros: encode them again")
    unit: Floats = rows / norms
    return unit


def _tower(model: nn.Module, gallery: Floats, clean: Sequence[Tensor] | Tensor, device: str) -> TensorTower:
    """The model as an encoder of such pictures. Raises ConfigError."""
    if len(clean) < BATCH:
        raise ConfigError(f"{len(clean)} clean pictures: expected {BATCH} or more, of the kind that will ask")
    if not isinstance(clean[0], Tensor) or clean[0].ndim != 3:
        raise ConfigError("expected clean pictures as tensors [3, H, W], as your preprocessing gives them")
    tower = TensorTower(model, (int(clean[0].shape[1]), int(clean[0].shape[2])), device)
    if gallery.shape[1] != tower.width:
        raise ConfigError(
            f"gallery features have width {gallery.shape[1]}, the model gives {tower.width}: encode the "
            "gallery with this model"
        )
    return tower


def _head(gallery: Floats, bits: int, seed: int, device: str) -> HashHead:
    if bits <= 0 or bits % 8:
        raise ConfigError(f"expected a number of bits divisible by 8, got {bits}")
    (count, width), mean = gallery.shape, gallery.mean(0)
    if count < bits <= width:  # too few to learn from: random hyperplanes
        weight = random_rotation(width, seed)[:bits].astype(np.float32)
    else:
        weight = itq(gallery, mean, bits, seed=seed)
    return HashHead(weight, np.zeros(bits, np.float32), {"image": mean}, device)


def _seen(tower: TensorTower, clean: Sequence[Tensor] | Tensor) -> tuple[Floats, dict[Modality, Calibration]]:
    """Features [n, D], and statistics of its normalisation layers where it has any. Raises ConfigError."""
    silent = Count(0, None)
    try:
        if tower.hook_points().widths:
            calibration = calibrate(tower, collated(tower, clean, silent))
            return calibration.features, {"image": calibration}
        return encoded(tower, clean, silent), {}
    except Refused as refused:
        raise ConfigError(f"a clean picture cannot be used: {refused.reason}") from refused


def _version(tower: TensorTower, *parts: Floats) -> str:
    sha = hashlib.sha256(tower.fingerprint.encode())
    for part in parts:
        sha.update(np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()
