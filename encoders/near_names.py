"""The names that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def near(name: str, names: Sequence[str]) -> str:
    """Half a sentence: the names that are most like one, or some."""
    found = difflib.get_close_matches(name, names, 3, 0.5)
    return f"near it are {', '.join(found)}" if found else f"there are {', '.join(names[:5])}, ..."
