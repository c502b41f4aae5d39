"""The 10 character-level and word-level text corruptions of COCO-C and Flickr-C, levels 1 to 7.

Rates are .05 times the level (Qiu et al., Benchmarking Robustness of Multimodal Image-Text Models under
Distribution Shift, DMLR 2024). The code is ours; docs/reference/shifts.md says where it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import index
from types import MappingProxyType
from typing import Literal

import numpy as np

from core.errors import ConfigError
from core.seeds import generator
from qshift.shifts.wording import words
from qshift.shifts.wording.characters import TYPOS, Typo, hit_words, typos
from qshift.shifts.wording.rewrites import load_rewrites, rewritten

Draw = np.random.Generator
Effect = Callable[[str, float, Draw], str]
Similarity = Callable[[str, str], float]
"""Cosine of two texts by a sentence encoder."""
LEVELS = (1, 2, 3, 4, 5, 6, 7)
RATE = 0.05
LEAST_SIMILARITY, TRIES = 0.9, 100

__all__ = [
    "LEVELS",
    "TEXT_CORRUPTIONS",
    "TYPOS",
    "Similarity",
    "TextCorruption",
    "Typo",
    "corrupt_text",
    "load_rewrites",
    "rewritten",
    "typos",
]


@dataclass(frozen=True, slots=True)
class TextCorruption:
    """One corruption.

    Args:
        paper: its name in the paper's tables.
        effect: (text, rate, generator) -> text.
        levels: at which the benchmark publishes it; `apply` takes all.
        substitute: what stands in for what of the published generator; "" where nothing does.
    """

    name: str
    paper: str
    family: Literal["character", "word"]
    effect: Effect
    levels: tuple[int, ...]
    substitute: str = ""

    def apply(self, text: str, level: int, generator: Draw) -> str:
        """The corrupted text, at a rate of .05 times the level.

        Raises:
            ConfigError: the level is not one of 1 to 7.
        """
        return self.effect(text, RATE * _checked(self.name, level), generator)


def _table() -> Mapping[str, TextCorruption]:
    typed: tuple[tuple[str, str, Typo], ...] = (
        ("ocr", "OCR", "ocr"),
        ("char_insert", "CI", "insert"),
        ("char_substitute", "CR", "substitute"),
        ("char_swap", "CS", "swap"),
        ("char_delete", "CD", "delete"),
    )
    worded: tuple[tuple[str, str, Effect, str], ...] = (
        ("synonym", "SR", words.synonym_replacement, "an own table of synonyms instead of WordNet"),
        ("word_insert", "RI", words.random_insertion, "an own table of synonyms instead of WordNet"),
        ("word_swap", "RS", words.random_swap, ""),
        ("word_delete", "RD", words.random_deletion, ""),
        ("punctuation", "IP", words.punctuation, ""),
    )
    listed = [
        TextCorruption(name, paper, "character", partial(hit_words, kind=kind), LEVELS)
        for name, paper, kind in typed
    ]
    listed += [
        TextCorruption(name, paper, "word", effect, (6, 7), other) for name, paper, effect, other in worded
    ]
    # Ours: the published generator hits one word of a short caption at most levels, so it gives no scale.
    shares = "ours, not published: typos of all five kinds in three times the rate of the words"
    listed.append(TextCorruption("typos", "-", "character", _typed, LEVELS, shares))
    return MappingProxyType({corruption.name: corruption for corruption in listed})


def _typed(text: str, rate: float, draw: Draw) -> str:
    return typos(text, min(1.0, 3 * rate), tuple(TYPOS), draw)


TEXT_CORRUPTIONS: Mapping[str, TextCorruption] = _table()


def corrupt_text(
    text: str, name: str, level: int, seed: int, sample_id: str | int, similarity: Similarity | None = None
) -> str:
    """A corrupted text whose draws depend on (seed, sample_id, name, level) only.

    Args:
        similarity: of the text and its corruption. With it, word-level corruptions are drawn again until it
            is at least .9, 100 times at most, as published; without, the first draw stands.

    Raises:
        ConfigError: unknown name or level; says which are valid.
    """
    if name not in TEXT_CORRUPTIONS:
        raise ConfigError(f"unknown text corruption {name!r}: choose one of {', '.join(TEXT_CORRUPTIONS)}")
    corruption, number = TEXT_CORRUPTIONS[name], _checked(name, level)
    draw = generator(seed, sample_id, name, number)
    corrupted = corruption.apply(text, number, draw)
    if similarity is None or corruption.family != "word":
        return corrupted
    for _ in range(TRIES - 1):
        if similarity(text, corrupted) >= LEAST_SIMILARITY:
            break
        corrupted = corruption.apply(text, number, draw)
    return corrupted


def _checked(name: str, level: int) -> int:
    try:
        number = index(level)
    except TypeError:
        number = 0
    if number not in LEVELS or isinstance(level, bool):
        raise ConfigError(f"level of {name} is {level!r}: choose one of 1, 2, 3, 4, 5, 6, 7")
    return number
