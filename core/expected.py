"""The curve from a query's drop to the average precision to expect of it: fitted, kept, read.

Isotonic regression: of all curves that never rise, the one with the least squared error. By pooling adjacent
violators (Ayer et al., 1955): neighbours in the wrong order are replaced by their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import ArtifactError
from core.references import ExpectedQuality

EXPECTED = "expected-image"
"""Name of the part of a base model that holds the curve of its pictures."""


def fitted(drops: ArrayLike, precision: ArrayLike) -> ExpectedQuality:
    """The curve through labelled answers.

    Args:
        drops: [n] in sd of clean, at least one.
        precision: [n] average precision of each, 0 to 1.

    Raises:
        ArtifactError: nothing to fit, lengths that differ, or values that are no numbers.
    """
    at, values = np.asarray(drops, np.float64), np.asarray(precision, np.float64)
    if at.ndim != 1 or at.shape != values.shape or not len(at):
        raise ArtifactError(f"expected as many drops as precisions, got {at.shape} and {values.shape}")
    if not np.isfinite(at).all() or not np.isfinite(values).all():
        raise ArtifactError("drops or precisions hold NaN or infinity: leave such queries out")
    places, group = np.unique(at, return_inverse=True)
    counts = np.bincount(group).astype(np.float64)
    pooled: list[tuple[float, float, float]] = []  # sum of drops, sum of precisions, queries
    for place, total, count in zip(places, np.bincount(group, values), counts):
        block = (float(place * count), float(total), float(count))
        while pooled and pooled[-1][1] / pooled[-1][2] <= block[1] / block[2]:
            before = pooled.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        pooled.append(block)
    knots = np.array([(place / count, total / count) for place, total, count in pooled], np.float32)
    return ExpectedQuality(knots[:, 0].copy(), knots[:, 1].copy(), len(at))


def precision_at(curve: ExpectedQuality, drops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected average precision [B] at drops [B]; NaN where a drop is no number."""
    found: NDArray[np.float64] = np.interp(drops, curve.drops, curve.precision)
    return np.where(np.isfinite(drops), found, np.nan)


def written(curve: ExpectedQuality) -> dict[str, NDArray[Any]]:
    """As tensors by name; `read` gives the curve back."""
    return {
        "drops": curve.drops,
        "precision": curve.precision,
        "queries": np.array([curve.queries], np.int64),
    }


def read(tensors: Mapping[str, NDArray[Any]]) -> ExpectedQuality:
    """A curve that a base model has kept.

    Raises:
        ArtifactError: a part is missing, or it is no curve that never rises.
    """
    try:
        drops, precision, queries = (tensors[name] for name in ("drops", "precision", "queries"))
    except KeyError as error:
        raise ArtifactError(f"expected quality lacks {error}: build the base again") from error
    whole = drops.ndim == 1 and drops.shape == precision.shape and len(drops) > 0 and queries.shape == (1,)
    if not whole or not (np.isfinite(drops).all() and np.isfinite(precision).all()):
        raise ArtifactError(
            f"expected quality has {drops.shape} drops and {precision.shape} precisions, expected as many of "
            "each, all of them numbers: build the base again"
        )
    if (np.diff(drops) < 0).any() or (np.diff(precision) > 0).any():
        raise ArtifactError("expected quality rises with the drop: build the base again")
    if precision[0] > 1 or precision[-1] < 0:
        raise ArtifactError("expected quality leaves 0 to 1: build the base again")
    return ExpectedQuality(drops, precision, int(queries[0]))
