"""Class means of a source and clusters of a target, from which the target is scored. Samples are rows."""

from __future__ import annotations

from array_api_compat import array_namespace

from adapters.lloyd import lloyd
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
    """Centres of k-means from [C, q] given ones; a cluster that empties keeps its last centre."""
    xp = array_namespace(points)

    def means(labels: Labels, centres: Floats) -> Floats:
        members = one_hot(labels, len(start), points.dtype)
        count = members.sum(0)[:, None]
        moved: Floats = xp.where(count > 0, (members.T @ points) / xp.clip(count, min=1), centres)
        return moved

    return lloyd(start, lambda centres: squared_distances(points, centres).argmin(1), means, ROUNDS)[1]
