"""The bit convention, in one place: bit 1 where h >= 0, eight bits to a byte, first bit lowest.

Never `sign`: it is 0 at 0, and a code has no third value. Hamming distances are counted on the widest
words the width allows, in pieces that stay in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import GalleryError
from core.types import Codes, Distances

NO_KEY = -1
"""Key of an unused place in `Hits`."""
NO_DISTANCE = 2147483647
"""Distance of an unused place in `Hits`: the largest int32, as FAISS has it."""
MAX_BITS = 1 << 15
_PIECE = 1 << 18  # words of XOR held at once: 2 MB of uint64, about a second-level cache


def pack(relaxed: ArrayLike) -> Codes:
    """[..., L] before the sign -> packed codes [..., L/8] uint8; h >= 0 (also -0.0) is bit 1.

    Raises:
        GalleryError: L is not a multiple of 8, or a value is NaN (it would pass for a valid bit 0).
    """
    values = np.asarray(relaxed)
    if values.ndim == 0 or values.shape[-1] % 8 or not values.shape[-1]:
        raise GalleryError(f"expected L a positive multiple of 8 on the last axis, got shape {values.shape}")
    if np.isnan(values).any():
        raise GalleryError("expected numbers to take bits from, got NaN: the head or its input is broken")
    return np.packbits(values >= 0, axis=-1, bitorder="little")


def unpack(codes: Codes) -> NDArray[np.int8]:
    """Packed codes [..., L/8] -> signs [..., L] int8, -1 or +1, so that L - 2 * Hamming is their product."""
    bits = np.unpackbits(checked_bytes(codes), axis=-1, bitorder="little")
    return (bits.astype(np.int8) << 1) - 1


def width_of(bits: int) -> int:
    """Bytes of a code of L bits. Raises GalleryError unless L is a multiple of 8 in 8..32768."""
    if bits % 8 or not 8 <= bits <= MAX_BITS:
        raise GalleryError(f"expected a code length that is a multiple of 8 in 8..{MAX_BITS}, got {bits}")
    return bits // 8


def checked_bytes(codes: Any) -> Codes:
    """The array itself when it is uint8; other types are refused, not cast: 256 would become 0."""
    array = np.asarray(codes)
    if array.dtype != np.uint8:
        raise GalleryError(f"expected packed codes of type uint8, got {array.dtype}: use index.codes.pack")
    return array


def checked(codes: Any, bits: int) -> Codes:
    """Codes [B, L/8] uint8, C-contiguous, or GalleryError. FAISS raises an empty AssertionError here."""
    array = checked_bytes(codes)
    if array.ndim != 2 or array.shape[1] != width_of(bits):
        raise GalleryError(
            f"expected codes [B, {width_of(bits)}] of {bits} bits, got shape {array.shape}: "
            f"encode with the head the gallery was built with, or rebuild the gallery"
        )
    return np.ascontiguousarray(array)


def hamming(queries: Codes, items: Codes) -> Distances:
    """Distances [B, N] int32 between codes [B, L/8] and [N, L/8]; memory beyond the result is bounded.

    Raises:
        GalleryError: not two matrices of uint8 of one width.
    """
    bits = 8 * np.shape(queries)[-1] if np.ndim(queries) == 2 else 0
    left, right = _words(checked(queries, bits)), _words(checked(items, bits))
    out = np.zeros((len(left), len(right)), np.int32)
    if not out.size:
        return out
    rows = min(len(left), 64)
    columns = max(1, _PIECE // rows)
    for top in range(0, len(left), rows):
        for start in range(0, len(right), columns):
            piece = out[top : top + rows, start : start + columns]
            for word in range(left.shape[1]):
                a, b = left[top : top + rows, word], right[start : start + columns, word]
                piece += np.bitwise_count(a[:, None] ^ b[None, :])
    return out


def paired(queries: Codes, candidates: Codes) -> Distances:
    """Distances [B, K] int32 of queries [B, L/8] to their own candidates [B, K, L/8]."""
    left, right = _words(np.ascontiguousarray(queries)), _words(np.ascontiguousarray(candidates))
    out = np.zeros(right.shape[:2], np.int32)
    for word in range(left.shape[-1]):
        out += np.bitwise_count(left[:, None, word] ^ right[:, :, word])
    return out


def _words(codes: Codes) -> NDArray[Any]:
    """The same bytes seen as the widest words that divide the width; byte order does not matter to XOR."""
    kinds = (np.uint64, np.uint32, np.uint16, np.uint8)
    kind = next(k for k in kinds if codes.shape[-1] % np.dtype(k).itemsize == 0)
    return codes.view(kind)
