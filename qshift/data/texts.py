"""A user's own texts: a file with one in each line."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.readers.lines import text
from core.readers.places import broken, shown

log = logging.getLogger("qshift.texts")
SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class TextSet:
    """Different texts in the order of their lines; `ids` say the line."""

    texts: tuple[str, ...]
    ids: tuple[str, ...]
    attribution: str

    def __len__(self) -> int:
        return len(self.texts)


def load_texts(path: Path) -> TextSet:
    """One text a line; blank lines are none, and a text that stands there again counts once, which is said.

    Raises:
        ConfigError: not to be read, not UTF-8, or no text in it.
    """
    found: dict[str, str] = {}
    again = 0
    for number, line in enumerate(text(path).split("\n"), 1):
        one = line.strip()
        if not one:
            continue
        if broken(one):
            raise ConfigError(f"{shown(path)}, line {number}: half of a surrogate pair: write valid Unicode")
        again += one in found
        found.setdefault(one, f"line {number}")
    if not found:
        raise ConfigError(f"{shown(path)} holds no text: write one in each line")
    if again:
        log.warning("%s: %d lines repeat a text of before and are left out", shown(path), again)
    return TextSet(tuple(found), tuple(found.values()), f"Texts: {path.name}")
