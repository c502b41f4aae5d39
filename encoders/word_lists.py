"""Right words of many languages: what query repair must leave alone although no gallery title has them.

English is asked of a dictionary, which holds rare words and no misspelt ones (pyspellchecker). Of other
languages the words that occur once in a million are enough (wordfreq): where all words of a text
are among them, the text is in that language. Lists are read when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi", "pl", "cs", "ro", "tr", "ru", "uk")
"""Of alphabets with capitals, whose words may look like misspelt English; others are left alone anyway."""


def english(word: str) -> bool:
    """Whether a folded word is in the English dictionary."""
    return word in _english()


def written_in(words: Iterable[str]) -> str:
    """A language other than English in which all these folded words are common ones, or ""."""
    asked = list(words)
    return next((name for name in LANGUAGES if asked and all(word in _common(name) for word in asked)), "")


@cache
def _english() -> Collection[str]:
    from spellchecker import SpellChecker

    return frozenset(SpellChecker(language="en").word_frequency.dictionary)


@cache
def _common(language: str) -> Collection[str]:
    from wordfreq import iter_wordlist

    return frozenset(iter_wordlist(language, wordlist="small"))
