"""A count and its noun, in agreement."""

from __future__ import annotations


def counted(count: int, one: str, more: str = "") -> str:
    """(1, "query", "queries") -> "1 query"; where `more` is left out, an s is added to `one`."""
    return f"{count} {one if count == 1 else more or one + 's'}"
