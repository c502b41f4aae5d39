"""Which words of a vocabulary a misspelt word may have been, at what cost in nats, and whether it is one.

Nothing here looks at the words beside it: that is the repairer's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import OSA

from core.config import RepairConfig
from encoders.words import DIGITS, WORD, cased, fold, letters_of, readings_of

LONG = 7  # letters from which two edits are allowed, three from twice as many: docs/methods/repair.md
WIDE = 4  # the same where the words beside support it; it may then be one edit more than `distance` away
FREQUENT = 5  # how often a word must occur to be worth two edits, or one half of a split
COMMON = 20  # how often a word must occur to be worth an edit more than LONG allows
EDIT = 5.0  # nats: what an edit costs against frequency and context
LETTER = math.log(25)  # nats: a wrong or added letter is one of 25 others, a lost one or a swap is no choice
SOME = 1.0  # nats of context needed for the edits of WIDE
RIGHT, SEEN = 3.0, 4.0  # nats that evidence may lack against a right word, and one that texts have
RATIO = 0.75  # of the nats by which English texts prefer the candidate to the word that they have
WHOLE = 1e-6  # share in English from which a word is not two that lost their space
USUAL = 1e-5  # share in English from which a right word is the less doubted, the more frequent it is
RAREST = 1e-9  # share in English of a word that no corpus has
SAME_FIRST = 4  # a word with the same first letter counts as if so many times as frequent
HALF = 2  # letters of each half of a split word, at least
LONGEST = 40  # letters; longer runs are no words
CACHE = 1 << 16
SEARCHES = 1 << 13  # cached; each holds up to CHOICES candidates
CHOICES = 64


class Candidate(NamedTuple):
    """A word of the vocabulary for a misspelt one; compared in this order where context is equal."""

    cost: float  # nats, without the context
    edits: int
    word: str
    needed: float  # of the context, to be taken at all
    most: float  # of the cost less the context, to be taken at all


class NearestWords:
    """A vocabulary that can be searched. Words are folded; see `Repairer` for the arguments.

    Args:
        vocabulary, config, whole, share: see there.
        beside: whether candidates will be compared by the words beside them, too.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        config: RepairConfig,
        whole: Callable[[str], bool] | None,
        share: Callable[[str], float] | None,
        beside: bool,
    ) -> None:
        self._config, self._whole, self._share, self._beside = config, whole, share, beside
        counts: Counter[str] = Counter()
        for word, count in vocabulary.items():
            for piece in WORD.findall(word):  # "t-shirt" is known as "t" and "shirt", as texts are read
                counts[fold(piece)] += count
        self._counts = dict(counts)
        self._total = sum(counts.values())
        # By length, so that only words of a possible length are compared.
        self._words = sorted((word for word in counts if word.isalpha()), key=lambda word: (len(word), word))
        self._lengths = [len(word) for word in self._words]
        self._letters = np.array([letters_of(word) for word in self._words], np.uint64)
        self._known: Callable[[str], bool] = lru_cache(CACHE)(self._look_up)
        self.candidates: Callable[[str], tuple[Candidate, ...]] = lru_cache(SEARCHES)(self._search)

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, word: str) -> bool:
        return word in self._counts

    def frequent(self, word: str) -> bool:
        """Whether a word of the vocabulary is worth two edits, or a space."""
        return self._counts.get(word, 0) >= FREQUENT

    def learned(self, folded: str) -> bool:
        """Whether a word with a letter in it is known, alone or with the digits beside it taken off."""
        return self._known(folded) or self._known(folded.strip(DIGITS))

    def halves(self, word: str) -> str:
        """Two known words that stand together without a space, or ""; the rarer half decides."""
        if not self._unknown(word):
            return ""
        pairs = [(word[:cut], word[cut:]) for cut in range(HALF, len(word) - HALF + 1)]
        ranked = [
            (-min(self._counts.get(left, 0), self._counts.get(right, 0)), left, right)
            for left, right in pairs
        ]
        rarest, left, right = min(ranked, default=(0, "", ""))
        return f"{left} {right}" if -rarest >= FREQUENT and cased(word) else ""

    def _look_up(self, folded: str) -> bool:
        return folded in self._counts or (self._whole is not None and self._whole(folded))

    def _unknown(self, folded: str) -> bool:
        """Whether nothing knows a word as one, nor what stands beside digits: "iphone5"."""
        if not folded.strip(DIGITS) or not self._sized(folded) or self.learned(folded):
            return False
        return self._share is None or self._share(folded) < WHOLE

    def _sized(self, folded: str) -> bool:
        return self._config.shortest <= len(folded) <= LONGEST

    def _search(self, folded: str) -> tuple[Candidate, ...]:
        """The candidates for a word, cheapest first; none for a word that stays whatever stands beside it."""
        letters = folded.strip(DIGITS)
        if not self._sized(folded) or not letters or letters in self._counts or folded in self._counts:
            return ()
        learned = self.learned(folded)
        if learned and not self._beside:
            return ()
        share = 0.0 if self._share is None else self._share(folded)
        found: dict[str, Candidate] = {}
        for reading in readings_of(folded):
            for candidate in self._near(reading, learned, share):
                found[candidate.word] = min(candidate, found.get(candidate.word, candidate))
        return tuple(sorted(found.values())[:CHOICES])

    def _near(self, word: str, learned: bool, share: float) -> list[Candidate]:
        """Candidates for letters; `learned` if what was typed is a right word, `share` its own in English."""
        plain = most = self._edits(word, LONG)
        if learned or share:
            most = 1
        elif self._beside:
            most = self._edits(word, WIDE, 1)
        first = bisect_left(self._lengths, len(word) - most)
        last = bisect_left(self._lengths, len(word) + most + 1)
        # One edit changes the set of letters by two at most: this spares most comparisons.
        apart = np.bitwise_count(self._letters[first:last] ^ np.uint64(letters_of(word)))
        choices = [self._words[first + int(i)] for i in np.flatnonzero(apart <= 2 * most)]
        near = process.extract(word, choices, scorer=OSA.distance, score_cutoff=most, limit=None)
        found = []
        for candidate, distance, _ in near:
            edits, count = int(distance), self._counts[candidate]
            if count >= (COMMON if edits > plain else FREQUENT if edits > 1 or learned else 1):
                cost = EDIT * edits - math.log(count * (SAME_FIRST if candidate[0] == word[0] else 1))
                cost -= LETTER if edits == 1 and _no_choice(word, candidate) else 0.0
                needed = SOME if edits > plain else 0.0
                found.append(Candidate(cost, edits, candidate, needed, self._most(candidate, learned, share)))
        return found

    def _most(self, candidate: str, learned: bool, share: float) -> float:
        """The cost up to which a candidate is taken against a word that may be meant as it is.

        That is: log(share of the vocabulary) + nats for first letter, edit and context >= -RIGHT or -SEEN.
        """
        doubtless = EDIT - math.log(self._total)
        if learned:
            return doubtless + RIGHT - math.log(max(1.0, share / USUAL))
        if not share or self._share is None:
            return math.inf
        return doubtless + SEEN + RATIO * math.log(max(self._share(candidate), RAREST) / share)

    def _edits(self, word: str, long: int, more: int = 0) -> int:
        return min(self._config.distance + more, 1 + (len(word) >= long) + (len(word) >= 2 * long))


def _no_choice(word: str, candidate: str) -> bool:
    """Whether one edit made the word by losing a letter or swapping two: few words lie so near."""
    return len(word) < len(candidate) or sorted(word) == sorted(candidate)
