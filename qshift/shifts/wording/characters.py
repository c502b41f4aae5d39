"""Character-level shifts of text: OCR errors, and characters inserted, substituted, swapped or deleted.

The rules are those of nlpaug 1.1.8, the library behind the character shifts of COCO-C: words are runs of
letters and digits or single other marks; int(rate * words) of them are hit, at least 1 and at most 10, and
int(.3 * length) characters of each, at least 1 (OCR: 2) and at most 10. Ours: white space and everything
between words stays as it is, so the number of words never changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from core.errors import ConfigError

Draw = np.random.Generator
Typo = Literal["ocr", "insert", "substitute", "swap", "delete"]
TYPOS: tuple[Typo, ...] = get_args(Typo)
WORD = re.compile(r"\w+|[^\w\s]")
LONG_ENOUGH = 4
"""Characters of a word that can be hit; OCR errors hit any word."""
CHARACTER_RATE = 0.3
MOST = 10
"""Words of a text, and characters of a word, that are hit at most."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TYPED = LETTERS.upper() + LETTERS + "0123456789" + "!@#$%^&*()_+"
ALIKE = "08 09 0o 0O 0D 14 17 1l 1I 2z 2Z 58 6b 8s 8S 8@ 8& 9g 9q ou rk CG OD OU EB"
"""Pairs of characters that OCR takes for each other."""
TRIES = 20


def _lookalikes() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for pair in ALIKE.split():
        one, other = pair[0], pair[1]
        found[one] = found.get(one, "") + other
        found[other] = found.get(other, "") + one
    return MappingProxyType(found)


LOOKALIKES = _lookalikes()


def hit_words(text: str, rate: float, draw: Draw, kind: Typo) -> str:
    """The published generator: edits int(rate * words) words, at least one where one can be hit.

    Args:
        text: any; words under 4 characters are not hit, except by OCR errors.
        rate: share of the words; of all of them, short ones and punctuation marks included.
        kind: of every edit. A hit word may come out unchanged, as there: OCR errors need a character with a
            lookalike, and a substitute can be the character itself.
    """
    words = list(WORD.finditer(text))
    open_to = [i for i, word in enumerate(words) if kind == "ocr" or len(word.group()) >= LONG_ENOUGH]
    wanted = min(len(open_to), _count(rate * len(words), 1))
    return _with_edits(text, words, _some(open_to, wanted, draw), (kind,), draw, again=False)


def typos(text: str, share_of_words: float, kinds: Sequence[Typo], generator: Draw) -> str:
    """Edits a chosen share of the words, where `hit_words` has a floor of one and a ceiling of ten.

    Args:
        text: any.
        share_of_words: 0 to 1, of the words that one of the kinds can hit. Where that is no whole number the
            count is rounded up or down at random, so that the mean share is right for short texts too.
        kinds: the kind is drawn anew for each word, from those that can hit it.
        generator: of this sample.

    Returns:
        The text; every word that was hit differs, unless no edit can change it ("aaaa" swapped).

    Raises:
        ConfigError: a share outside 0 to 1, no kinds or an unknown one.
    """
    if not 0.0 <= share_of_words <= 1.0:
        raise ConfigError(f"share_of_words is {share_of_words}: choose a number from 0 to 1")
    if not kinds or not set(kinds) <= set(TYPOS):
        raise ConfigError(f"kinds of typos are {list(kinds)}: choose some of {', '.join(TYPOS)}")
    words = list(WORD.finditer(text))
    open_to = [i for i, word in enumerate(words) if _fitting(word.group(), kinds)]
    wanted = int(share_of_words * len(open_to) + generator.random())
    return _with_edits(text, words, _some(open_to, wanted, generator), kinds, generator, again=True)


def _fitting(word: str, kinds: Sequence[Typo]) -> list[Typo]:
    """Kinds that can hit a word."""
    return [
        kind
        for kind in kinds
        if (any(c in LOOKALIKES for c in word) if kind == "ocr" else len(word) >= LONG_ENOUGH)
    ]


def _with_edits(
    text: str, words: list[re.Match[str]], chosen: list[int], kinds: Sequence[Typo], draw: Draw, again: bool
) -> str:
    parts, end = [], 0
    for word in (words[i] for i in sorted(chosen)):
        right = wrong = word.group()
        fitting = _fitting(right, kinds)
        for _ in range((TRIES if again else 1) * bool(fitting)):
            wrong = _edited(right, fitting[int(draw.integers(len(fitting)))], draw)
            if wrong != right:
                break
        parts += [text[end : word.start()], wrong]
        end = word.end()
    return "".join(parts) + text[end:]


def _edited(word: str, kind: Typo, draw: Draw) -> str:
    characters = list(word)
    places = [i for i, c in enumerate(word) if kind != "ocr" or c in LOOKALIKES]
    wanted = min(len(places), _count(CHARACTER_RATE * len(word), 2 if kind == "ocr" else 1))
    # From the back, so that places ahead stay what they were; swaps depend on their order, which is drawn.
    chosen = _some(places, wanted, draw)
    for place in chosen if kind == "swap" else sorted(chosen, reverse=True):
        if kind == "insert":
            characters.insert(place, _one(TYPED, draw))
        elif kind == "delete":
            del characters[place]
        elif kind == "swap":
            _swap(characters, place, draw)
        else:
            characters[place] = _one(LOOKALIKES[word[place]] if kind == "ocr" else TYPED, draw)
    return "".join(characters)


def _swap(characters: list[str], place: int, draw: Draw) -> None:
    """With the neighbour on a random side; upper case stays where it was."""
    sides = [other for other in (place - 1, place + 1) if 0 <= other < len(characters)]
    other = sides[int(draw.integers(len(sides)))]
    here, there = characters[place], characters[other]
    characters[place] = there.upper() if here.isupper() else there.lower()
    characters[other] = here.upper() if there.isupper() else here.lower()


def _count(wanted: float, least: int) -> int:
    return min(MOST, max(least, int(wanted)))


def _one(choices: str, draw: Draw) -> str:
    return choices[int(draw.integers(len(choices)))]


def _some(places: list[int], wanted: int, draw: Draw) -> list[int]:
    return [places[int(i)] for i in draw.permutation(len(places))[:wanted]]
