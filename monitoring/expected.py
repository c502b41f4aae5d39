"""The mAP that both twins are to be expected to have, by their neighbours: no query's label is looked at.

It stands beside labelled quality and decides nothing. Known for lanes whose base model brings a curve.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.records import Judgement, Refusal
from core.types import Outcome

Expected = Callable[[Outcome], tuple[NDArray[np.float64], NDArray[np.float64]] | None]
"""Outcome -> expected average precision [B] of the frozen and of the adapted twin; None: nothing is known."""
MEMORY = 300
"""Queries after which one weighs 1/e of the newest: about a phase of the demo."""
LANES = 64
"""Of more, the one that was silent for longest goes."""


@dataclass(frozen=True, slots=True)
class ExpectedMap:
    """Faded means, 0 to 1, and how many queries they are worth at most."""

    frozen: float
    adapted: float
    weight: float


class ExpectedMonitor:
    """Observer: keeps the expected mAP of both twins, by lane.

    Where the adapted twin was not asked, the frozen one stands for it.

    Args:
        expected: of a batch, injected by the app.
        memory: queries after which one weighs 1/e.
    """

    def __init__(self, expected: Expected, memory: int = MEMORY) -> None:
        self._expected, self._memory = expected, memory
        self._lock = threading.Lock()
        self._sums: dict[str, NDArray[np.float64]] = {}  # frozen, adapted, weight

    def observe(self, outcome: Outcome) -> None:
        """Takes in a batch that is answered for the first time."""
        found = None if outcome.repeated or not len(outcome.batch) else self._expected(outcome)
        if found is None:
            return
        frozen, adapted = found
        known = np.isfinite(frozen) & np.isfinite(adapted)
        if not known.any():
            return
        added = np.array([frozen[known].sum(), adapted[known].sum(), known.sum()])
        with self._lock:
            before = self._sums.pop(outcome.batch.lane, np.zeros(3))
            self._sums[outcome.batch.lane] = added + before * np.exp(-known.sum() / self._memory)
            while len(self._sums) > LANES:
                del self._sums[next(iter(self._sums))]

    def judge(self, judgement: Judgement) -> None:
        """Labels are not looked at."""

    def refuse(self, refusal: Refusal) -> None:
        """A refused query has no answer to expect anything of."""

    def of_lane(self, lane: str) -> ExpectedMap | None:
        """Of one lane; None: nothing is known."""
        with self._lock:
            sums = self._sums.get(lane)
            return None if sums is None else _mean(sums)

    def over_lanes(self) -> ExpectedMap | None:
        """Of all lanes, each by the weight of its own queries; None: nothing is known."""
        with self._lock:
            return _mean(np.sum(list(self._sums.values()), axis=0)) if self._sums else None


def _mean(sums: NDArray[np.float64]) -> ExpectedMap:
    frozen, adapted, weight = sums.tolist()
    return ExpectedMap(frozen / weight, adapted / weight, weight)
