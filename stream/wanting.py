"""What a query wants of its answer, in its message: fields of an envelope, or headers beside a picture.

Either may be used with an envelope; a field counts more than a header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.errors import Refused
from core.filters import ANYTHING, Wanted, document_of, wanted
from core.readers.lines import BadLine, document
from stream.letters import short
from stream.messages import QueryMessage
from stream.states import canonical

Headers = list[tuple[str, bytes]]
HEADERS = {"top": "x-top", "filter": "x-filter", "threshold": "x-threshold"}
"""By the field that it stands for."""
FILTER_CHARACTERS = 1 << 16
"""Longest `x-filter`."""


def wanting(message: tuple[bytes, Headers], want: Wanted) -> tuple[bytes, Headers]:
    """(value, headers) of a query, as its writer made it, that wants this of its answer."""
    if want == ANYTHING:
        return message
    value, headers = message
    said = _said(want)
    if any(name == "content-type" for name, _ in headers):  # a picture: its value has no fields
        return value, [*headers, *((HEADERS[name], _spelt(one)) for name, one in said.items())]
    return canonical({**json.loads(value), **said, "schema_version": 2}), headers


def read_wanted(message: QueryMessage | None, headers: Mapping[str, str]) -> Wanted:
    """What a query wants. Raises Refused.

    Args:
        message: its envelope; None of a picture.
        headers: `HEADERS`, "" where one is not there.
    """
    said = {} if message is None else {name: value for name, value in _fields(message) if value is not None}
    for name, header in HEADERS.items():
        text = headers.get(header, "")
        if text and name not in said:
            said[name] = _json(header, text)
    try:
        return wanted(**said)
    except ValueError as error:
        raise Refused("validate", short(str(error))) from None


def _spelt(value: Any) -> bytes:
    """The one JSON spelling of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _fields(message: QueryMessage) -> list[tuple[str, Any]]:
    return [("top", message.top), ("filter", message.filter), ("threshold", message.threshold)]


def _said(want: Wanted) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if want.top:
        said["top"] = want.top
    if want.filter:
        said["filter"] = document_of(want.filter)
    if want.threshold is not None:
        said["threshold"] = want.threshold
    return said


def _json(name: str, text: str) -> Any:
    try:
        return document(text)
    except BadLine as error:
        raise Refused("decode", f"header {name} is {short(str(error))}") from None
