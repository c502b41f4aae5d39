"""The curves from what is seen of a query to the average precision to expect of it: fitted, kept, read.

Isotonic regression: of all curves that never rise, the one with the least squared error. By pooling adjacent
violators (Ayer et al., 1955): neighbours in the wrong order are replaced by their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import ArtifactError
from core.references import AgreedQuality, ExpectedQuality
from core.types import Floats, Modality

PARTS: Mapping[Modality, str] = {
    "image": "expected-image",
    "text": "expected-text",
    "vector": "expected-vector",
    "composed": "expected-composed",
    "sequence": "expected-sequence",
}
"""Names of the parts of a base model that hold the curves, by kind of query."""
ROUNDS = 10
"""Turns of backfitting; the fourth changes nothing by more than .001 on the development tasks."""
TWINS, TERMS = ("frozen", "adapted"), ("drops", "by_drop", "shares", "by_share")
FROZEN, ADAPTED, BOTH = 0, 1, 2
"""Whose an answer is; both: nothing was shifted, so that the adapted twin was not asked."""
Numbers = NDArray[np.float64]


def fitted(
    drops: ArrayLike, precision: ArrayLike, shares: ArrayLike | None = None, twins: ArrayLike | None = None
) -> ExpectedQuality:
    """The curve through labelled answers.

    Args:
        drops: [n] in sd of clean, at least one.
        precision: [n] average precision of each, 0 to 1.
        shares: [n] of the nearest items that carry a label of the first, where items share labels.
        twins: [n] `FROZEN`, `ADAPTED` or `BOTH`; None: all of both. Where there are shares each twin has
            terms of its own: what is aligned agrees more, and is right more often.

    Raises:
        ArtifactError: nothing to fit, lengths that differ, or values that are no numbers.
    """
    at, values = np.asarray(drops, np.float64), np.asarray(precision, np.float64)
    if at.ndim != 1 or at.shape != values.shape or not len(at):
        raise ArtifactError(f"expected as many drops as precisions, got {at.shape} and {values.shape}")
    beside = np.zeros(len(at)) if shares is None else np.asarray(shares, np.float64)
    if beside.shape != at.shape:
        raise ArtifactError(f"expected as many shares as drops, got {beside.shape} and {at.shape}")
    if not all(np.isfinite(column).all() for column in (at, values, beside)):
        raise ArtifactError("drops, precisions or shares hold NaN or infinity: leave such queries out")
    knots = _falling(at, values)
    agreed = None
    if shares is not None:
        whose = np.full(len(at), BOTH) if twins is None else np.asarray(twins)
        frozen, adapted = (_added(at, beside, values, whose != other) for other in (ADAPTED, FROZEN))
        agreed = (frozen, adapted)
    return ExpectedQuality(*_single(knots), len(at), agreed)


def _falling(at: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """Knots of the best curve that never rises: means of its blocks [k] and their values."""
    places, group = np.unique(at, return_inverse=True)
    counts = np.bincount(group).astype(np.float64)
    pooled: list[tuple[float, float, float]] = []  # sum of places, sum of values, answers
    for place, total, count in zip(places, np.bincount(group, values), counts):
        block = (float(place * count), float(total), float(count))
        while pooled and pooled[-1][1] / pooled[-1][2] <= block[1] / block[2]:
            before = pooled.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        pooled.append(block)
    sums, totals, sizes = np.array(pooled).T
    return sums / sizes, totals / sizes


def _added(drops: Numbers, shares: Numbers, precision: Numbers, own: NDArray[np.bool_]) -> AgreedQuality:
    """A term that falls with the drop and one that rises with the share, fitted in turn (backfitting).

    Each to what the other leaves. Of the answers `own` [n], of all where there are none.
    """
    if own.any():
        drops, shares, precision = drops[own], shares[own], precision[own]
    places, levels = np.zeros(1), np.zeros(1)
    for _ in range(ROUNDS):
        left = precision - np.interp(drops, places, levels)
        known, by_share = _falling(-shares, left)
        known, by_share = -known[::-1], by_share[::-1]
        places, levels = _falling(drops, precision - np.interp(shares, known, by_share))
    return AgreedQuality(*_single((places, levels)), *_single((known, by_share)))


def _single(knots: tuple[Numbers, Numbers]) -> tuple[Floats, Floats]:
    return knots[0].astype(np.float32), knots[1].astype(np.float32)


def precision_at(
    curve: ExpectedQuality, drops: Numbers, shares: Numbers | None = None, adapted: bool = False
) -> Numbers:
    """Expected average precision [B] at drops [B]; NaN where a drop is no number.

    Args:
        shares: [B] of the nearest items that agree, in a gallery of classes; a curve that was fitted without
            does not look at them.
        adapted: whether they are the adapted twin's.
    """
    if shares is None or curve.agreed is None:
        found: Numbers = np.interp(drops, curve.drops, curve.precision)
    else:
        agreed = curve.agreed[adapted]
        found = np.interp(drops, agreed.drops, agreed.by_drop)
        found = np.clip(found + np.interp(shares, agreed.shares, agreed.by_share), 0.0, 1.0)
    return np.where(np.isfinite(drops), found, np.nan)


def written(curve: ExpectedQuality) -> dict[str, NDArray[Any]]:
    """As tensors by name; `read` gives the curve back."""
    tensors: dict[str, NDArray[Any]] = {
        "drops": curve.drops,
        "precision": curve.precision,
        "queries": np.array([curve.queries], np.int64),
    }
    for twin, terms in zip(TWINS, curve.agreed or (), strict=False):
        tensors |= {f"{twin}.{name}": getattr(terms, name) for name in TERMS}
    return tensors


def read(tensors: Mapping[str, NDArray[Any]]) -> ExpectedQuality:
    """A curve that a base model has kept.

    Raises:
        ArtifactError: a part is missing, or it is no curve that never rises.
    """
    drops, precision, queries = _parts(tensors, "drops", "precision", "queries")
    _check_curve(drops, precision, "drop", -1)
    if queries.shape != (1,):
        raise ArtifactError("expected quality does not say of how many answers it is: build the base again")
    if precision[0] > 1 or precision[-1] < 0:
        raise ArtifactError("expected quality leaves 0 to 1: build the base again")
    agreed = None
    if any(name.startswith(f"{twin}.") for name in tensors for twin in TWINS):
        frozen, adapted = (_terms(tensors, twin) for twin in TWINS)
        agreed = (frozen, adapted)
    return ExpectedQuality(drops, precision, int(queries[0]), agreed)


def _terms(tensors: Mapping[str, NDArray[Any]], twin: str) -> AgreedQuality:
    found = AgreedQuality(*_parts(tensors, *(f"{twin}.{name}" for name in TERMS)))
    _check_curve(found.drops, found.by_drop, "drop", -1)
    _check_curve(found.shares, found.by_share, "share", 1)
    return found


def _parts(tensors: Mapping[str, NDArray[Any]], *names: str) -> tuple[NDArray[Any], ...]:
    try:
        return tuple(tensors[name] for name in names)
    except KeyError as error:
        raise ArtifactError(f"expected quality lacks {error}: build the base again") from error


def _check_curve(at: NDArray[Any], values: NDArray[Any], what: str, sign: int) -> None:
    """Raises ArtifactError where it is no curve that goes one way: -1 falls, 1 rises."""
    whole = at.ndim == 1 and at.shape == values.shape and len(at) > 0
    if not whole or not (np.isfinite(at).all() and np.isfinite(values).all()):
        raise ArtifactError(
            f"expected quality has {at.shape} {what}s and {values.shape} precisions, expected as many of "
            "each, all of them numbers: build the base again"
        )
    if (np.diff(at) < 0).any() or (sign * np.diff(values) < 0).any():
        wrong = "rises" if sign < 0 else "falls"
        raise ArtifactError(f"expected quality {wrong} with the {what}: build the base again")
