"""Scores and pseudo-labels of an unlabelled domain, and how far they can be trusted. Samples are rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapters.offline.prototypes import Floats, Labels, one_hot, squared_distances, unit_rows

ROUNDS = 100
"""Most rounds of k-means."""


@dataclass(frozen=True, slots=True)
class Centres:
    """What scores are told from; `target[k]` belongs to the class of `source[k]`."""

    mean: Floats
    """[q] mean of both domains together, taken off before rows are scaled to length 1."""
    source: Floats
    """[C, q] unit means of the labelled source classes."""
    target: Floats
    """[C, q] unit centres of the target's clusters."""

    def scores(
        self, z: Floats, temperature: float = 1.0, squared: bool = True, target_share: float | None = None
    ) -> Floats:
        """Scores pi [B, C] of projected samples z [B, q].

        Each side gives softmax_k(-distance / temperature).

        Args:
            z: projected samples.
            temperature: of both softmaxes.
            squared: squared distances, which are sharper, instead of Euclidean ones (those of SPL).
            target_share: weight in 0..1 of the clusters' side; None takes the larger of the two, class by
                class, which does not sum to 1 (SPL).
        """
        unit = unit_rows(z - self.mean)
        by_class, by_cluster = (
            _softmax(-(d if squared else np.sqrt(d)) / temperature)
            for d in (squared_distances(unit, self.source), squared_distances(unit, self.target))
        )
        if target_share is None:
            return np.maximum(by_class, by_cluster)
        return np.asarray((1 - target_share) * by_class + target_share * by_cluster)


def centres(source: Floats, labels: Labels, target: Floats, classes: int) -> Centres:
    """Source class means, and k-means of the target started there: a cluster's index is its class.

    Args:
        source: [n_s, q] projected source.
        labels: [n_s] in 0..C-1, every class present.
        target: [n_t, q] projected target.
        classes: C.

    Reference: Wang and Breckon, arXiv 1911.07982 (SPL): nearest class prototype, structured prediction.
    """
    mean = np.concatenate((source, target)).mean(0)
    y = one_hot(labels, classes, source.dtype)
    means = unit_rows((y.T @ unit_rows(source - mean)) / y.sum(0)[:, None])
    return Centres(mean, means, unit_rows(clusters(unit_rows(target - mean), means)))


def clusters(points: Floats, start: Floats) -> Floats:
    """Lloyd's k-means from [C, q] given centres; a cluster that empties keeps its last centre."""
    centre, before = start, np.full(len(points), -1)
    for _ in range(ROUNDS):
        nearest = squared_distances(points, centre).argmin(1)
        if np.array_equal(nearest, before):
            break
        members = one_hot(nearest, len(start), points.dtype)
        count = members.sum(0)[:, None]
        centre = np.where(count > 0, (members.T @ points) / np.maximum(count, 1), centre)
        before = nearest
    return np.asarray(centre)


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far the scores of each target sample can be trusted."""

    weight: Floats
    """alpha [B] >= 0."""
    nearest: Labels
    """[B] class of the nearest prototype: geometry."""
    named: Labels
    """[B] class of the largest score: semantics."""


def reliability(scores: Floats, distances: Floats, eps: float = 1e-8, cap: float = np.inf) -> Reliability:
    """alpha: (pi1 - pi2) / (d2 - d1 + eps) where both agree, else pi1 (1 - |pi[nearest] - pi[named]|).

    pi1 >= pi2 are a row's two largest scores, d1 <= d2 its two smallest distances. A tie of distances makes
    alpha huge where they agree; `cap` bounds it.

    Reference: PSCA, Eq. 5.
    """
    nearest, named = distances.argmin(1), scores.argmax(1)
    rows = np.arange(len(scores))
    top, close = np.sort(scores, axis=1), np.sort(distances, axis=1)
    agree = (top[:, -1] - top[:, -2]) / (close[:, 1] - close[:, 0] + eps)
    conflict = top[:, -1] * (1 - np.abs(scores[rows, nearest] - scores[rows, named]))
    return Reliability(np.minimum(np.where(nearest == named, agree, conflict), cap), nearest, named)


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
