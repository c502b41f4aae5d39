"""Words of a text: where they are, how they are compared, and what letters a slip may have been."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import product

# A run of letters and digits; marks of decomposed letters belong to it. "bear's" is two words: "bear", "s".
WORD = re.compile(r"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*")
DIGITS = "0123456789"
LOOKALIKES = {
    "0": "o", "1": "li", "2": "z", "3": "e", "4": "a", "5": "s", "6": "bg", "7": "t", "8": "bs", "9": "gq",
    "!": "i", "@": "a", "$": "s",
}  # fmt: skip
READINGS = 16


def fold(word: str) -> str:
    """Lower case, letters composed."""
    return unicodedata.normalize("NFC", word).lower()


def words_of(text: str) -> list[str]:
    """The words of a text, folded."""
    return [fold(word) for word in WORD.findall(text)]


def count_words(texts: Iterable[str]) -> dict[str, int]:
    """Word -> count, sorted: what `Repairer` and the parts of a base model take."""
    return dict(sorted(Counter(word for text in texts for word in words_of(text)).items()))


def letters_of(word: str) -> int:
    """The set of letters as 64 bits; letters that share a bit make words look nearer, never farther."""
    bits = 0
    for letter in word:
        bits |= 1 << (ord(letter) % 64)
    return bits


def cased(word: str) -> bool:
    """Whether every letter has two cases: Latin, Greek, Cyrillic and a few more."""
    return all(letter.upper() != letter.lower() for letter in word if letter.isalpha())


def readings_of(word: str) -> list[str]:
    """The word as letters: itself, or with its digits and marks read as the letters they look like."""
    others = sum(not character.isalpha() for character in word)
    if not cased(word) or len(word) <= 2 * others:
        return []
    choices = [LOOKALIKES.get(character, character) for character in word]
    readings = 1
    for choice in choices:
        readings *= len(choice)
    if readings > READINGS:
        return []
    return ["".join(reading) for reading in product(*choices)]


def in_case_of(word: str, new: str) -> str:
    """`new` written as `word` is: capitals, a first capital, or small letters."""
    if word.isupper() and len(word) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if word[0].isupper() else new
