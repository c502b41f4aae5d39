"""One query of the user's own as the bytes that a client would send; large pictures are scaled to fit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.config import LimitConfig
from core.errors import Refused
from core.readers.lines import BadLine, document, lines
from core.types import Floats
from encoders.images import decode
from stream import codec

Message = tuple[bytes, list[tuple[str, bytes]]]
SIDES = (768, 512, 384, 256, 160)
"""Longer sides that a picture over the limit is scaled down to, the first that fits."""
FILE_BYTES = 64 << 20
"""Largest picture file of the user's own; the service's limit holds for what is made of it."""
ENVELOPE_BYTES = 32 << 10
"""Room for a text, names and braces beside base64."""
EXPECTED = (
    'one of {"text"}, {"image": path}, {"vector": [...]}, {"image", "text"} or {"frames": [paths or vectors]}'
    ', with an optional "label" and "id"'
)


def query_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """(line, query) of a JSONL file; what is no query comes as the reason. Raises ConfigError."""
    for number, line in lines(path):
        try:
            entry = document(line)
        except BadLine as error:
            yield number, error
            continue
        yield number, entry if isinstance(entry, dict) else BadLine(f"expected an object, {EXPECTED}")


def word_of(entry: Mapping[str, Any], name: str) -> str:
    """A label or an identifier; "" where there is none. Raises Refused."""
    value = entry.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused("validate", f"the {name} is {value!r}: expected a text")
    word = str(value)
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        raise Refused("validate", f"the {name} holds half of a surrogate pair: write valid Unicode")
    return word


def own_message(entry: Mapping[str, Any], name: str, folder: Path, limits: LimitConfig) -> Message:
    """(value, headers) of one query of the user's own; paths are relative to the folder. Raises Refused."""
    kinds = {key for key in ("text", "image", "vector", "frames") if entry.get(key) is not None}
    whole = (limits.message_bytes - ENVELOPE_BYTES) * 3 // 4  # base64 takes a third more
    if kinds == {"text"} and isinstance(entry["text"], str):
        return codec.text_query(entry["text"], name)
    if kinds == {"vector"}:
        return codec.vector_query(_vector(entry["vector"]), name)
    if kinds == {"image"}:
        picture = _picture(entry["image"], folder, limits.image_bytes)
        return codec.image_query(picture, name)
    if kinds == {"image", "text"} and isinstance(entry["text"], str):
        picture = _picture(entry["image"], folder, min(limits.image_bytes, whole))
        return codec.composed_query(picture, entry["text"], name)
    frames = entry.get("frames")
    if kinds == {"frames"} and isinstance(frames, list) and frames:
        if all(isinstance(frame, str) for frame in frames):
            each = min(limits.image_bytes, whole // len(frames))
            return codec.sequence_query([_picture(frame, folder, each) for frame in frames], name)
        rows = [_vector(frame) for frame in frames]
        if len({len(row) for row in rows}) == 1:
            return codec.sequence_query(np.stack(rows), name)
        raise Refused("validate", "the frames are vectors of different widths, or of other things")
    raise Refused("validate", f"got {', '.join(sorted(kinds)) or 'no query'}: expected {EXPECTED}")


def _vector(values: Any) -> Floats:
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.zeros(())
    with np.errstate(over="ignore"):
        found = vector.astype(np.float32)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise Refused("validate", "expected a vector as a list of finite numbers")
    return found


def _picture(path: Any, folder: Path, most_bytes: int) -> bytes:
    """A picture file as it is, or scaled down until it fits into a message."""
    if not isinstance(path, str) or "\0" in path:
        raise Refused("validate", f"expected the path of a picture, got {path!r}")
    place = folder / path
    try:
        if not place.is_file():
            raise Refused("fetch", f"no picture {str(place)!r:.200}")
        content = place.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file system takes
        raise Refused("fetch", f"{str(place)!r:.200} cannot be read: {type(error).__name__}") from error
    found = sendable(content, most_bytes)
    if found is None:
        raise Refused(
            "image",
            f"{str(place)!r:.200} does not fit into {most_bytes} bytes: scale it down, or send fewer frames",
        )
    return found


def sendable(content: bytes, most_bytes: int) -> bytes | None:
    """A picture file as a client sends it: as it is, or scaled down until it fits; None if it never does.

    Galleries are built from the same bytes. Raises Refused.
    """
    if len(content) <= most_bytes:
        return content
    image = decode(content, max(SIDES), FILE_BYTES)
    for side in SIDES:
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=92)
        if buffer.tell() <= most_bytes:
            return buffer.getvalue()
    return None
