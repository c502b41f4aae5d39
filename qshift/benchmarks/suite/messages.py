"""What a stream asks, as the bytes a client would send."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from qshift.benchmarks.streams import Asked
from stream import codec

Headers = list[tuple[str, bytes]]


def png(picture: Any) -> bytes:
    """PNG of uint8 [H, W, 3]; compressed lightly, nobody keeps it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def message(asked: Asked) -> tuple[bytes, Headers]:
    """(value, headers) of one query."""
    content = asked.content
    match asked.modality:
        case "image":
            return codec.image_query(png(content))
        case "text":
            return codec.text_query(content)
        case "vector":
            return codec.vector_query(content)
        case "composed":
            picture, text = content
            return codec.composed_query(png(picture), text)
        case "sequence":
            return codec.sequence_query([png(picture) for picture in content])
