"""What a running service would refuse, judged before it is sent: by its codec, and what needs no model."""

from __future__ import annotations

from typing import Any

from core.config import LimitConfig
from core.errors import Refused
from core.records import Record, Refusal
from core.types import Query
from encoders.images import decode
from encoders.sequence import MOST, spread
from encoders.text import visible
from stream.codec import Codec

SIDE = 224
"""Pixels that a picture is decoded for: every usual tower's, and JPEGs are decoded smaller."""


def admitted(codec: Codec, record: Record) -> Query:
    """A query as the service's codec takes it. Raises Refused."""
    event = codec.decode(record)
    if isinstance(event, Refusal):
        raise Refused(event.stage, event.reason)
    if not isinstance(event, Query):
        raise Refused("decode", "this is no query")
    return event


def judge(codec: Codec, limits: LimitConfig, record: Record) -> Query:
    """A query that the service would take, as far as that does not depend on its base model.

    Raises:
        Refused: its codec refuses it, nothing of a text can be seen, or a picture is not whole.
    """
    query = admitted(codec, record)
    content: Any = query.content
    if query.modality == "text":
        _text(content)
    elif query.modality == "image":
        _picture(content, limits)
    elif query.modality == "composed":
        _picture(content[0], limits)
        _text(content[1])
    elif query.modality == "sequence":
        for number in spread(len(content), MOST):
            try:
                _picture(content[number], limits)
            except Refused as refused:
                where = f"frame {number + 1} of {len(content)}"
                raise Refused(refused.stage, f"{where}: {refused.reason}") from refused
    return query


def _picture(content: Any, limits: LimitConfig) -> None:
    decode(content, SIDE, limits.image_bytes, limits.image_pixels)


def _text(text: str) -> None:
    if not visible(text):
        raise Refused("validate", "the text is empty: no letter of it can be seen")
