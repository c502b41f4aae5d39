"""The baseline that learns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from core.protocols import Pass
from core.types import AdaptationStep

if TYPE_CHECKING:
    from core.protocols import Params


class Frozen:
    """Answers with the source parameters for ever.

    Args:
        source: the adaptable tensors; None means that the encoder's own are used, which saves a forward.
    """

    name = "frozen"
    version = 0
    learns_first = False

    def __init__(self, source: Params | None = None) -> None:
        self._source: dict[str, Tensor] = dict(source or {})

    def parameters(self) -> Params:
        return self._source

    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        return features

    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        return AdaptationStep(False, "frozen"), None

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {}, {"method": self.name}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Nothing to undo."""
