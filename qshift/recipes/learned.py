"""Codes that a method has learned for the pictures it was fitted to, and that no map gives again.

PSCA learns the codes of its labelled source together with the map (docs/methods/psca.md). They hold the
labels, so they find more than mapped ones. The base keeps them by what is in the picture: whoever puts that
picture into a gallery, in whatever way, gets the learned code; every other item gets the mapped one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ArtifactError
from core.types import Codes
from encoders.images import Pixels

LEARNED = "learned-codes"
"""Name of the part of a base model that holds them."""
DIGEST_BYTES = 16


def digest(pixels: Pixels) -> bytes:
    """Names a prepared picture by its content."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()[:DIGEST_BYTES]


def written(pictures: Sequence[Pixels], codes: Codes) -> dict[str, NDArray[Any]]:
    """Codes [n, L/8] of prepared pictures, as tensors by name.

    A picture that stands there twice, under two classes, has no code of its own: it is left out.
    """
    found: dict[bytes, Codes | None] = {}
    for picture, code in zip(pictures, codes, strict=True):
        name = digest(picture)
        before = found.setdefault(name, code)
        if before is None or not np.array_equal(before, code):
            found[name] = None
    kept = [(name, code) for name, code in sorted(found.items()) if code is not None]
    names = np.frombuffer(b"".join(name for name, _ in kept), np.uint8).reshape(-1, DIGEST_BYTES)
    return {"pictures": names.copy(), "codes": np.array([code for _, code in kept], np.uint8)}


def read(extras: Mapping[str, Mapping[str, NDArray[Any]]], bits: int) -> dict[bytes, Codes]:
    """Codes [L/8] by the digest of their picture; {} of a base that has learned none.

    Raises:
        ArtifactError: not one code of the right width for each picture.
    """
    if LEARNED not in extras:
        return {}
    names, codes = (extras[LEARNED].get(part, np.empty(0)) for part in ("pictures", "codes"))
    if names.shape != (len(codes), DIGEST_BYTES) or codes.shape != (len(names), bits // 8):
        raise ArtifactError(
            f"learned codes have shapes {names.shape} and {codes.shape}, expected [n, {DIGEST_BYTES}] and "
            f"[n, {bits // 8}]: build the base again"
        )
    return {name.tobytes(): code for name, code in zip(names, codes)}


def replaced(codes: Codes, pictures: Sequence[bytes], learned: Mapping[bytes, Codes]) -> Codes:
    """Codes [B, L/8] with the learned ones in their places, by the digests of the pictures."""
    found = codes.copy()
    for row, name in enumerate(pictures):
        if name in learned:
            found[row] = learned[name]
    return found
