"""A tower as an encoder: raw inputs -> unit features, with parameters that come with the call.

The module is shared by all lanes and never written to. A lane's own tensors enter through
`torch.func.functional_call`, so the frozen twin is the same module with nothing replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import ArtifactError
from core.hooks import HookPoints
from encoders.hooks import ROWS, Hooks
from encoders.norms import affine_tensors
from encoders.projection import Affine, Projection

if TYPE_CHECKING:
    from core.protocols import Hook, Params


LOSS_SCALE = 2.0**10
"""Of gradients inside a float16 body, where small ones would be 0 (Micikevicius et al., ICLR 2018, 3.2)."""


class UnitFeatures(nn.Module):
    """Tower, then (affine,) (projection,) normalise. The names of its parameters are those of `Params`."""

    def __init__(self, tower: nn.Module, affine: Affine | None, projection: Projection | None) -> None:
        super().__init__()
        self.tower, self.affine, self.projection = tower, affine, projection
        free = (p for p in tower.parameters() if p.ndim > 1 and p.is_floating_point())
        self._dtype = next((p.dtype for p in free), torch.float32)
        self.scaled = self._dtype == torch.float16

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            inputs = inputs.to(self._dtype)
        # A half-precision body ends here: normalising and hashing its features as they are loses codes.
        features: Tensor = self.tower(inputs).float()
        if self.scaled and features.requires_grad:
            features.register_hook(lambda gradient: gradient * LOSS_SCALE)  # type: ignore[no-untyped-call]
        if self.affine is not None:
            features = self.affine(features)
        if self.projection is not None:
            projected: Tensor = self.projection(features)
            return projected
        return normalize(features, dim=-1)


def _unscaled(name: str, tensor: Tensor) -> Tensor:
    """A parameter of the body, whose gradient loses the factor that it has inside."""
    if not tensor.requires_grad or not name.startswith("tower."):
        return tensor
    seen = tensor.view_as(tensor)
    seen.register_hook(lambda gradient: gradient / LOSS_SCALE)  # type: ignore[no-untyped-call]
    return seen


class Tower:
    """What image and text encoders share. Subclasses prepare and collate.

    `tokens` says whether hooks are called at LayerNorms, in towers without BatchNorm.

    Args:
        tower: gives raw features [B, width]; put in eval mode, BatchNorm keeps its source statistics.
        example: one collated input, to learn the width from.
        projection: into the shared space; None keeps the tower's own features.
        exclude: norm layers that do not adapt, by the last parts of their path (`tcr-paper`: `ln_final`).
        device: where parameters live and inputs go.
    """

    tokens = False

    def __init__(
        self,
        tower: nn.Module,
        example: Tensor,
        projection: Projection | None = None,
        exclude: Sequence[str] = (),
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.channels_last = any(isinstance(layer, _BatchNorm) for layer in tower.modules())
        if self.channels_last:  # convolutions run 1.7 times as fast on CPU
            tower = tower.to(memory_format=torch.channels_last)
        tower = tower.to(device).eval().requires_grad_(False)
        bare, rows = UnitFeatures(tower, None, None), example.to(device).expand(ROWS, *example.shape[1:])
        with torch.no_grad():
            raw = bare(rows[:1]).shape[1]
            self._hooks = Hooks(tower, (lambda: bare(rows)) if self.tokens else None)
        # AlexNet and plain VGG have no norm layer: adaptation holds on to an affine behind them.
        plain = next(affine_tensors(tower), None) is None
        affine = Affine(raw).to(device) if plain else None
        if projection is not None and projection.inputs != raw:
            raise ArtifactError(
                f"the projection takes {projection.inputs} features, the tower gives {raw}: fit it again"
            )
        module = UnitFeatures(tower, affine, None if projection is None else projection.to(device))
        self.module = module.eval().requires_grad_(False)
        self._width = raw if projection is None else projection.width
        found = affine_tensors(tower, exclude)
        self._source = {f"tower.{name}": tensor for name, tensor in found}
        if affine is not None:
            self._source = {f"affine.{name}": tensor.data for name, tensor in affine.named_parameters()}
        self._fingerprint = ""

    @property
    def width(self) -> int:
        return self._width

    @property
    def raw(self) -> nn.Module:
        """The tower before affine and projection: [B, ...] -> [B, raw width]."""
        return self.module.tower

    def encode(self, inputs: Any, params: Params | None = None, hook: Hook | None = None) -> Tensor:
        """Unit float32 features [rows, D]; without `params` the source encoder, outside any graph.

        Raises:
            ArtifactError: a parameter that this tower does not have, or of another shape.
        """
        if len(inputs) == 0:
            return torch.zeros((0, self._width), device=self.device)
        if params is None:
            with torch.no_grad():
                return self._run(inputs, {}, hook)
        for name, tensor in params.items():
            if name not in self._source or self._source[name].shape != tensor.shape:
                raise ArtifactError(f"parameter {name} {list(tensor.shape)} does not belong to this tower")
        return self._run(inputs, dict(params), hook)

    def _run(self, inputs: Tensor, params: dict[str, Tensor], hook: Hook | None) -> Tensor:
        self._hooks.current = hook
        if self.module.scaled:
            params = {name: _unscaled(name, tensor) for name, tensor in params.items()}
        try:
            features: Tensor = (
                functional_call(self.module, params, (inputs,)) if params else self.module(inputs)
            )
        finally:
            self._hooks.current = None
        return features

    def adaptable(self) -> dict[str, Tensor]:
        """Copies of the source values, float32: `tower.<path>.weight` and `.bias`."""
        return {name: tensor.detach().float().clone() for name, tensor in self._source.items()}

    def hook_points(self) -> HookPoints:
        """Where `encode` calls a hook: see `encoders.hooks`."""
        return self._hooks.points

    @property
    def fingerprint(self) -> str:
        """sha256 over all weights and settings: two towers with the same one give the same features."""
        if not self._fingerprint:
            sha = hashlib.sha256(self.settings().encode())
            for name, tensor in sorted(self.module.state_dict().items()):
                sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
                sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._fingerprint = sha.hexdigest()
        return self._fingerprint

    def settings(self) -> str:
        """Everything besides the weights that changes features, as text."""
        raise NotImplementedError
