"""A `core.protocols.Pass` from functions, for tests of adapters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Params = Mapping[str, Tensor]


def _not_asked(*_: object) -> Tensor:
    raise AssertionError("this method is not expected to ask for that")


@dataclass(frozen=True)
class ToyPass:
    mask: Tensor
    source: Tensor
    encode: Callable[[Params], Tensor]
    neighbours: Callable[[Tensor], Tensor] = _not_asked
    shortlist: Callable[[Tensor], Tensor] = _not_asked
    gallery: Callable[[], Tensor] = _not_asked
    scrambled: Callable[[Params], Tensor | None] = lambda _: None
    ids: tuple[str, ...] = ()
