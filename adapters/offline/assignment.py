"""Clusters, balanced assignment, and which class of one domain is which of the other. Samples are rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from adapters.lloyd import lloyd
from core.errors import ConfigError

ROUNDS = 100  # of k-means, most


def sinkhorn(similarity: Tensor, share: Tensor, eps: float = 0.05, rounds: int = 3) -> Tensor:
    """Soft assignment Q [n, C] of exp(similarity / eps) with class shares [C]; rows sum to 1.

    The last half-step settles the rows, so that shares hold only roughly. A constant added to all
    similarities changes nothing.

    Reference: Cuturi, NeurIPS 2013; three rounds and eps .05 as in ProtoOT (AAAI 2024).
    """
    q = torch.exp((similarity - similarity.max()) / eps)
    q = q / q.sum()
    for _ in range(rounds):
        q = q / q.sum(0).clamp_min(1e-12) * share
        q = q / q.sum(1, keepdim=True).clamp_min(1e-12) / len(q)
    return q * len(q)


def kmeans(points: Tensor, classes: int, seed: int, starts: int = 10) -> Tensor:
    """Labels [n] of the best of some runs of Lloyd's algorithm from k-means++ seeds; no cluster is empty.

    Raises:
        ConfigError: every run leaves a cluster empty, as with fewer different points than classes.
    """
    draw = torch.Generator().manual_seed(seed)
    best, least = None, float("inf")
    for _ in range(starts):
        labels, inertia = clustered(points, _seeds(points, classes, draw))
        if inertia < least and int((torch.bincount(labels, minlength=classes) > 0).sum()) == classes:
            best, least = labels, inertia
    if best is None:
        raise ConfigError(
            f"{classes} clusters with points in each expected, got fewer in all of {starts} runs: "
            "take fewer classes, or leave out pictures that are there twice"
        )
    return best


def clustered(points: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Labels [n] of k-means from given centres [C, D], and its inertia."""
    labels, centres = lloyd(
        centres,
        lambda now: _nearest(points, now)[1],
        lambda labels, now: class_means(points, labels, now),
        ROUNDS,
    )
    return labels, float(_nearest(points, centres)[0].sum())


def tied_by_centres(
    points: Sequence[Tensor], alone: Sequence[Tensor], classes: int
) -> tuple[list[Tensor], float]:
    """Labels of two domains under one index: one leads, the other's k-means starts at its centres.

    And back: the leader clustered from the centres that the other found should name its rows as before. The
    domain of which more rows return leads; few returning says that clusters do not correspond. Ours.

    Args:
        points: [n_d, D] of both, minus the mean of their domain.
        alone: [n_d] clusters of each by itself, none empty.
        classes: C.

    Returns:
        Labels [n_d] of both, and the share of the leader's rows that return.
    """
    found = []
    for lead in (0, 1):
        own, other = points[lead], points[1 - lead]
        start = class_means(own, alone[lead], own.new_zeros(classes, own.shape[1]))
        told = clustered(other, start)[0]
        back = clustered(own, class_means(other, told, start))[0]
        labels = [alone[lead], told] if lead == 0 else [told, alone[lead]]
        found.append((float((back == alone[lead]).float().mean()), labels))
    returned, labels = max(found, key=lambda one: one[0])  # the first where they are level
    return labels, returned


def class_means(points: Tensor, labels: Tensor, otherwise: Tensor) -> Tensor:
    """Mean [C, D] of the points of each label; a class without points keeps its row of `otherwise`."""
    sums = torch.zeros_like(otherwise).index_add_(0, labels, points)
    count = torch.bincount(labels, minlength=len(otherwise)).to(points.dtype)[:, None]
    return torch.where(count > 0, sums / count.clamp_min(1), otherwise)


def matched(first: Tensor, second: Tensor) -> Tensor:
    """pi [C]: the row of `second` that belongs to each row of `first`, by the largest sum of cosines."""
    cosine = normalize(first, dim=1) @ normalize(second, dim=1).T
    return torch.from_numpy(linear_sum_assignment(-cosine.numpy())[1])


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance [n] to, and index [n] of, the nearest centre."""
    distance = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
    least = distance.min(1)
    return least.values.clamp_min(0), least.indices


def _seeds(points: Tensor, classes: int, draw: torch.Generator) -> Tensor:
    """k-means++: each further seed far from the ones there are."""
    chosen = [int(torch.randint(len(points), (1,), generator=draw))]
    distance = ((points - points[chosen[0]]) ** 2).sum(1)
    for _ in range(classes - 1):
        weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights, 1, generator=draw)))
        distance = torch.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    return points[chosen].clone()
