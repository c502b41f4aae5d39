"""One query of the user's own as the bytes that a client would send; large pictures are scaled to fit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.config import LimitConfig
from core.errors import ConfigError, Refused
from core.filters import ANYTHING, Wanted, wanted
from core.readers.lines import BadLine, document, kind_of, lines
from core.readers.places import broken, bytes_of, is_file, shown
from core.types import Floats
from encoders.images import decode
from qshift.data.inventory import SHOWN, SUFFIXES
from stream import codec
from stream.messages import NAME_CHARACTERS

Message = tuple[bytes, list[tuple[str, bytes]]]
SIDES = (768, 512, 384, 256, 160)
"""Longer sides that a picture over the limit is scaled down to, the first that fits."""
FILE_BYTES = 64 << 20
"""Largest picture file of the user's own; the service's limit holds for what is made of it."""
ENVELOPE_BYTES = 32 << 10
"""Room for a text, names and braces beside base64."""
EXPECTED = (
    'one of {"text"}, {"image": path}, {"vector": [...]}, {"image", "text"} or {"frames": [paths or vectors]}'
    ', with an optional "label", "id", "top", "filter" and "threshold"'
)


FIELDS = ("text", "image", "vector", "frames", "label", "id", "top", "filter", "threshold")


def query_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """(line, query) of a JSONL file; what is no query comes as the reason. Raises ConfigError."""
    if path.suffix.lower() in SUFFIXES:
        raise ConfigError(f"{shown(path)} is one picture: name the folder that holds it, or a JSONL file")
    for number, line in lines(path):
        try:
            entry = document(line)
        except BadLine as error:
            yield number, error
            continue
        yield number, entry if isinstance(entry, dict) else BadLine(f"expected an object, {EXPECTED}")


@dataclass(slots=True)
class Strangers:
    """Fields of lines that are not known: a misspelt "label" must not pass for none."""

    seen: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Name -> (how often, where first)."""

    def look(self, entry: Mapping[str, Any], where: str) -> None:
        for name in entry:
            if name not in FIELDS:
                times, first = self.seen.get(name, (0, where))
                self.seen[name] = (times + 1, first)

    def note(self) -> str:
        """A sentence, "" when there is nothing to say."""
        some = ", ".join(
            f"{shown(name)} ({times} times, first in {where})"
            for name, (times, where) in list(self.seen.items())[:SHOWN]
        )
        more = f" and {len(self.seen) - SHOWN} more" if len(self.seen) > SHOWN else ""
        return some and f"fields that are not known are not used: {some}{more}"


def word_of(entry: Mapping[str, Any], name: str) -> str:
    """A label or an identifier; "" where there is none. Raises Refused."""
    value = entry.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused("validate", f"the {name} is {kind_of(value)}: expected a text")
    word = str(value)
    if broken(word):
        raise Refused("validate", f"the {name} holds half of a surrogate pair: write valid Unicode")
    if len(word) > NAME_CHARACTERS:
        raise Refused(
            "validate", f"the {name} has {len(word)} characters, at most {NAME_CHARACTERS} are taken"
        )
    return word


def own_message(
    entry: Mapping[str, Any], name: str, folder: Path, limits: LimitConfig, usual: Wanted = ANYTHING
) -> Message:
    """(value, headers) of one query of the user's own; paths are relative to the folder. Raises Refused.

    `usual` is what a query wants that does not say so itself.
    """
    try:
        own = wanted(*(entry.get(field) for field in ("top", "filter", "threshold")))
    except ValueError as error:
        raise Refused("validate", str(error)) from None
    threshold = usual.threshold if own.threshold is None else own.threshold
    want = Wanted(own.top or usual.top, own.filter or usual.filter, threshold)
    return codec.wanting(_message(entry, name, folder, limits), want)


def _message(entry: Mapping[str, Any], name: str, folder: Path, limits: LimitConfig) -> Message:
    kinds = {key for key in ("text", "image", "vector", "frames") if entry.get(key) is not None}
    if isinstance(entry.get("text"), str) and broken(entry["text"]):
        raise Refused("validate", "the text holds half of a surrogate pair: write valid Unicode")
    whole = (limits.message_bytes - ENVELOPE_BYTES) * 3 // 4  # base64 takes a third more
    if kinds == {"text"} and isinstance(entry["text"], str):
        return codec.text_query(entry["text"], name)
    if kinds == {"vector"}:
        return codec.vector_query(vector(entry["vector"]), name)
    if kinds == {"image"}:
        return codec.image_query(picture(entry["image"], folder, limits.image_bytes), name)
    if kinds == {"image", "text"} and isinstance(entry["text"], str):
        content = picture(entry["image"], folder, min(limits.image_bytes, whole))
        return codec.composed_query(content, entry["text"], name)
    frames = entry.get("frames")
    if kinds == {"frames"} and isinstance(frames, list) and frames:
        if all(isinstance(frame, str) for frame in frames):
            each = min(limits.image_bytes, whole // len(frames))
            return codec.sequence_query([picture(frame, folder, each) for frame in frames], name)
        rows = [vector(frame) for frame in frames]
        if len({len(row) for row in rows}) == 1:
            return codec.sequence_query(np.stack(rows), name)
        raise Refused("validate", "the frames are vectors of different widths, or of other things")
    strangers = ", ".join(shown(key) for key in entry if key not in FIELDS)
    got = ", ".join(sorted(kinds)) or (f"no query but {strangers}" if strangers else "no query")
    raise Refused("validate", f"got {got}: expected {EXPECTED}")


def vector(values: Any) -> Floats:
    """A list of finite numbers as a vector, or a row that a file's reader has judged. Raises Refused."""
    if isinstance(values, np.ndarray):
        return values
    # NumPy would take "1" and true for numbers.
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    with np.errstate(over="ignore"):
        found = np.asarray(values if numbers else [], dtype=np.float64).astype(np.float32)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise Refused("validate", "expected a vector as a list of finite numbers")
    return found


def picture(path: Any, folder: Path, most_bytes: int) -> bytes:
    """A picture file as it is, or scaled down until it fits into a message. Raises Refused."""
    if not isinstance(path, str) or "\0" in path:
        got = shown(path) if isinstance(path, str) else kind_of(path)
        raise Refused("validate", f"expected the path of a picture, got {got}")
    place = folder / path
    if not is_file(place):
        raise Refused("fetch", f"no picture {shown(place)}")
    try:
        content = bytes_of(place, FILE_BYTES)
    except ConfigError as error:
        raise Refused("fetch", str(error)) from error
    found = sendable(content, most_bytes)
    if found is None:
        raise Refused(
            "image",
            f"{shown(place)} does not fit into {most_bytes} bytes: scale it down, or send fewer frames",
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
