"""From what a batch has lost, and what the adapted twin brings back, to that twin's weight in what is served.

After a moderate shift the adapted twin has no say unless it brings the queries nearer to the gallery again,
or apart again where they had gathered; after a severe one there is little left to lose. It counts more than
the frozen twin only where most queries have shifted, where it undoes a good part of that, and does not gather
them. In a gallery of classes it counts the less, the less its neighbours agree. On clean queries the weight
is 0.

Ours; measured in docs/methods/fusion.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.fusion import WEIGHTS

RECOVERED = 0.2
"""Sd of the nearest cosine that the adapted twin has to win back before it counts: docs/lab/log.md."""
SEVERE = (1.5, 2.5)
"""Median drop (its lower bound) from which the adapted twin counts without recovery, and fully.
Line art is recognised better after alignment although it comes no nearer to the gallery: docs/lab/log.md."""
MOST, GOOD, MORE = (0.0, 0.3), (0.0, 0.5), 4.0
"""Median drop (its lower bound), and share of the drop that is won back, from which the adapted twin counts
more than the frozen one, and `MORE` times as much: docs/lab/log.md."""
HIT = 1.0
"""Drop in sd from which a query counts as hit: what is won back is asked of those alone, where there are any.
Clean queries among users of all kinds lose what the others win."""
APART = (0.1, 0.2)
"""Mean cosine between the queries that the adapted twin takes away, as a share of what clean ones leave, from
which it counts, and fully. Noise gathers the queries of a transformer; as they part they come no nearer."""
CORNERED = 1.5
"""Standard errors of the drop that are not asked for where the queries have gathered, as `APART` asks, and
part again: docs/lab/log.md."""
GATHERED = (0.02, 0.05)
"""The same the other way: queries that the adapted twin gathers give it no more than the frozen one's say.
Another domain's pictures come nearer to the gallery so, and to its wrong items."""
AGREED, SURE, CLASSES = (-1.0, 1.0), (0.0, 2.0), 2 / 3
"""Standard errors by which the adapted twin's nearest items agree more on their label than the frozen twin's,
from which it counts and counts fully, and counts more than the frozen one; and how many neighbours of clean
queries agree in a gallery that has classes, where this says anything: docs/lab/log.md."""
NEAR, FARTHER = (0.0, 0.25), (1.0, 0.5)
"""A query that has lost no more than so much, and one that the adapted twin takes farther away by so much, in
sd, and the largest weights that they get."""


@dataclass(frozen=True, slots=True)
class Drop:
    """How far the nearest cosines of a batch lie below clean ones, in sd of these, over `rows` queries.

    `mean` and `median` of the frozen twin; `hit` the mean of the queries that are hit, of all where none is,
    and `back` how much of it the adapted twin wins back. `apart` is how far it takes the queries from each
    other, see `APART`; `agreed` how much more its nearest items agree on their label, see `AGREED`; inf where
    that says nothing. `crowded` is how much nearer to each other the frozen twin finds them than clean ones,
    as a share of what these leave.
    """

    mean: float
    median: float
    hit: float
    back: float
    apart: float
    rows: int
    agreed: float = math.inf
    crowded: float = 0.0

    @property
    def cornered(self) -> float:
        """Whether a shift has brought the queries together in a corner, 0-1.

        They have gathered, the adapted twin parts them, and they come nearer to the gallery as they part: the
        queries of one class have gathered, too, and are taken away from it. A few are alike by chance.
        """
        surely = self.crowded - 2.0 / self.rows
        return min(_ramp(min(self.apart, surely), APART), _ramp(self.back, (0.0, RECOVERED)))

    @classmethod
    def of(
        cls, lost: NDArray[np.float64], left: NDArray[np.float64], apart: float, agreed: float = math.inf,
        crowded: float = 0.0,
    ) -> Drop:  # fmt: skip
        """From the drops [n] of the frozen and of the adapted twin, n > 0."""
        hit = lost > HIT if (lost > HIT).any() else np.ones(len(lost), bool)
        hurt, back = float(lost[hit].mean()), float((lost - left)[hit].mean())
        middle = float(np.median(lost))
        return cls(float(lost.mean()), middle, hurt, back, apart, len(lost), agreed, crowded)


def weight(drop: Drop, evidence: tuple[float, float]) -> float:
    """Weight of the adapted twin, one of `WEIGHTS`; the more of the drop it wins back, the larger.

    Whether a shift is severe, and has hit most queries, is asked of the median: a few hopeless queries among
    clean ones must not speak for them.

    Args:
        drop: of the batch.
        evidence: mean drop (its lower bound) where the adapted twin begins to count, and counts as much as
            the frozen one.
    """
    parted = _ramp(drop.apart, APART)
    # Two standard errors of a mean. In a corner all is near to something, so that cosines fall by less.
    unsure = (2.0 - CORNERED * drop.cornered) / math.sqrt(drop.rows)
    anyhow = max(_ramp(drop.median - unsure, SEVERE), parted)
    say = _ramp(drop.mean - unsure, evidence) * max(_ramp(drop.back, (0.0, RECOVERED)), anyhow)
    # In the corner where all had gathered neighbours agree, too, on a wrong label: who parts is not asked.
    say *= max(_ramp(drop.agreed, AGREED), parted)
    if say == 0.0:
        return 0.0
    good = max(_ramp(drop.back / max(drop.hit, RECOVERED), GOOD), anyhow)
    trusted = _ramp(drop.median - unsure, MOST) * good * (1.0 - _ramp(-drop.apart, GATHERED))
    trusted *= max(_ramp(drop.agreed, SURE), parted)
    return _listed(say * (1.0 + (MORE - 1.0) * trusted))


def limited(
    batch: float, drop: Drop, lost: NDArray[np.float64], left: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weight of a batch for each of its rows, whose drops [B] limit it."""
    weights = np.full(len(lost), batch)
    cases = []
    if drop.cornered < 0.5:  # there it is the shift that brings a query near
        cases.append((lost <= NEAR[0], NEAR[1]))
    if drop.apart < sum(APART) / 2:  # who parts is farther from the corner where all was near
        cases.append((left - lost >= FARTHER[0], FARTHER[1]))
    for rows, most in cases:
        weights[rows] = np.minimum(weights[rows], most)
    return weights


def _listed(weight: float) -> float:
    """The nearest of `WEIGHTS` by its logarithm; half of the smallest stands for 0."""
    finite = [listed for listed in WEIGHTS if 0 < listed < math.inf]
    places = [finite[0] / 2, *finite]
    nearest = min(places, key=lambda place: abs(math.log(weight / place)))
    return nearest if nearest in WEIGHTS else 0.0


def _ramp(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return min(1.0, max(0.0, (value - low) / (high - low)))
