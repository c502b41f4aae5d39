"""What stands together in titles: values against a loop, and what it changes in repairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from core.config import RepairConfig
from encoders.context import OWN, Context
from encoders.repair import Repairer, count_words

Support = Callable[[str, list[str], list[list[str]]], float]
TITLES = [f"puma men shoe {i}" for i in range(8)] + [f"titan women watch {i}" for i in range(8)]
TITLES += [f"{word} filler" for word in ("alpha", "bravo", "delta", "gamma", "omega")]


@pytest.mark.parametrize("word", ["shoe", "watch", "alpha", "nowhere"])
@pytest.mark.parametrize("around", [[], ["puma", "men"], ["titan", "puma"], ["filler"], ["unknown"]])
def test_support_is_that_of_a_loop(word: str, around: list[str], slow_support: Support) -> None:
    context = Context(title.split() for title in TITLES)
    assert context.support(word, around) == pytest.approx(
        slow_support(word, around, [title.split() for title in TITLES]), abs=1e-12
    )


def test_support_equals_the_slow_count(slow_support: Support) -> None:
    draw = np.random.default_rng(3)
    titles = [list(draw.choice(list("abcdefgh"), int(draw.integers(0, 5)))) for _ in range(60)]
    context = Context(titles)
    assert len(context) == 60
    positive = 0
    for word in "abcdefghz":
        for beside in ([], ["a"], ["b", "c", "z"], list("abcdefgh")):
            expected = slow_support(word, beside, titles)
            assert context.support(word, beside) == pytest.approx(expected, abs=1e-12)
            positive += expected > 0
    assert positive > 5
    assert Context([]).support("a", ["b"]) == 0


def test_one_title_is_no_evidence() -> None:
    titles = ["zebra shirt"] + ["plain thing"] * 30
    context = Context([title.split() for title in titles])
    once = context.support("shirt", ["zebra"])
    assert OWN == 1 and once == 0
    assert Context([*map(str.split, titles), ["zebra", "shirt"]]).support("shirt", ["zebra"]) > 0


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
