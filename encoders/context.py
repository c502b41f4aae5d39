"""Which words stand together in titles: what a misspelt word may have been, judged by the words beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice

TITLES = 1 << 16  # read at most: enough to tell which words meet, and memory stays bounded
CACHE = 1 << 16
SMOOTHING = 5.0  # titles as if seen, in which words meet by chance only
OWN = 1  # a single title is no evidence: the query may ask for that item, and titles are not to be looked up


class Context:
    """Counts in how many titles words meet. Depends on the titles only; without any it supports nothing.

    Args:
        titles: the words of each title, folded.
    """

    def __init__(self, titles: Iterable[Sequence[str]]) -> None:
        self._titles: dict[str, set[int]] = {}
        self._count = 0
        for place, words in enumerate(islice(titles, TITLES)):
            self._count = place + 1
            for word in words:
                self._titles.setdefault(word, set()).add(place)
        self._lift = lru_cache(CACHE)(self._look_up)

    def __len__(self) -> int:
        """How many titles were read."""
        return self._count

    def __contains__(self, word: str) -> bool:
        return word in self._titles

    def support(self, word: str, around: Sequence[str]) -> float:
        """Evidence in nats, at least 0, that `word` belongs to a text with the words `around`.

        The sum over `around` of log(P(beside | word) / P(beside)). Words that meet seldomer than by chance
        count 0: most pairs are unseen only because titles are short and few.
        """
        return sum(self._lift(word, beside) for beside in around)

    def _look_up(self, word: str, beside: str) -> float:
        ours, theirs = self._titles.get(word), self._titles.get(beside)
        if not ours or not theirs or word == beside:
            return 0.0
        chance = len(theirs) / self._count
        met = max(0, len(ours & theirs) - OWN) + SMOOTHING * chance
        return max(0.0, math.log(met / ((max(0, len(ours) - OWN) + SMOOTHING) * chance)))
