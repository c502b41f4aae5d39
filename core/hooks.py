"""A hook that only watches: such a forward moves nothing, so that it may be remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Watch:
    """Keeps the inputs of some BatchNorms of a forward, by layer."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.seen: dict[int, Tensor] = {}

    def __call__(self, layer: int, inputs: Tensor) -> None:
        if layer in self.layers:
            self.seen[layer] = inputs

    def inputs(self) -> list[Tensor]:
        """In the order of `layers`, of those that were met."""
        return [self.seen[layer] for layer in self.layers if layer in self.seen]
