"""Normalisation layers: what adapts, the hook in front of BatchNorm, float32 norms in a bfloat16 body.

Layers are found by class, never by name: names differ between libraries, and even between the two model
classes of open_clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import ArtifactError
from core.protocols import Encoder
from core.references import Calibration

if TYPE_CHECKING:
    from core.protocols import Hook


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


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers in order of definition: the index a hook is called with."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


class Hooks:
    """Lets a function see, and move, the input of every BatchNorm while `current` is set.

    A move (scale, shift), [C] each, is folded into the statistics that the layer normalises with, which costs
    nothing: elementwise it would take as long as the layer itself, forward and backward.
    """

    def __init__(self, module: nn.Module) -> None:
        self.current: Hook | None = None
        self._held: list[tuple[_BatchNorm, Tensor, Tensor]] = []
        for index, layer in enumerate(batch_norms(module)):
            layer.register_forward_pre_hook(self._before(index))
            layer.register_forward_hook(lambda *_: self.release())

    def _before(self, index: int) -> Any:
        def before(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            move = None if self.current is None else self.current(index, inputs[0])
            if move is None:
                return None
            scale, shift = move
            if scale.ndim > 1:  # every row its own move: no statistics to fold it into
                shape = scale.shape + (1,) * (inputs[0].ndim - 2)
                return torch.addcmul(shift.view(shape), inputs[0], scale.view(shape)), *inputs[1:]
            mean, var = layer.running_mean, layer.running_var
            if mean is None or var is None:
                raise ArtifactError("a BatchNorm without source statistics cannot be aligned: fit again")
            self._held.append((layer, mean, var))
            # (scale x + shift - mean) / sqrt(var + eps) = (x - mean') / sqrt(var' + eps), for scale > 0
            layer.running_mean = (mean - shift) / scale
            layer.running_var = (var + layer.eps) / scale.square() - layer.eps
            return None

        return before

    def release(self) -> None:
        """Gives every layer its source statistics back."""
        while self._held:
            layer, mean, var = self._held.pop()
            layer.running_mean, layer.running_var = mean, var


def to_bfloat16(module: nn.Module) -> None:
    """Casts all but the normalisation layers; those compute in float32 between two casts.

    open_clip's own bf16 keeps float32 norms only in its native towers: the BatchNorms of timm towers would
    be cast too, which is too coarse for the small steps of adaptation.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.LayerNorm, _BatchNorm, nn.GroupNorm)):
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
            layer.register_forward_hook(lambda _, __, output: output.to(torch.bfloat16))
            continue
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.bfloat16)


def calibrate(encoder: Encoder, batches: Iterable[Any]) -> Calibration:
    """Channel statistics of clean pictures in front of every BatchNorm of the frozen encoder.

    Args:
        encoder: a tower with BatchNorm.
        batches: collated inputs without padding rows, n pictures in all.

    Returns:
        Features [n, D], mean and (biased) sd [n, W] per picture and channel over its pixels.

    Raises:
        ArtifactError: no BatchNorm, no pictures, or statistics that are not finite.
    """
    widths = encoder.bn_widths()
    if not widths:
        raise ArtifactError("the tower has no BatchNorm: statistics alignment does not apply, leave it out")
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
