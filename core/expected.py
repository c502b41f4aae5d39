"""The curves from what is seen of a query to the average precision to expect of it: fitted, kept, read.

Isotonic regression: of all curves that never rise, the one with the least squared error. By pooling adjacent
violators (Ayer et al., 1955): neighbours in the wrong order are replaced by their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
CHOOSING = 4
"""Turns where forms are compared."""
TWINS, TERMS = ("frozen", "adapted"), ("drops", "by_drop", "shares", "by_share")
GATHERED = ("gathered", "by_gathered")
"""The terms that bases fitted before there were any, or without use for them, lack."""
SIGNS = (-1, 1, -1)
"""Which way the terms go: fall with the drop, rise with the share, fall with gathering."""
FROZEN, ADAPTED, BOTH = 0, 1, 2
"""Whose an answer is; both: nothing was shifted, so that the adapted twin was not asked."""
Numbers = NDArray[np.float64]
Knots = tuple[Numbers, Numbers]
Columns = Sequence[Numbers]


def fitted(
    drops: ArrayLike, precision: ArrayLike, shares: ArrayLike | None = None, twins: ArrayLike | None = None,
    gathered: ArrayLike | None = None, ways: ArrayLike | None = None,
) -> ExpectedQuality:  # fmt: skip
    """The curve through labelled answers.

    Args:
        drops: [n] in sd of clean, at least one.
        precision: [n] average precision of each, 0 to 1.
        shares: [n] of the nearest items that carry a label of the first, where items share labels.
        twins: [n] `FROZEN`, `ADAPTED` or `BOTH`; None: all of both. Where there are shares each twin has
            terms of its own: what is aligned agrees more, and is right more often.
        gathered: [n] how far its batch has gathered on few labels, 0 to 1; looked at beside shares.
        ways: [n] names of the shifts, "kind/level", a batch each. A term of `gathered` is added for both
            twins where it foretells the batches of kinds that were left out better than without; None, or
            but one kind: it is not.

    Raises:
        ArtifactError: nothing to fit, lengths that differ, or values that are no numbers.
    """
    at, values = np.asarray(drops, np.float64), np.asarray(precision, np.float64)
    if at.ndim != 1 or at.shape != values.shape or not len(at):
        raise ArtifactError(f"expected as many drops as precisions, got {at.shape} and {values.shape}")
    beside = [np.zeros(len(at)) if one is None else np.asarray(one, np.float64) for one in (shares, gathered)]
    if any(one.shape != at.shape for one in beside):
        shapes = [one.shape for one in beside]
        raise ArtifactError(f"expected as many shares, and gathered, as drops, got {shapes} and {at.shape}")
    if not all(np.isfinite(column).all() for column in (at, values, *beside)):
        raise ArtifactError("drops, precisions or shares hold NaN or infinity: leave such queries out")
    agreed = None
    if shares is not None:
        whose = np.full(len(at), BOTH) if twins is None else np.asarray(twins)
        columns = [at, *beside]
        if gathered is None or ways is None or not _foretells(columns, values, whose, np.asarray(ways)):
            columns = columns[:2]
        frozen, adapted = (_added(columns, values, whose != other) for other in (ADAPTED, FROZEN))
        agreed = (_quality(frozen), _quality(adapted))
    return ExpectedQuality(*_single(_falling(at, values)), len(at), agreed)


def _falling(at: Numbers, values: Numbers) -> Knots:
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


def _added(
    columns: Columns, precision: Numbers, own: NDArray[np.bool_], rounds: int = ROUNDS
) -> Sequence[Knots]:
    """A term of each column, fitted in turn to what the others leave (backfitting).

    Of the answers `own` [n], of all where there are none.
    """
    if own.any():
        columns, precision = [column[own] for column in columns], precision[own]
    terms: list[Knots] = [(np.zeros(1), np.zeros(1)) for _ in columns]
    for _ in range(rounds):
        for which in reversed(range(len(columns))):
            left = precision - sum(
                np.interp(column, *term)
                for place, (column, term) in enumerate(zip(columns, terms))
                if place != which
            )
            sign = SIGNS[which]
            places, levels = _falling(-sign * columns[which], left)
            terms[which] = (places, levels) if sign < 0 else (-places[::-1], levels[::-1])
    return terms


def _foretells(
    columns: Columns, precision: Numbers, whose: NDArray[np.int64], ways: NDArray[np.str_]
) -> bool:
    """Whether the last column makes less of an error in batches of a kind of shift that was left out.

    Of the mean of each batch, squared, over both twins: what is shown is the mean of streams, and those that
    come are of kinds that no fit has seen. One answer for both twins: of one alone there are few batches.
    """
    kinds = np.array([way.partition("/")[0] for way in ways.tolist()])
    if len(set(kinds.tolist())) < 2:
        return False
    missed = [0.0, 0.0]
    for kind in sorted(set(kinds.tolist())):
        for other in (ADAPTED, FROZEN):
            known, asked = (kinds != kind) & (whose != other), (kinds == kind) & (whose != other)
            for form, used in enumerate((columns[:-1], columns)):
                if not known.any():
                    continue
                terms = _added(used, precision, known, CHOOSING)
                off = _sum(used, terms) - precision
                for way in sorted(set(ways[asked].tolist())):
                    missed[form] += float(off[asked & (ways == way)].mean()) ** 2
    return missed[1] < missed[0]


def _sum(columns: Columns, terms: Sequence[Knots]) -> Numbers:
    found: Numbers = np.clip(sum(np.interp(column, *term) for column, term in zip(columns, terms)), 0.0, 1.0)
    return found


def _quality(terms: Sequence[Knots]) -> AgreedQuality:
    return AgreedQuality(*(part for term in terms for part in _single(term)))


def _single(knots: Knots) -> tuple[Floats, Floats]:
    return knots[0].astype(np.float32), knots[1].astype(np.float32)


def precision_at(
    curve: ExpectedQuality, drops: Numbers, shares: Numbers | None = None, adapted: bool = False,
    gathered: Numbers | None = None,
) -> Numbers:  # fmt: skip
    """Expected average precision [B] at drops [B]; NaN where a drop is no number.

    Args:
        shares: [B] of the nearest items that agree, in a gallery of classes; a curve that was fitted without
            does not look at them.
        adapted: whether they are the adapted twin's.
        gathered: [B] how far its batch has gathered; a curve without such a term does not look at it. None:
            not at all.
    """
    if shares is None or curve.agreed is None:
        found: Numbers = np.interp(drops, curve.drops, curve.precision)
    else:
        agreed = curve.agreed[adapted]
        found = np.interp(drops, agreed.drops, agreed.by_drop)
        found = found + np.interp(shares, agreed.shares, agreed.by_share)
        if agreed.gathered is not None and agreed.by_gathered is not None:
            apart = np.zeros(len(drops)) if gathered is None else gathered
            found = found + np.interp(apart, agreed.gathered, agreed.by_gathered)
        found = np.clip(found, 0.0, 1.0)
    return np.where(np.isfinite(drops), found, np.nan)


def written(curve: ExpectedQuality) -> dict[str, NDArray[Any]]:
    """As tensors by name; `read` gives the curve back."""
    tensors: dict[str, NDArray[Any]] = {
        "drops": curve.drops,
        "precision": curve.precision,
        "queries": np.array([curve.queries], np.int64),
    }
    for twin, terms in zip(TWINS, curve.agreed or (), strict=False):
        names = TERMS if terms.gathered is None else (*TERMS, *GATHERED)
        tensors |= {f"{twin}.{name}": getattr(terms, name) for name in names}
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
    more = any(f"{one}.{name}" in tensors for one in TWINS for name in GATHERED)
    names = (*TERMS, *GATHERED) if more else TERMS
    found = AgreedQuality(*_parts(tensors, *(f"{twin}.{name}" for name in names)))
    _check_curve(found.drops, found.by_drop, "drop", -1)
    _check_curve(found.shares, found.by_share, "share", 1)
    if found.gathered is not None and found.by_gathered is not None:
        _check_curve(found.gathered, found.by_gathered, "gathering", -1)
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
