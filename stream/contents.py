"""What a query asks about, as `Encoder.prepare` takes it; refused where it is empty or too much."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.config import LimitConfig
from core.errors import Refused
from core.types import Floats, Modality
from stream import messages
from stream.fetch import fetched
from stream.letters import short

SHORTEST = 1e-3
"""Length of a mean of unit vectors below which it points nowhere in particular."""

Content = tuple[Modality, Any]


class Contents:
    """Reads the content of a message, within limits."""

    def __init__(self, limits: LimitConfig) -> None:
        self._limits = limits

    def of(self, message: messages.AnyQuery) -> Content:
        """Modality and content of an envelope. Raises Refused."""
        match message:
            case messages.TextQuery():
                return "text", self._text(message.text)
            case messages.VectorQuery():
                return "vector", _vector(message.vector)
            case messages.ReferenceQuery():
                return "image", fetched(message, self._limits)
            case messages.ComposedQuery():
                picture = self.picture(plain_bytes(message.image, "the picture"))
                return "composed", (picture, self._text(message.text))
            case messages.SequenceQuery(frames=[]):
                # Nothing is left for a tower to do: from here on it is a vector query like any other.
                return "vector", _pooled(message.vectors)
            case messages.SequenceQuery():
                return "sequence", self._frames(message.frames)

    def picture(self, value: bytes, name: str = "the picture") -> bytes:
        """Bytes of a picture, as they came. Raises Refused."""
        if not value:
            raise Refused("validate", f"{name} is empty: send its bytes as the value")
        if len(value) > self._limits.image_bytes:
            raise Refused(
                "validate",
                f"{name} has {len(value)} bytes, at most {self._limits.image_bytes} are taken inline: "
                "scale it down",
            )
        return value

    def _text(self, text: str) -> str:
        if not text.strip():  # what cannot be seen, the tower refuses
            raise Refused("validate", "the text is empty: send at least one word")
        if len(text) > self._limits.text_characters:
            raise Refused(
                "validate",
                f"the text has {len(text)} characters, at most {self._limits.text_characters} are taken",
            )
        return text

    def _frames(self, frames: Sequence[str]) -> tuple[bytes, ...]:
        names = [f"frame {number} of {len(frames)}" for number in range(1, len(frames) + 1)]
        return tuple(self.picture(plain_bytes(frame, name), name) for frame, name in zip(frames, names))


def _vector(values: Sequence[float]) -> Floats:
    with np.errstate(over="ignore"):  # 1e300 is a finite double and an infinite float32
        vector = np.array(values, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise Refused("validate", "the vector leaves the range of float32")
    return vector


def _pooled(vectors: Sequence[Sequence[float]]) -> Floats:
    """Mean [D] of the unit vectors of a clip, at unit length again."""
    rows = [_vector(values) for values in vectors]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise Refused(
            "validate", f"the vectors have {widths[0]} to {widths[-1]} numbers: all need the same width"
        )
    block = np.stack(rows).astype(np.float64)
    largest = np.abs(block).max(axis=1, keepdims=True)
    if (largest < 1e-30).any():
        number = int(np.argmin(largest)) + 1
        raise Refused("validate", f"vector {number} of {len(rows)} is zero: it has no direction")
    block /= largest  # squares of very large and very small numbers leave the range
    mean = (block / np.linalg.norm(block, axis=1, keepdims=True)).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < SHORTEST:
        raise Refused("validate", "the vectors cancel out: their mean has no direction to search in")
    pooled: Floats = (mean / length).astype(np.float32)
    return pooled


def plain_bytes(text: str, name: str) -> bytes:
    """What base64 holds. Raises Refused."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, or letters that are not ASCII
        raise Refused("decode", f"{name} is not base64: {short(str(error))}") from None
