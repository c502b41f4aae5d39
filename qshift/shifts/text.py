"""Shifts of text: misspelling, letter by letter. The number of words never changes.

The rates follow the character-level shifts of COCO-C (Qiu et al., multimodal robustness benchmark), where a
word is hit with probability `rate` and words under 4 letters stay whole. Here 3 letters are enough, because
names are short, and about one letter in seven of a hit word is edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np

Edit = Literal["swap", "delete", "insert", "substitute", "keyboard"]
EDITS: tuple[Edit, ...] = ("swap", "delete", "insert", "substitute", "keyboard")
SHORTEST_WORD = 3
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
WORD = re.compile(r"\S+")


def _neighbours() -> Mapping[str, str]:
    """Keys that touch a key on a US keyboard, rows being offset by half a key."""
    touching: dict[str, str] = {}
    for row, keys in enumerate(ROWS):
        for column, key in enumerate(keys):
            near = [(row, column - 1), (row, column + 1), (row - 1, column), (row - 1, column + 1)]
            near += [(row + 1, column - 1), (row + 1, column)]
            touching[key] = "".join(
                ROWS[r][c] for r, c in near if 0 <= r < len(ROWS) and 0 <= c < len(ROWS[r])
            )
    return MappingProxyType(touching)


KEYBOARD = _neighbours()


def misspell(
    text: str,
    rate: float,
    draw: np.random.Generator,
    edits: tuple[Edit, ...] = EDITS,
    character_rate: float = 0.15,
) -> str:
    """Misspells words at random.

    Args:
        text: any text; white space stays as it is.
        rate: probability that a word of at least 3 letters is misspelt.
        draw: one number is drawn for each word, more for the words that are hit.
        edits: kinds to draw from; "keyboard" puts a key next to the right one.
        character_rate: share of the letters of a hit word that are edited, at least one edit.
    """

    def word(match: re.Match[str]) -> str:
        found = match.group()
        letters = sum(character.isalpha() for character in found)
        hit = draw.random() < rate
        if not hit or letters < SHORTEST_WORD:
            return found
        wrong, left = found, max(1, round(character_rate * letters))
        while left > 0 or wrong == found:  # two edits can undo each other
            wrong = _edit(wrong, edits[int(draw.integers(len(edits)))], draw)
            left -= 1
        return wrong

    return WORD.sub(word, text)


def _edit(word: str, kind: Edit, draw: np.random.Generator) -> str:
    """One edit; the word that comes back differs and is never empty, where the word allows it."""
    places = [i for i, character in enumerate(word) if character.isalpha()]
    if kind == "swap":
        pairs = [i for i in places[:-1] if word[i + 1].isalpha() and word[i] != word[i + 1]]
        if pairs:
            i = pairs[int(draw.integers(len(pairs)))]
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        kind = "substitute"
    i = places[int(draw.integers(len(places)))]
    right = word[i]
    if kind == "delete" and len(places) > 1:
        return word[:i] + word[i + 1 :]
    choices = KEYBOARD.get(right.lower(), LETTERS) if kind == "keyboard" else LETTERS
    choices = choices.replace(right.lower(), "")
    other = choices[int(draw.integers(len(choices)))]
    other = other.upper() if right.isupper() else other
    return word[: i + 1] + other + word[i + 1 :] if kind == "insert" else word[:i] + other + word[i + 1 :]


def unchanged(text: str, rate: float, draw: np.random.Generator) -> str:
    """The text itself."""
    return text


TextShift = Callable[[str, float, np.random.Generator], str]
TEXT_SHIFTS: Mapping[str, TextShift] = MappingProxyType(
    {
        "clean": unchanged,
        "misspelt": misspell,
        **{kind: partial(misspell, edits=(kind,)) for kind in EDITS},
    }
)
"""Rates 1 to 7 of the character-level shifts: .05 times the level."""
TEXT_LEVELS = tuple(round(0.05 * level, 2) for level in range(1, 8))
DEMO_RATE = 0.6
