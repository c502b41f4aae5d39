"""What a query asks for besides its content: how many items, which, and how sure an answer has to be.

A filter is an allow-list told by attributes: an item may be found where every condition holds. A condition
names values, one of which the item has to have, or a range, both ends included. Of an attribute that is a
list one of its texts is enough. An item without the attribute is not allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.attributes import CHARACTERS, MOST_VALUES, Value, name_of, value_of
from core.readers.lines import kind_of
from core.readers.places import shown

MOST_CONDITIONS = 16
"""Of one filter."""
MOST_ITEMS = 10_000
"""Of one answer; `answer.shortlist` is the limit of a service."""
ENDS = ("from", "to")


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The item has one of these values; numbers are equal as numbers are, 1 and 1.0 alike."""

    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """The item's value lies between these, both included; None: no end on this side.

    Texts are ordered by their code points, so that dates as 2026-11-30 are in order.
    """

    low: Value | None
    high: Value | None


Condition = AnyOf | Between
Filter = tuple[tuple[str, Condition], ...]
"""(attribute, condition) in the order of the names; all of them hold."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a query asks for besides its content."""

    top: int = 0
    """Items in the answer; 0: as many as `answer.top` says."""
    filter: Filter = ()
    """Which items may be found; (): all."""
    threshold: float | None = None
    """The confidence below which no item is named; None: the answer is given however unsure."""


ANYTHING = Wanted()


_VALUE = {"anyOf": [{"type": "string", "maxLength": CHARACTERS}, {"type": "number"}]}
SCHEMA = {
    "description": "Which items may be found, by their attributes: a value, one of several, or a range.",
    "type": "object",
    "maxProperties": MOST_CONDITIONS,
    "additionalProperties": {
        "anyOf": [
            *_VALUE["anyOf"],
            {"type": "array", "items": _VALUE, "minItems": 1, "maxItems": MOST_VALUES},
            {
                "type": "object",
                "properties": dict.fromkeys(ENDS, _VALUE),
                "minProperties": 1,
                "additionalProperties": False,
            },
        ]
    },
}
"""JSON Schema of a filter."""


def wanted(top: Any = None, filter: Any = None, threshold: Any = None) -> Wanted:
    """As a message says it; None where it says nothing. Raises ValueError: one sentence."""
    if top is None and filter is None and threshold is None:
        return ANYTHING
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= MOST_ITEMS):
        raise ValueError(f"top: expected a whole number of items, 1 to {MOST_ITEMS}")
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0 <= threshold <= 1):
        raise ValueError("threshold: expected a number from 0 to 1, the least confidence of an answer")
    return Wanted(
        top or 0, () if filter is None else filter_of(filter), None if threshold is None else float(threshold)
    )


def filter_of(document: Any) -> Filter:
    """The filter that a JSON object says. Raises ValueError: one sentence, with the attribute's name."""
    if not isinstance(document, Mapping):
        raise ValueError(f"filter: expected an object of attributes, got {kind_of(document)}")
    if len(document) > MOST_CONDITIONS:
        raise ValueError(f"filter: {len(document)} attributes, at most {MOST_CONDITIONS} are taken")
    try:
        return tuple(
            (name, _condition(name, document[name])) for name in sorted(name_of(one) for one in document)
        )
    except ValueError as error:
        raise ValueError(f"filter: {error}") from None


def document_of(found: Filter) -> dict[str, Any]:
    """The JSON object that says a filter; `filter_of` reads it back."""
    said: dict[str, Any] = {}
    for name, condition in found:
        if isinstance(condition, AnyOf):
            several = len(condition.values) > 1
            said[name] = list(condition.values) if several else condition.values[0]
        else:
            ends = zip(ENDS, (condition.low, condition.high))
            said[name] = {end: value for end, value in ends if value is not None}
    return said


def _condition(name: str, document: Any) -> Condition:
    if isinstance(document, Mapping):
        return _range(name, document)
    if not isinstance(document, list | tuple):
        return AnyOf((value_of(name, document),))
    if not document:
        raise ValueError(f"{shown(name)!r} lists no value: name one, or leave it out")
    if len(document) > MOST_VALUES:
        raise ValueError(f"{shown(name)!r} lists {len(document)} values, at most {MOST_VALUES} are taken")
    return AnyOf(tuple(value_of(name, one) for one in document))


def _range(name: str, document: Mapping[Any, Any]) -> Between:
    if not document or set(document) - set(ENDS):
        raise ValueError(f'{shown(name)!r}: a range is {{"from": ..., "to": ...}} or one of them alone')
    low, high = (value_of(name, document[end]) if end in document else None for end in ENDS)
    if low is not None and high is not None:
        if isinstance(low, str) != isinstance(high, str):
            raise ValueError(f"{shown(name)!r}: a range from a text to a number, expected two of one kind")
        if low > high:  # type: ignore[operator]
            raise ValueError(f"{shown(name)!r}: a range whose end lies before its start, expected from <= to")
    return Between(low, high)
