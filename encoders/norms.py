"""Normalisation layers: what adapts, clean statistics, float32 norms in a half-precision body.

Layers are found by class, never by name: names differ between libraries, and even between the two model
classes of open_clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import ArtifactError
from core.protocols import Encoder
from core.references import Calibration


def affine_tensors(module: nn.Module, exclude: Sequence[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yields (full name, tensor) of the scale and shift of every LayerNorm and BatchNorm.

    Args:
        module: where to look.
        exclude: module paths left out, whole or by their last parts (`ln_final`).
    """
    for path, layer in module.named_modules():
        if not isinstance(layer, (nn.LayerNorm, _BatchNorm)):
            continue
        if any(path == out or path.endswith(f".{out}") for out in exclude):
            continue
        for part in ("weight", "bias"):
            tensor = getattr(layer, part, None)
            if tensor is not None:
                yield f"{path}.{part}", tensor


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions of a body whose normalisation layers stay in float32."""


def to_half(module: nn.Module, kind: torch.dtype) -> None:
    """Casts all but the normalisation layers; those compute in float32 between two casts.

    open_clip's own bf16 keeps float32 norms only in its native towers: the BatchNorms of timm towers would
    be cast too, which is too coarse for the small steps of adaptation.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.LayerNorm, _BatchNorm, nn.GroupNorm)):
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
            layer.register_forward_hook(lambda _, __, output: output.to(kind))
            continue
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(kind)


def calibrate(encoder: Encoder, batches: Iterable[Any]) -> Calibration:
    """Channel statistics of clean pictures at every normalisation layer of the frozen encoder.

    Args:
        encoder: a tower that calls hooks.
        batches: collated inputs without padding rows, n pictures in all.

    Returns:
        Features [n, D], mean and (biased) sd [n, W] per picture and channel over its pixels.

    Raises:
        ArtifactError: no such layer, no pictures, or statistics that are not finite.
    """
    widths = encoder.hook_points().widths
    if not widths:
        raise ArtifactError("the tower has no normalisation layer that calls a hook: leave alignment out")
    features, means, sds = [], [], []
    for inputs in batches:
        moments: dict[int, tuple[Tensor, Tensor]] = {}

        def hook(layer: int, entering: Tensor, into: dict[int, tuple[Tensor, Tensor]] = moments) -> None:
            pixels = entering.float().flatten(2) if entering.ndim > 2 else entering.float()[..., None]
            sd, mean = torch.std_mean(pixels, dim=2, correction=0)
            into[layer] = (mean, sd)

        features.append(encoder.encode(inputs, None, hook).cpu().numpy())
        layers = [moments[layer] for layer in range(len(widths))]
        means.append(torch.cat([mean for mean, _ in layers], dim=1).cpu().numpy())
        sds.append(torch.cat([sd for _, sd in layers], dim=1).cpu().numpy())
    if not features:
        raise ArtifactError("calibration needs clean pictures, got none")
    found = Calibration(np.concatenate(features), np.concatenate(means), np.concatenate(sds), widths)
    if not (np.isfinite(found.mean).all() and np.isfinite(found.sd).all()):
        raise ArtifactError("channel statistics are not finite: a calibration picture or a weight is broken")
    return found
