"""What every method around another one has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.protocols import Adapter, Pass

if TYPE_CHECKING:
    from torch import Tensor

    from core.protocols import Params


class Wrapped:
    """Hands on to an inner method what is not said anew; `update` and state are each wrapper's own."""

    def __init__(self, inner: Adapter) -> None:
        self._inner = inner

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def version(self) -> int:
        return self._inner.version

    @property
    def learns_first(self) -> bool:
        return self._inner.learns_first

    def parameters(self) -> Params:
        return self._inner.parameters()

    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        return self._inner.transform(features, batch)
