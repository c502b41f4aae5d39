"""Word-level shifts of text: synonyms, random insertion, swap and deletion, and punctuation.

The first four are those of EDA (Wei and Zou, EDA: Easy Data Augmentation Techniques, EMNLP 2019, section 2)
as COCO-C and Flickr-C use them, the last is AEDA (Karimi et al., EMNLP Findings 2021). Each is a pure
function (text, rate, generator) -> text. EDA reduces a text to the letters a to z and single spaces first; a
text without such a letter comes back as it is.
"""

from __future__ import annotations

import re

import numpy as np

from qshift.shifts.wording.synonyms import SYNONYMS

Draw = np.random.Generator
APOSTROPHES = re.compile("['’]")
OTHER = re.compile("[^a-z]+")
MARKS = (".", ",", "!", "?", ";", ":")
INSERT_TRIES, SWAP_TRIES = 9, 3
"""Draws that count: the published code gives up on the tenth and the fourth without looking at them."""


def reduced(text: str) -> list[str]:
    """Lower-case words of a to z: apostrophes vanish, everything else separates."""
    return OTHER.sub(" ", APOSTROPHES.sub("", text).lower()).split()


def synonym_replacement(text: str, rate: float, draw: Draw) -> str:
    """Replaces max(1, int(rate * words)) different words that have synonyms, wherever they stand."""
    words = reduced(text)
    known = [word for word in dict.fromkeys(words) if word in SYNONYMS]
    chosen = [known[int(i)] for i in draw.permutation(len(known))[: _count(rate, words)]]
    instead = {word: _synonym(word, draw) for word in chosen}
    return _joined([instead.get(word, word) for word in words], text)


def random_insertion(text: str, rate: float, draw: Draw) -> str:
    """Inserts a synonym of a random word at a random place, max(1, int(rate * words)) times.

    A word without synonyms is drawn again, nine draws in all; then nothing is inserted.
    """
    words = reduced(text)
    for _ in range(_count(rate, words)):
        for _ in range(INSERT_TRIES):
            word = words[int(draw.integers(len(words)))]
            if word in SYNONYMS:
                words.insert(int(draw.integers(len(words))), _synonym(word, draw))
                break
    return _joined(words, text)


def random_swap(text: str, rate: float, draw: Draw) -> str:
    """Exchanges two random words, max(1, int(rate * words)) times; three tries to draw two places."""
    words = reduced(text)
    for _ in range(_count(rate, words)):
        one = int(draw.integers(len(words)))
        for _ in range(SWAP_TRIES):
            other = int(draw.integers(len(words)))
            if other != one:
                words[one], words[other] = words[other], words[one]
                break
    return _joined(words, text)


def random_deletion(text: str, rate: float, draw: Draw) -> str:
    """Deletes each word with probability `rate`; a single word stays, and one word if all would go."""
    words = reduced(text)
    if len(words) < 2:
        return _joined(words, text)
    stays = draw.random(len(words)) > rate
    if not stays.any():
        stays[int(draw.integers(len(words)))] = True
    return _joined([word for word, stay in zip(words, stays) if stay], text)


def punctuation(text: str, rate: float, draw: Draw) -> str:
    """Puts 1 to int(rate * words + 1) marks before words, as words of their own; nothing else changes."""
    if not text.strip():
        return text
    words = text.split(" ")
    wanted = int(draw.integers(1, int(rate * len(words) + 1) + 1))
    before = {int(i): MARKS[int(draw.integers(len(MARKS)))] for i in draw.permutation(len(words))[:wanted]}
    return " ".join(f"{before[i]} {word}" if i in before else word for i, word in enumerate(words))


def _count(rate: float, words: list[str]) -> int:
    return max(1, int(rate * len(words))) if words else 0


def _synonym(word: str, draw: Draw) -> str:
    choices = SYNONYMS[word]
    return choices[int(draw.integers(len(choices)))]


def _joined(words: list[str], text: str) -> str:
    return " ".join(words) or text
