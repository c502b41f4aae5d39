"""Quality of answers over judged queries, as a table row: means and paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitoring.estimates import NAN, bootstrap_interval, normal_interval

ANSWERS = ("frozen", "adapted", "served")
GAINS = ("adapted", "served")
"""Answers that are compared with the frozen one."""


@dataclass(frozen=True, slots=True)
class Score:
    """AP and expected R@1 (0-1) of one labelled query, in the order of ANSWERS."""

    order: int
    label: str
    ap: tuple[float, float, float]
    first: tuple[float, float, float]
    entered: int
    """How many labels had entered the faded estimates before this one."""

    def gain(self, name: str) -> float:
        """AP of an answer minus that of the frozen one."""
        return self.ap[ANSWERS.index(name)] - self.ap[0]


@dataclass(frozen=True, slots=True)
class Quality:
    """A table row in points (0-100). `low`, `high`: paired bootstrap of served - frozen; NaN for n < 2."""

    n: int = 0
    map_frozen: float = NAN
    map_adapted: float = NAN
    map_served: float = NAN
    diff: float = NAN
    low: float = NAN
    high: float = NAN
    normal_low: float = NAN
    normal_high: float = NAN
    diff_adapted: float = NAN
    low_adapted: float = NAN
    high_adapted: float = NAN
    r1_frozen: float = NAN
    r1_adapted: float = NAN
    r1_served: float = NAN


def quality_of(scores: Sequence[Score], seed: int) -> Quality:
    """The row of these queries; `seed` is of the bootstrap."""
    if not scores:
        return Quality()
    ap = 100.0 * np.array([score.ap for score in scores])
    first = 100.0 * np.array([score.first for score in scores])
    served, adapted = ap[:, 2] - ap[:, 0], ap[:, 1] - ap[:, 0]
    low, high = bootstrap_interval(served, np.random.default_rng(seed))
    low_adapted, high_adapted = bootstrap_interval(adapted, np.random.default_rng(seed))
    normal_low, normal_high = normal_interval(served)
    map_frozen, map_adapted, map_served = (float(value) for value in ap.mean(0))
    r1_frozen, r1_adapted, r1_served = (float(value) for value in first.mean(0))
    return Quality(
        n=len(scores), map_frozen=map_frozen, map_adapted=map_adapted, map_served=map_served,
        diff=float(served.mean()), low=low, high=high, normal_low=normal_low, normal_high=normal_high,
        diff_adapted=float(adapted.mean()), low_adapted=low_adapted, high_adapted=high_adapted,
        r1_frozen=r1_frozen, r1_adapted=r1_adapted, r1_served=r1_served,
    )  # fmt: skip
