"""How far a batch's answers have gathered on few labels: what a shift does that leads all queries astray.

Neighbours that agree are a good sign of one query. Where the neighbours of a whole batch, which lies far from
the gallery, name fewer labels than those of clean queries do, they agree on a wrong one. Queries may well be
sorted by label; so this counts only as far as the batch has moved away.

Ours; docs/methods/expected.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

FAR = 4.0
"""Mean drop of a batch, in sd of clean, from which gathering counts fully; below in proportion."""
PRIOR = 16.0
"""Clean queries that are counted with each batch: a few queries name few labels whatever they are."""
Votes = Mapping[str, float]
"""Label -> how many queries it is worth: each query has one vote, shared by the labels of its neighbours."""


def votes(
    labels: Sequence[frozenset[str]], place: NDArray[np.intp], known: NDArray[np.bool_]
) -> dict[str, float]:
    """Votes of n queries.

    Args:
        labels: of each item that is a neighbour of any.
        place: [n, K] of each neighbour among them.
        known: [n, K] False where there is none.
    """
    share = known / np.maximum(known.sum(1, keepdims=True), 1)
    found: dict[str, float] = {}
    for own, worth in zip(labels, np.bincount(place.ravel(), share.ravel(), len(labels)).tolist()):
        for label in sorted(own):  # votes are summed in the order in which they are found: not a set's
            found[label] = found.get(label, 0.0) + worth / len(own)
    return found


def gathered(batch: Votes, clean: Votes, drop: float) -> float:
    """0 where a batch's neighbours name as many labels as those of clean queries, 1 where but one, far away.

    1 - H(batch and `PRIOR` clean queries) / H(clean), H the entropy of votes, times the drop in `FAR`.

    Args:
        batch, clean: votes of both.
        drop: mean of the batch, in sd of clean.
    """
    usual, total = _entropy(np.array(list(clean.values()))), sum(clean.values())
    if not usual or not drop > 0:
        return 0.0
    both = [batch.get(one, 0.0) + PRIOR * clean.get(one, 0.0) / total for one in sorted({*batch, *clean})]
    return max(0.0, 1.0 - _entropy(np.array(both)) / usual) * min(drop, FAR) / FAR


def _entropy(worth: NDArray[np.float64]) -> float:
    share = worth[worth > 0] / worth.sum() if len(worth) else worth
    return float(-(share * np.log(share)).sum())
