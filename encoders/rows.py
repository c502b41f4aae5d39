"""How many rows an input has: those asked for, padding included."""

from __future__ import annotations

from core.errors import QshiftError


def check_rows(count: int, rows: int, noun: str) -> None:
    """Raises QshiftError when more was prepared than the rows asked for hold."""
    if count > rows:
        raise QshiftError(f"{count} {noun} do not fit in {rows} rows: ask for at least as many")
