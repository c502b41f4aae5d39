"""Class means of a source and clusters of a target, from which the target is scored. Samples are rows."""

from __future__ import annotations

from array_api_compat import array_namespace

from adapters.offline.prototypes import one_hot
from adapters.semantics import Centres, Floats, Labels, squared_distances, unit_rows

ROUNDS = 100
"""Most rounds of k-means."""


def centres(source: Floats, labels: Labels, target: Floats, classes: int) -> Centres:
    """Source class means, and k-means of the target started there: a cluster's index is its class.

    Args:
        source: [n_s, q] projected source.
        labels: [n_s] in 0..C-1, every class present.
        target: [n_t, q] projected target.
        classes: C.

    Reference: Wang and Breckon, arXiv 1911.07982 (SPL): nearest class prototype, structured prediction.
    """
    mean = array_namespace(source).concat((source, target)).mean(0)
    y = one_hot(labels, classes, source.dtype)
    means = unit_rows((y.T @ unit_rows(source - mean)) / y.sum(0)[:, None])
    return Centres(mean, means, unit_rows(clusters(unit_rows(target - mean), means)))


def clusters(points: Floats, start: Floats) -> Floats:
    """Lloyd's k-means from [C, q] given centres; a cluster that empties keeps its last centre."""
    xp = array_namespace(points)
    centre, before = start, None
    for _ in range(ROUNDS):
        nearest = squared_distances(points, centre).argmin(1)
        if before is not None and bool((nearest == before).all()):
            break
        members = one_hot(nearest, len(start), points.dtype)
        count = members.sum(0)[:, None]
        centre = xp.where(count > 0, (members.T @ points) / xp.clip(count, min=1), centre)
        before = nearest
    return centre
