"""Lets a function see, and move, what a tower's normalisation layers normalise, while it is set.

In towers with BatchNorm that is the input of each BatchNorm. A move (scale, shift), [C] each, is folded into
the statistics that the layer normalises with, which costs nothing.

In transformers for pictures it is z of each LayerNorm: what is normalised, before the layer's own scale and
shift. The first token, which a ViT answers from, and the other tokens have statistics of their own (their
means lie several sd apart), so each LayerNorm calls the hook twice: with z of the other tokens as
[B, C, T - 1], and with that of the first as [B, C]. Layers that normalise one vector a picture [B, C] or a
grid ([B, H, W, C], or [B, C, H, W] in ConvNeXts) call it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, layer_norm
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import ArtifactError
from core.hooks import HookPoints, Watch

if TYPE_CHECKING:
    from core.protocols import Affine, Hook

ROWS = 3
"""Of the example that LayerNorms are met with: a number that no grid or sequence has."""


class Hooks:
    """The hooks of one tower.

    Args:
        module: the tower.
        run: runs it on ROWS inputs, so that its LayerNorms are met; None leaves those alone: in towers for
            texts, where padding stands among the tokens.
    """

    def __init__(self, module: nn.Module, run: Callable[[], object] | None = None) -> None:
        self.current: Hook | None = None
        batch = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        self.points = HookPoints(tuple(int(layer.num_features) for layer in batch))
        for index, layer in enumerate(batch):
            layer.forward = _Moved(layer, index, self)  # type: ignore[assignment, method-assign]
        if run is not None and not batch:
            self.points = HookPoints(self._of_tokens(module, run), True)

    def _of_tokens(self, module: nn.Module, run: Callable[[], object]) -> tuple[int, ...]:
        """Meets the LayerNorms in the order in which they run; returns the widths."""
        met: list[tuple[nn.LayerNorm, torch.Size]] = []
        layers = [layer for layer in module.modules() if isinstance(layer, nn.LayerNorm)]
        noting = [
            layer.register_forward_pre_hook(lambda one, inputs: met.append((one, inputs[0].shape)))
            for layer in layers
        ]
        run()
        for handle in noting:
            handle.remove()
        widths: list[int] = []
        for layer, shape in met:
            often = sum(one is layer for one, _ in met) > 1
            # What does not hold one picture a row (windows, sequences first) has no moves by row.
            if often or shape[0] != ROWS or len(layer.normalized_shape) > 1 or len(shape) not in (2, 3, 4):
                continue
            first = _channels_first(layer, shape)
            if first and len(shape) != 4:
                continue
            layer.register_forward_hook(self._after(len(widths), first))
            widths += [layer.normalized_shape[0]] * (2 if len(shape) == 3 else 1)
        return tuple(widths)

    def _after(self, index: int, channels_first: bool) -> Any:
        def after(layer: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            hook = self.current
            if hook is None or (isinstance(hook, Watch) and not {index, index + 1} & set(hook.layers)):
                return None  # z is computed for whoever looks at it
            entering = inputs[0].movedim(1, -1) if channels_first else inputs[0]
            z = layer_norm(entering, layer.normalized_shape, None, None, layer.eps)
            moves = [hook(index + number, group) for number, group in enumerate(_groups(z))]
            if all(move is None for move in moves):
                return None
            scale, shift = _spread(z, moves)
            if layer.weight is not None:
                scale, shift = scale * layer.weight, shift * layer.weight
            if layer.bias is not None:
                shift = shift + layer.bias
            moved = torch.addcmul(shift, z, scale).to(output.dtype)
            return moved.movedim(-1, 1) if channels_first else moved

        return after


def _channels_first(layer: nn.LayerNorm, shape: torch.Size) -> bool:
    """Whether a layer normalises the second axis: ConvNeXt's own kinds of LayerNorm do, of [B, C, H, W]."""
    (width,) = layer.normalized_shape
    if shape[-1] != width or len(shape) != 4:
        return bool(shape[-1] != width)
    if shape[1] != width or type(layer) is nn.LayerNorm:
        return False
    # A grid as wide as it has channels: only its output says which axis it is.
    where = next((tensor.device for tensor in layer.parameters()), None)
    probe = torch.arange(2.0 * width**2, device=where).sin().view(1, width, 2, width)
    with torch.no_grad():
        last = layer_norm(probe, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
        return not torch.allclose(layer(probe), last, atol=1e-3)


class _Moved:
    """The forward of a BatchNorm that may be moved: one pass over its input whatever the move.

    An object, so that a copy of the layer gets a forward of its own.
    """

    def __init__(self, layer: _BatchNorm, index: int, hooks: Hooks) -> None:
        self._layer, self._index, self._hooks = layer, index, hooks
        self._source, self._then = layer.forward, _then(layer)

    def __call__(self, inputs: Tensor) -> Tensor:
        hook, layer = self._hooks.current, self._layer
        move = None if hook is None else hook(self._index, inputs)
        if move is None:
            return self._source(inputs)
        mean, var = layer.running_mean, layer.running_var
        if mean is None or var is None:
            raise ArtifactError("a BatchNorm without source statistics cannot be aligned: fit again")
        if self._then is None:
            return self._through(inputs, *move)
        return self._then(layer, self._normalised(inputs, mean, var, *move))

    def _normalised(self, inputs: Tensor, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        layer = self._layer
        if scale.ndim == 1:
            # (scale x + shift - mean) / sqrt(var + eps) = (x - mean') / sqrt(var' + eps), for scale > 0
            mean, var = (mean - shift) / scale, (var + layer.eps) / scale.square() - layer.eps
            return batch_norm(inputs, mean, var, layer.weight, layer.bias, eps=layer.eps)
        # Every row has its own move: no statistics to fold it into, but one scale and shift of the input.
        steep = (var + layer.eps).rsqrt()
        steep = steep if layer.weight is None else steep * layer.weight
        shift = (shift - mean) * steep
        shift = shift if layer.bias is None else shift + layer.bias
        shape = scale.shape + (1,) * (inputs.ndim - 2)
        return torch.addcmul(shift.view(shape), inputs, (scale * steep).view(shape))

    def _through(self, inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """By the layer's own forward, which does more than normalise, and we do not know what."""
        rows = scale.shape if scale.ndim > 1 else (1, *scale.shape)
        shape = (*rows, *[1] * (inputs.ndim - 2))
        return self._source(torch.addcmul(shift.view(shape), inputs, scale.view(shape)))


def _then(layer: _BatchNorm) -> Callable[[Any, Tensor], Tensor] | None:
    """What a layer's own forward does once it has normalised; None where it is of a kind not known here."""
    kind = type(layer).forward
    if kind is _BatchNorm.forward:
        return _nothing
    from timm.layers import BatchNormAct2d  # open_clip brings it

    return _activation if kind is BatchNormAct2d.forward else None


def _nothing(layer: Any, normalised: Tensor) -> Tensor:
    return normalised


def _activation(layer: Any, normalised: Tensor) -> Tensor:
    activated: Tensor = layer.act(layer.drop(normalised))
    return activated


def _groups(z: Tensor) -> Iterator[Tensor]:
    """z [B, T, C] -> the other tokens [B, C, T - 1], then the first [B, C]; one group of anything else."""
    if z.ndim == 3:
        yield z[:, 1:].transpose(1, 2)
        yield z[:, 0]
    else:
        yield z if z.ndim == 2 else z.movedim(-1, 1)


def _spread(z: Tensor, moves: list[Affine | None]) -> Affine:
    """Moves of each group, [C] or [B, C], as scale and shift that broadcast over z."""
    like = next(move for move in moves if move is not None)[0]
    none = (torch.ones_like(like), torch.zeros_like(like))
    others, *first = [none if move is None else move for move in moves]
    scale, shift = (side if side.ndim == 1 else side.view(len(z), *[1] * (z.ndim - 2), -1) for side in others)
    if not first:
        return scale, shift
    at_first = torch.arange(z.shape[1], device=z.device)[:, None] == 0
    scale_first, shift_first = (side.unsqueeze(-2) for side in first[0])
    return torch.where(at_first, scale_first, scale), torch.where(at_first, shift_first, shift)
