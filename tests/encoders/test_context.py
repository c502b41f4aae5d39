"""What stands together in titles: values against a loop, and what it changes in repairs."""

from __future__ import annotations

import math

import pytest

from core.config import RepairConfig
from encoders.context import Context
from encoders.repair import Repairer, count_words

TITLES = [f"puma men shoe {i}" for i in range(8)] + [f"titan women watch {i}" for i in range(8)]
TITLES += [f"{word} filler" for word in ("alpha", "bravo", "delta", "gamma", "omega")]


def slow(word: str, around: list[str]) -> float:
    """Smoothed log of P(beside | word) / P(beside), by counting; one title is not counted."""
    split = [title.split() for title in TITLES]
    total = 0.0
    for beside in around:
        ours = sum(word in words for words in split)
        theirs = sum(beside in words for words in split)
        both = sum(word in words and beside in words for words in split)
        if word == beside or not ours or not theirs:
            continue
        chance = theirs / len(split)
        met = max(0, both - 1) + 5 * chance
        total += max(0.0, math.log(met / ((max(0, ours - 1) + 5) * chance)))
    return total


@pytest.mark.parametrize("word", ["shoe", "watch", "alpha", "nowhere"])
@pytest.mark.parametrize("around", [[], ["puma", "men"], ["titan", "puma"], ["filler"], ["unknown"]])
def test_support_is_that_of_a_loop(word: str, around: list[str]) -> None:
    context = Context(title.split() for title in TITLES)
    assert context.support(word, around) == pytest.approx(slow(word, around), abs=1e-12)


def test_a_single_title_is_no_evidence() -> None:
    """Or a title could be looked up by a few of its words."""
    context = Context(title.split() for title in TITLES)
    assert context.support("alpha", ["filler"]) == 0
    assert context.support("shoe", ["puma"]) > 0.5


def repairer(*titles: str) -> Repairer:
    words = count_words([*TITLES, *titles, " ".join(f"word{chr(97 + i)}{chr(98 + i)}" for i in range(20))])
    words |= {f"other{chr(97 + i)}{chr(97 + j)}": 1 for i in range(6) for j in range(6)}
    return Repairer(words, RepairConfig(), None, [*TITLES, *titles])


def test_the_words_beside_decide_between_candidates() -> None:
    titles = [f"puma men boot {i}" for i in range(8)] + [f"titan women root {i}" for i in range(8)]
    made = repairer(*titles)
    assert made.repair("puma men zoot")[0] == "puma men boot"
    assert made.repair("titan women zoot")[0] == "titan women root"


def test_known_words_never_change_whatever_stands_beside_them() -> None:
    titles = [f"puma men boot {i}" for i in range(8)] + [f"titan women root {i}" for i in range(8)]
    made = repairer(*titles)
    for text in ("puma men root", "titan women boot", "titan boot"):
        assert made.repair(text) == (text, ())


def test_without_titles_there_is_no_context() -> None:
    assert Context([]).support("shoe", ["puma"]) == 0 and len(Context([])) == 0
