"""What a loop of one's own gives and gets: contents of queries and items, and rankings by names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.types import Modality

if TYPE_CHECKING:
    from torch import Tensor

Content = str | bytes | NDArray[Any] | tuple[bytes, str] | tuple[bytes, ...]
"""A text, an encoded picture or its pixels uint8 [H, W, 3], a vector [D], a picture with a text, or the
frames of a clip."""
Said = Mapping[str, Any]
"""A filter, or the attributes of an item, as JSON says it."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What is found for B queries, best first; places without an item hold key -1 and ""."""

    items: tuple[tuple[str, ...], ...]
    """Names [B][K]."""
    keys: NDArray[np.int64]
    """[B, K]"""
    distances: NDArray[np.int32]
    """[B, K] in bits."""
    scores: NDArray[np.float64] | None = None
    """[B, K] what the order is by: cosines of one twin, beliefs in a mixture; None: distances."""


def modality_of(queries: Sequence[Content] | Tensor) -> Modality:
    """Of several contents. Raises ConfigError for none, or for several modalities."""
    found = {_kind(query) for query in queries}
    if len(found) != 1:
        what = " and ".join(sorted(found)) or "none"
        raise ConfigError(f"expected queries of one modality, got {what}: answer each by itself")
    return found.pop()


def _kind(query: Content | Tensor) -> Modality:
    if isinstance(query, str):
        return "text"
    if isinstance(query, bytes):
        return "image"
    if isinstance(query, tuple):
        return "composed" if len(query) == 2 and isinstance(query[1], str) else "sequence"
    return "image" if getattr(query, "ndim", 1) == 3 else "vector"
