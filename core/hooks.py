"""Where hooks are called, and one that only watches: its forward moves nothing and may be remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class HookPoints:
    """Where a tower calls a hook.

    `widths` are the channels of each call, in order; `layer_norm` says that what is normalised is z of
    LayerNorms, by groups of tokens, instead of the inputs of BatchNorms (`encoders.hooks`).
    """

    widths: tuple[int, ...] = ()
    layer_norm: bool = False


class Watch:
    """Keeps what some layers of a forward normalise."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.seen: dict[int, Tensor] = {}

    def __call__(self, layer: int, inputs: Tensor) -> None:
        if layer in self.layers:
            self.seen[layer] = inputs

    def inputs(self) -> list[Tensor]:
        """In the order of `layers`, of those that were met."""
        return [self.seen[layer] for layer in self.layers if layer in self.seen]
