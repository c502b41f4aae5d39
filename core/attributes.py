"""What is said of an item besides its labels: attributes by name, each a text, a number or some texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.readers.lines import kind_of
from core.readers.places import broken, shown

Value = str | int | float
Attribute = Value | tuple[str, ...]
Attributes = Mapping[str, Attribute]
"""Of one item; what is not said of it is left out."""

MOST_ATTRIBUTES = 64
"""Of one item."""
MOST_VALUES = 256
"""Of one list."""
CHARACTERS = 256
"""Longest name, and longest text."""
WHOLE = 2**53
"""Numbers beyond are no longer whole in a float64: two of them could not be told apart."""
_TEXT = {"type": "string", "maxLength": CHARACTERS}
SCHEMA = {
    "description": "What filters look at: each attribute a text, a number or a list of texts.",
    "type": "object",
    "maxProperties": MOST_ATTRIBUTES,
    "additionalProperties": {
        "anyOf": [_TEXT, {"type": "number"}, {"type": "array", "items": _TEXT, "maxItems": MOST_VALUES}]
    },
}
"""JSON Schema of the attributes of an item."""


def attributes_of(document: Any) -> dict[str, Attribute]:
    """The attributes that a JSON object says. Raises ValueError: one sentence, with the name."""
    if not isinstance(document, Mapping):
        raise ValueError(f"expected attributes as an object, got {kind_of(document)}")
    if len(document) > MOST_ATTRIBUTES:
        raise ValueError(f"{len(document)} attributes: at most {MOST_ATTRIBUTES} are kept of an item")
    return {name_of(name): _attribute(name, value) for name, value in document.items()}


def name_of(name: Any) -> str:
    """The name of an attribute. Raises ValueError."""
    if not isinstance(name, str) or broken(name) or not name.strip():
        raise ValueError("the name of an attribute is empty or no text: expected a word")
    if len(name) > CHARACTERS:
        raise ValueError(
            f"the name of an attribute has {len(name)} characters, at most {CHARACTERS} are taken"
        )
    return name


def value_of(name: str, value: Any) -> Value:
    """A text or a number. Raises ValueError, with the name of the attribute."""
    if isinstance(value, str) and not broken(value):
        if len(value) > CHARACTERS:
            raise ValueError(
                f"{shown(name)!r} has a text of {len(value)} characters, at most {CHARACTERS} are taken"
            )
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(name)!r} is {kind_of(value)}: expected a text or a number")
    # Of whole numbers the first comparison is exact at any size.
    if not -WHOLE <= value <= WHOLE and (isinstance(value, int) or not math.isfinite(value)):
        raise ValueError(f"{shown(name)!r} leaves the range of numbers, -2^53 to 2^53: write it as a text")
    return value


def _attribute(name: str, value: Any) -> Attribute:
    if not isinstance(value, list | tuple):
        return value_of(name, value)
    if len(value) > MOST_VALUES:
        raise ValueError(f"{shown(name)!r} lists {len(value)} texts, at most {MOST_VALUES} are kept")
    if not all(isinstance(one, str) for one in value):
        raise ValueError(f"{shown(name)!r} is a list of other things than texts: expected texts")
    return tuple(str(value_of(name, one)) for one in value)
