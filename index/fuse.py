"""Merges what the adapted and the frozen twin found.

Both distances are taken anew for every candidate of either shortlist: a candidate only one twin found
still counts with both. Smaller scores are better, so the "max" of similarities is the smaller distance; a
mixture weighs both distances as it weighs both beliefs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import GalleryError
from core.types import Codes, Distances, Hits, Keys
from index.codes import NO_KEY, checked, paired
from index.exact import checked_k, unused

Mode = Literal["none", "max", "sum", "mixture"]

STEP = 0.25
"""A mixture's weights are multiples of it."""
Weights = float | NDArray[np.floating[Any]]
"""Of the adapted twin in a mixture: one for all rows, or [B]."""


def fuse(
    adapted: Hits,
    frozen: Hits,
    adapted_codes: Codes,
    frozen_codes: Codes,
    code_of: Callable[[Keys], Codes],
    k: int,
    mode: Mode,
    weight: Weights = 1.0,
) -> Hits:
    """The best k of the union of two shortlists by (score, key); distances hold the smaller of both.

    Args:
        adapted: [B, K] of the adapted twin.
        frozen: [B, K'] of the frozen twin.
        adapted_codes: [B, L/8] query codes of the adapted twin.
        frozen_codes: [B, L/8] query codes of the frozen twin.
        code_of: keys [...] -> gallery codes [..., L/8]; any row for key -1.
        k: places wanted; unused ones hold -1 and 2147483647.
        mode: "sum" of both distances, "max" similarity (the smaller distance), "mixture", the frozen
            distance and `weight` times the adapted one, or "none": the adapted shortlist with its own
            distances.
        weight: of the adapted twin in a mixture, > 0 and finite, for all rows or for each [B].

    Raises:
        GalleryError: k < 1, an unknown mode, or batches and widths that differ.
    """
    checked_k(k)
    if mode == "none":
        return _cut(adapted, k)
    bits = 8 * np.shape(adapted_codes)[-1]
    left, right = checked(adapted_codes, bits), checked(frozen_codes, bits)
    if len({len(left), len(right), len(adapted.keys), len(frozen.keys)}) > 1:
        raise GalleryError(
            f"expected one batch, got {len(left)} and {len(right)} codes, "
            f"{len(adapted.keys)} and {len(frozen.keys)} rows of hits"
        )
    keys = np.concatenate((adapted.keys, frozen.keys), axis=1)
    candidates = code_of(keys)
    if candidates.shape != (*keys.shape, bits // 8):
        raise GalleryError(
            f"expected gallery codes {(*keys.shape, bits // 8)}, got {candidates.shape}: rebuild the gallery"
        )
    ours, theirs = paired(left, candidates), paired(right, candidates)
    order = np.lexsort((keys, fuse_distances(ours, theirs, mode, weight)))
    keys, nearer = (np.take_along_axis(one, order, 1) for one in (keys, np.minimum(ours, theirs)))
    # One item has one score: its two places stand side by side now, and the second is dropped.
    kept = keys != NO_KEY
    kept[:, 1:] &= keys[:, 1:] != keys[:, :-1]
    place = np.cumsum(kept, axis=1) - 1
    row, column = np.nonzero(kept & (place < k))
    fused = unused(len(keys), k)
    fused.keys[row, place[row, column]] = keys[row, column]
    fused.distances[row, place[row, column]] = nearer[row, column]
    return fused


def fuse_distances(adapted: Distances, frozen: Distances, mode: Mode, weight: Weights = 1.0) -> Distances:
    """Scores of two arrays of distances of one shape, int32: for judging the whole gallery [B, N].

    A mixture's weights are multiples of a quarter, and its scores four times the mixed distances: whole
    numbers, so that equal ones are equal on every machine.

    Raises:
        GalleryError: shapes that differ, an unknown mode, or a weight that is no such multiple above 0.
    """
    if adapted.shape != frozen.shape:
        raise GalleryError(f"expected distances of one shape, got {adapted.shape} and {frozen.shape}")
    match mode:
        case "none":
            return adapted.astype(np.int32)
        case "max":
            return np.minimum(adapted, frozen).astype(np.int32)
        case "sum":
            return (adapted + frozen).astype(np.int32)
        case "mixture":
            return (_quarters(weight) * adapted + round(1 / STEP) * frozen).astype(np.int32)
    raise GalleryError(f'expected mode "none", "max", "sum" or "mixture", got {mode!r}')


def _quarters(weight: Weights) -> NDArray[np.int32]:
    """How many steps a weight is, [1, 1] or [B, 1]."""
    steps = np.atleast_1d(np.asarray(weight, np.float64))[:, None] / STEP
    if not (np.isfinite(steps).all() and (steps > 0).all() and (steps % 1 == 0).all()):
        raise GalleryError(
            f"expected weights above 0 in steps of {STEP}, got {weight}: 0 and inf are one twin's own answer"
        )
    return steps.astype(np.int32)


def _cut(hits: Hits, k: int) -> Hits:
    cut = unused(len(hits.keys), k)
    found = min(k, hits.keys.shape[1])
    cut.keys[:, :found], cut.distances[:, :found] = hits.keys[:, :found], hits.distances[:, :found]
    return cut
