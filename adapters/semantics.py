"""Geometry and semantics of features: which prototype is nearest, which class scores highest, do they agree?

PSCA asks this of its training samples, the service of every batch: no labels are needed. Samples are rows.
Functions take arrays of NumPy or torch, on any device, and answer in kind.

Reference: PSCA, AAAI-26 (arXiv 2512.04524), Eq. 5; scores as in SPL (arXiv 1911.07982).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from core.errors import ArtifactError

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
"""Typed as NumPy's: torch's have the same operators, and what differs goes through `array_namespace`."""


def squared_distances(points: Floats, centres: Floats) -> Floats:
    """d [n, C] between rows of [n, q] and [C, q]; never negative."""
    squares = (points**2).sum(1)[:, None] + (centres**2).sum(1)
    found: Floats = array_namespace(points).clip(squares - 2 * points @ centres.T, min=0)
    return found


def unit_rows(x: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays zero."""
    xp = array_namespace(x)
    length = xp.linalg.vector_norm(x, axis=1, keepdims=True)
    unit: Floats = x / xp.where(length > 0, length, xp.ones_like(length))
    return unit


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
        xp = array_namespace(z)
        unit = unit_rows(z - self.mean)
        by_class, by_cluster = (
            _softmax(-(d if squared else xp.sqrt(d)) / temperature)
            for d in (squared_distances(unit, self.source), squared_distances(unit, self.target))
        )
        if target_share is None:
            larger: Floats = xp.maximum(by_class, by_cluster)
            return larger
        return (1 - target_share) * by_class + target_share * by_cluster


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
    xp = array_namespace(scores)
    nearest, named = distances.argmin(1), scores.argmax(1)
    rows = xp.arange(len(scores), device=device(scores))
    top, close = xp.sort(scores, axis=1), xp.sort(distances, axis=1)
    agree = (top[:, -1] - top[:, -2]) / (close[:, 1] - close[:, 0] + eps)
    conflict = top[:, -1] * (1 - xp.abs(scores[rows, nearest] - scores[rows, named]))
    weight = xp.clip(xp.where(nearest == named, agree, conflict), max=cap)
    return Reliability(weight, nearest, named)


def _softmax(logits: Floats) -> Floats:
    xp = array_namespace(logits)
    shifted = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    shares: Floats = shifted / xp.sum(shifted, axis=1, keepdims=True)
    return shares


@dataclass(frozen=True, slots=True)
class Agreement:
    """What can be read off unlabelled samples.

    Args:
        agreement: share whose nearest prototype is the class of the largest score.
        reliability: mean alpha; single ties of distances can make it huge unless it is capped.
        gap: distance of the projected mean from that of the source.
    """

    agreement: float
    reliability: float
    gap: float


@dataclass(frozen=True, slots=True, eq=False)
class Semantics:
    """Prototypes and centres that features are compared with.

    Args:
        mean: [D], taken off unit features.
        projection: P [D, q].
        prototypes: O [C, q].
        source_mean: [q], of the projected source.
        centres: that scores are told from.
        temperature, squared, target_share: of `Centres.scores`.
        eps, cap: of `reliability`.
    """

    mean: Floats
    projection: Floats
    prototypes: Floats
    source_mean: Floats
    centres: Centres
    temperature: float = 1.0
    squared: bool = True
    target_share: float | None = None
    eps: float = 1e-8
    cap: float = np.inf

    def placed(self, x: Floats) -> tuple[Floats, Floats, Reliability]:
        """Of rows [B, D] minus the mean: projected [B, q], distances d [B, C], and their reliability."""
        projected = x @ self.projection
        d = squared_distances(projected, self.prototypes)
        pi = self.centres.scores(projected, self.temperature, self.squared, self.target_share)
        return projected, d, reliability(pi, d, self.eps, self.cap)

    def of(self, features: Floats) -> Agreement:
        """Of features [B, D], B at least 1, of any length."""
        return self.of_rows(unit_rows(features) - self.mean)

    def of_rows(self, x: Floats) -> Agreement:
        """Of rows that are of length 1, minus the mean."""
        projected, _, told = self.placed(x)
        return Agreement(
            float((told.nearest == told.named).mean()),
            float(told.weight.mean()),
            float(np.linalg.norm(projected.mean(0) - self.source_mean)),
        )

    def tensors(self) -> dict[str, NDArray[Any]]:
        """For a base model; `read` makes the same of them."""
        share = np.nan if self.target_share is None else self.target_share
        return {
            "mean": self.mean, "projection": self.projection, "prototypes": self.prototypes,
            "source_mean": self.source_mean, "centres.mean": self.centres.mean,
            "centres.source": self.centres.source, "centres.target": self.centres.target,
            "settings": np.array([self.temperature, self.squared, share, self.eps, self.cap], np.float64),
        }  # fmt: skip

    @classmethod
    def read(cls, tensors: Mapping[str, NDArray[Any]]) -> Semantics:
        """Raises ArtifactError for tensors of something else."""
        try:
            temperature, squared, share, eps, cap = tensors["settings"].tolist()
            return cls(
                tensors["mean"], tensors["projection"], tensors["prototypes"], tensors["source_mean"],
                Centres(tensors["centres.mean"], tensors["centres.source"], tensors["centres.target"]),
                temperature, bool(squared), None if np.isnan(share) else share, eps, cap,
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"no semantics of a PSCA base: {error}; fit the base again") from error
