"""Right words of many languages: what query repair must leave alone although no gallery title has them.

English is asked of a dictionary, which holds rare words and no misspelt ones (pyspellchecker), and of texts,
which have names, and misspelt words, too (wordfreq). Of other languages words that are common enough count
(wordfreq): where all words of a text are among them, the text is in that language. Lists are read when they
are first asked for, and kept as hashes: 15 MB where dictionaries of strings would take 400.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi", "pl", "cs", "ro", "tr", "ru", "uk")
"""Of alphabets with capitals, whose words may look like misspelt English; others are left alone anyway."""
RAREST = 1e-7
"""Share of a language that a word must have: docs/methods/repair.md."""
SHORT, SHORT_ALONE = 4, 1e-6
"""Letters up to which one word alone must have more: many misspelt short ones are words of some language."""
CENTIBELS = -100  # wordfreq counts in hundredths of a factor ten below one


class Shares(NamedTuple):
    """Shares of the words of a language, by the words' hashes (CRC-32: one unknown word in 10^4 has one)."""

    hashes: npt.NDArray[np.uint32]  # ascending
    centibels: npt.NDArray[np.int16]

    def of(self, word: str) -> float:
        """The share of a folded word, 0 where the list does not have it."""
        wanted = np.uint32(zlib.crc32(word.encode()))
        place = int(self.hashes.searchsorted(wanted))
        if place == len(self.hashes) or self.hashes[place] != wanted:
            return 0.0
        return float(10 ** (self.centibels[place] / CENTIBELS))


def english(word: str) -> bool:
    """Whether a folded word is in the English dictionary."""
    return word in _english()


def english_share(word: str) -> float:
    """Share of a folded word in English texts, 0 where it is rarer than one in a hundred million."""
    return _shares("en", 0.0).of(word)


def written_in(words: Iterable[str]) -> str:
    """A language other than English in which all these folded words are common ones, or "".

    That all words of a misspelt text are of one other language is rare where they are several, or long.
    """
    asked = list(words)
    least = SHORT_ALONE if len(asked) == 1 and len(asked[0]) <= SHORT else RAREST
    # Centibels are whole numbers: a hair less, so that a limit itself is in.
    return next((name for name in LANGUAGES if asked and _all_at_least(asked, name, least * 0.999)), "")


@cache
def _english() -> Collection[str]:
    from spellchecker import SpellChecker

    return frozenset(SpellChecker(language="en").word_frequency.dictionary)


def _all_at_least(words: Iterable[str], language: str, least: float) -> bool:
    known = _shares(language, RAREST)
    return all(known.of(word) >= least for word in words)


@cache
def _shares(language: str, least: float) -> Shares:
    """The largest list of a language down to a share; 0: all of it."""
    from wordfreq import available_languages, read_cBpack

    # Not by wordfreq's own dictionaries, which stay in memory. One list of words for each centibel.
    rows = read_cBpack(available_languages("best")[language])
    if least:
        rows = rows[: round(CENTIBELS * float(np.log10(least))) + 1]
    counts = [len(row) for row in rows]
    hashes = np.fromiter((zlib.crc32(word.encode()) for row in rows for word in row), np.uint32, sum(counts))
    order = np.argsort(hashes, kind="stable")
    return Shares(hashes[order], np.repeat(np.arange(len(rows), dtype=np.int16), counts)[order])
