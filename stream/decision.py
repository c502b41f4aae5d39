"""What an answer says of itself: which twin decided it, how sure it is, whether it names anything at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.types import Floats, Hits, Modality, Outcome, Twin
from stream.answer import DecidedBy
from stream.limits import NO_DISTANCE, NO_KEY

if TYPE_CHECKING:
    from stream.pipeline import BatchPass

Confidence = Callable[[str, Modality, Twin, Twin, Floats], NDArray[np.float64] | None]
"""(gallery version, modality, frozen, adapted, weights [B]) -> how good answers [B] are to be expected."""
DIGITS = 4
"""Of a confidence, in answers and where it is compared with a threshold."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Of one batch."""

    by: tuple[DecidedBy, ...]
    confidence: tuple[float | None, ...]
    """0 to 1; None where the base cannot say."""
    abstained: NDArray[np.bool_]
    """[B] True where the confidence is known, and below what the query wants: nothing is named then."""


def withheld(served: Hits, abstained: NDArray[np.bool_]) -> Hits:
    """What is served where some rows abstained: nothing to those."""
    if not abstained.any():
        return served
    keys, distances = served.keys.copy(), served.distances.copy()
    keys[abstained], distances[abstained] = NO_KEY, NO_DISTANCE
    return Hits(keys, distances, served.scores)


def unknown(
    version: str, modality: Modality, frozen: Twin, adapted: Twin, weights: Floats
) -> NDArray[np.float64] | None:
    """The confidence of a base that has measured none."""
    return None


class Decisions:
    """Says of each batch who decided it.

    Args:
        confidence: of answers.
        fused: False where the adapted twin answers whatever its weight (`answer.fuse = "none"`).
    """

    def __init__(self, confidence: Confidence = unknown, fused: bool = True) -> None:
        self._confidence, self._fused = confidence, fused

    def __call__(self, answered: BatchPass | Outcome) -> Decision:
        """Of an answered batch; depends on nothing but what was asked and found."""
        batch, weights = answered.batch, answered.weights
        said = self._confidence(
            answered.gallery_version, batch.modality, answered.frozen, answered.adapted, weights
        )
        sure: list[float | None] = [None] * len(batch)
        if said is not None:
            sure = [round(value, DIGITS) if np.isfinite(value) else None for value in said.tolist()]
        wanted = [query.wanted.threshold for query in batch.queries]
        abstained = [a is not None and b is not None and a < b for a, b in zip(sure, wanted)]
        return Decision(tuple(map(self._by, weights.tolist())), tuple(sure), np.array(abstained, np.bool_))

    def _by(self, weight: float) -> DecidedBy:
        if weight == 0:
            return "frozen"
        return "mixture" if self._fused and np.isfinite(weight) else "adapted"
