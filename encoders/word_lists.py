"""Right words of many languages: what query repair must leave alone although no gallery title has them.

English is asked of a dictionary, which holds rare words and no misspelt ones (pyspellchecker), and of texts,
which have names, and misspelt words, too (wordfreq). Of other languages the words that occur once in a
million are enough (wordfreq): where all words of a text are among them, the text is in that language. Lists
are read when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache

LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi", "pl", "cs", "ro", "tr", "ru", "uk")
"""Of alphabets with capitals, whose words may look like misspelt English; others are left alone anyway."""
ALONE, TOGETHER = 1e-6, 10**-5.5
"""Share of a language that a word must have, alone and beside others: docs/methods/repair.md."""


def english(word: str) -> bool:
    """Whether a folded word is in the English dictionary."""
    return word in _english()


def english_share(word: str) -> float:
    """Share of a folded word in English texts, 0 where it is rarer than one in a hundred million."""
    return _shares("en", "large").get(word, 0.0)


def written_in(words: Iterable[str]) -> str:
    """A language other than English in which all these folded words are common ones, or "".

    One word alone is taken for one sooner than several: misspelt words beside each other are the more often
    all short, and short ones are words of some language.
    """
    asked = list(words)
    least = ALONE if len(asked) == 1 else TOGETHER
    return next((name for name in LANGUAGES if asked and _all_common(asked, name, least)), "")


@cache
def _english() -> Collection[str]:
    from spellchecker import SpellChecker

    return frozenset(SpellChecker(language="en").word_frequency.dictionary)


def _all_common(words: Iterable[str], language: str, least: float) -> bool:
    known = _shares(language, "small")
    return all(known.get(word, 0.0) >= least for word in words)


@cache
def _shares(language: str, wordlist: str) -> Mapping[str, float]:
    from wordfreq import get_frequency_dict

    found: Mapping[str, float] = get_frequency_dict(language, wordlist=wordlist)
    return found
