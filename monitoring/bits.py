"""Health of the code bits: a code that collapses is seen here before labels tell."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import GalleryError
from core.types import Codes

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class BitHealth:
    """Statistics of B codes of L bits; p is the share of ones of a bit. NaN where B is too small.

    Attributes:
        balance: mean of |2p - 1| over bits: 0 balanced, 1 constant; `worst_balance` is its maximum.
        entropy_bits: sum of the bits' binary entropies, at most L.
        effective_bits: (sum v)^2 / sum v^2 over the eigenvalues v of the bit covariance: 1 collapsed to one
            direction, L independent and equal; at most B - 1.
        dead_bits: bits that never change.
        max_correlation: largest absolute correlation of two bits that are not dead.
        collision_rate: 1 - distinct codes / B.
        flip_rate: share of bits that differ from the frozen codes.
    """

    rows: int
    bits: int
    balance: float
    worst_balance: float
    entropy_bits: float
    effective_bits: float
    dead_bits: int
    max_correlation: float
    collision_rate: float
    flip_rate: float


def bit_health(codes: Codes, frozen: Codes | None = None) -> BitHealth:
    """Statistics of packed codes [B, L/8], compared with the frozen codes of the same queries if given.

    Raises:
        GalleryError: the two arrays are not of one shape.
    """
    if codes.ndim != 2 or (frozen is not None and frozen.shape != codes.shape):
        other = None if frozen is None else frozen.shape
        raise GalleryError(f"packed codes [B, L/8] expected, got {codes.shape} and frozen {other}")
    rows, bits = len(codes), 8 * codes.shape[1]
    flips = flip_rate(codes, frozen) if frozen is not None else NAN
    if rows == 0:
        return BitHealth(0, bits, NAN, NAN, NAN, NAN, 0, NAN, NAN, flips)
    ones = np.unpackbits(codes, axis=1).astype(np.float64)
    share = ones.mean(0)
    balance = np.abs(2.0 * share - 1.0)
    return BitHealth(
        rows,
        bits,
        float(balance.mean()) if bits else NAN,
        float(balance.max()) if bits else NAN,
        float(_entropy(share).sum()),
        *_dependence(ones - share),
        1.0 - len(np.unique(codes, axis=0)) / rows,
        flips,
    )


def flip_rate(codes: Codes, frozen: Codes) -> float:
    """Share of bits that differ between two sets of packed codes [B, L/8]; NaN when empty."""
    return float(np.unpackbits(codes ^ frozen).mean()) if codes.size else NAN


def _entropy(share: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = np.clip(share, 1e-300, None), np.clip(1.0 - share, 1e-300, None)
    return -(share * np.log2(inner[0]) + (1.0 - share) * np.log2(inner[1]))


def _dependence(centred: NDArray[np.float64]) -> tuple[float, int, float]:
    """(effective bits, dead bits, largest absolute correlation) of centred bits [B, L]."""
    covariance = centred.T @ centred / len(centred)
    variance = np.diag(covariance)
    alive = variance > 1e-12
    dead = int((~alive).sum())
    if not alive.any():
        return NAN, dead, NAN
    # tr(C)^2 / |C|^2 is the ratio of the eigenvalue sums, without the eigenvalues.
    effective = float(variance.sum() ** 2 / np.square(covariance).sum())
    sd = np.sqrt(variance[alive])
    correlation = np.abs(covariance[np.ix_(alive, alive)] / np.outer(sd, sd))
    np.fill_diagonal(correlation, 0.0)
    return effective, dead, float(correlation.max()) if len(sd) > 1 else NAN


class BitWindow:
    """The latest codes of a lane: single batches are too small for covariances."""

    def __init__(self, rows: int = 256) -> None:
        self._codes: deque[Codes] = deque(maxlen=rows)
        self._frozen: deque[Codes] = deque(maxlen=rows)

    def add(self, codes: Codes, frozen: Codes) -> BitHealth | None:
        """Adds a batch and returns the health of the window; None while it is empty."""
        if self._codes and codes.shape[1] != self._codes[0].shape[0]:
            self._codes.clear()  # another base model, other codes
            self._frozen.clear()
        self._codes.extend(codes)
        self._frozen.extend(frozen)
        return bit_health(np.stack(self._codes), np.stack(self._frozen)) if self._codes else None
