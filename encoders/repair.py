"""Misspelt words of a text query -> the nearest word of a vocabulary, before the text is encoded.

Adaptation does not help against misspelling: every query moves its own way. A vocabulary does, because the
words worth asking for are the words the gallery is described with, and its titles say which stand together.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import OSA

from core.config import RepairConfig
from encoders.context import Context
from encoders.text import TextTower

log = logging.getLogger("qshift.repair")

# A run of letters and digits; marks of decomposed letters belong to it. "bear's" is two words: "bear", "s".
WORD = re.compile(r"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*")
# Words with one or two other marks of the number keys between them, as slips of the shift key leave them.
RUN = re.compile(rf"{WORD.pattern}(?:[!@#$%^&*()_+]{{1,2}}{WORD.pattern})*")
RUN_LETTERS = 4  # so that "b&w" is no slip
SPACE = " "
DIGITS = "0123456789"
SMALLEST = 50  # words; a smaller vocabulary cannot tell a misspelt word from an unknown one
LONG = 7  # letters from which two edits are allowed, three from twice as many: docs/methods/repair.md
WIDE = 4  # the same where the words beside support it; it may then be one edit more than `distance` away
FREQUENT = 5  # how often a word must occur to be worth two edits, or one half of a split
COMMON = 20  # how often a word must occur to be worth an edit more than LONG allows
EDIT = 5.0  # nats: what an edit costs against frequency and context
LETTER = math.log(25)  # nats: a wrong or added letter is one of 25 others, a lost one or a swap is no choice
STRENGTH = 0.7  # of the context; below 1, as the words beside tell much the same
SOME = 1.0  # nats of context needed for the edits of WIDE
RIGHT, SEEN = 3.0, 4.0  # nats that evidence may lack against a right word, and one that texts have
RATIO = 0.75  # of the nats by which English texts prefer the candidate to the word that they have
WHOLE = 1e-6  # share in English from which a word is not two that lost their space
USUAL = 1e-5  # share in English from which a right word is the less doubted, the more frequent it is
RAREST = 1e-9  # share in English of a word that no corpus has
PASSES = 2  # the second sees the repairs of the first around each word
SAME_FIRST = 4  # a word with the same first letter counts as if so many times as frequent
HALF = 2  # letters of each half of a split word, at least
LONGEST = 40  # letters; longer runs are no words
SPLIT_EDITS = 1  # a lost or added space is one edit, and a word one edit away goes first
CACHE = 1 << 16
SEARCHES = 1 << 13  # cached; each holds up to CHOICES candidates
CHOICES = 64
LOOKALIKES = {
    "0": "o", "1": "li", "2": "z", "3": "e", "4": "a", "5": "s", "6": "bg", "7": "t", "8": "bs", "9": "gq",
    "!": "i", "@": "a", "$": "s",
}  # fmt: skip
READINGS = 16


def fold(word: str) -> str:
    """Lower case, letters composed."""
    return unicodedata.normalize("NFC", word).lower()


def count_words(texts: Iterable[str]) -> dict[str, int]:
    """Word -> count, sorted: what `Repairer` and `base_model.write_base` take."""
    return dict(sorted(Counter(fold(word) for text in texts for word in WORD.findall(text)).items()))


def kept_whole(tower: TextTower) -> Callable[[str], bool]:
    """Whether the tower's tokenizer keeps a word in one piece: then it is a word the tower learned.

    A word of one piece differs from "a" in one place; more pieces also move the end of the text.
    """
    blank = tower.prepare("a")

    def whole(word: str) -> bool:
        return bool(np.count_nonzero(tower.prepare(word) != blank) <= 1)

    return whole


class Candidate(NamedTuple):
    """A word of the vocabulary for a misspelt one; compared in this order where context is equal."""

    cost: float  # nats, without the context
    edits: int
    word: str
    needed: float  # of the context, to be taken at all
    most: float  # of the cost less the context, to be taken at all


class Repairer:
    """Maps unknown words to near words of a vocabulary. The result depends on nothing but its arguments.

    Left alone: words of the vocabulary, in any case; words the tower knows, unless frequency and the words
    beside them speak strongly for another, one edit away; likewise, but sooner doubted, words that English
    texts have, misspelt ones among them; texts in another language (word_lists.py); words shorter than
    `config.shortest` or longer than 40 letters;
    numbers; known words with digits before or behind; letters without case (there, words need not stand
    apart, and a letter can be a word). With fewer than 50 words in the vocabulary everything is left alone,
    and the log says so once.

    Args:
        vocabulary: word -> count, of the gallery and of the base model's training texts.
        config: `shortest` and `distance`.
        whole: whether a word is right: the text tower (see `kept_whole`) or a dictionary knows it.
        foreign: whether these words, all of a text, are of another language.
        share: of a word in English texts, 0 where it is in none.
        titles: of the gallery; which of their words stand together decides between candidates. Without them
            no context is looked at.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        config: RepairConfig,
        whole: Callable[[str], bool] | None = None,
        titles: Iterable[str] = (),
        foreign: Callable[[Sequence[str]], bool] | None = None,
        share: Callable[[str], float] | None = None,
    ) -> None:
        self._config, self._whole, self._foreign, self._share = config, whole, foreign, share
        counts: Counter[str] = Counter()
        for word, count in vocabulary.items():
            for piece in WORD.findall(word):  # "t-shirt" is known as "t" and "shirt", as texts are read
                counts[fold(piece)] += count
        self._counts = dict(counts)
        self._total = sum(counts.values())
        # By length, so that only words of a possible length are compared.
        self._words = sorted((word for word in counts if word.isalpha()), key=lambda word: (len(word), word))
        self._lengths = [len(word) for word in self._words]
        self._letters = np.array([_letters(word) for word in self._words], np.uint64)
        self.active = config.enabled and len(counts) >= SMALLEST
        if config.enabled and not self.active:
            log.warning("query repair is off: %d words are known, at least %d needed", len(counts), SMALLEST)
        self._known: Callable[[str], bool] = lru_cache(CACHE)(self._look_up)
        self._found: Callable[[str], tuple[Candidate, ...]] = lru_cache(SEARCHES)(self._search)
        self._context = Context(_words(title) for title in titles)

    def repair(self, text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The text with its misspelt words replaced, and what was replaced: (from, to) in order of place."""
        if not self.active:
            return text, ()
        words = _words(text)
        # One word of the gallery's own says that the text is in its language.
        if self._foreign is not None and self._counts.keys().isdisjoint(words) and self._foreign(words):
            return text, ()
        new, changes = text, tuple[tuple[str, str], ...]()
        for _ in range(PASSES if len(self._context) else 1):
            before = new
            new, changes = self._pass(text, sorted({word for word in _words(new) if word in self._context}))
            if new == before:
                break
        return new, changes

    def _pass(self, text: str, around: Sequence[str]) -> tuple[str, tuple[tuple[str, str], ...]]:
        parts: list[str] = []
        changes: list[tuple[str, str]] = []
        end = 0
        spans = self._spans(text)
        at = 0
        while at < len(spans):
            start, stop = spans[at]
            new, step = "", 1
            if at + 1 < len(spans) and text[stop : spans[at + 1][0]] == SPACE:
                new = self._joined(text[start:stop], text[slice(*spans[at + 1])])
            if new:
                stop, step = spans[at + 1][1], 2
            else:
                new = self._word(text[start:stop], around)
            if new != text[start:stop]:
                changes.append((text[start:stop], new))
            parts += [text[end:start], new]
            end = stop
            at += step
        return "".join([*parts, text[end:]]), tuple(changes)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where the words are. A run that is near a word is one, "sh!rt"; others are several, "red&blue"."""
        spans: list[tuple[int, int]] = []
        for run in RUN.finditer(text):
            words = [word.span() for word in WORD.finditer(text, *run.span())]
            spans += [run.span()] if len(words) > 1 and self._slip(run.group()) else words
        return spans

    def _slip(self, run: str) -> bool:
        folded = fold(run)
        if sum(character.isalpha() for character in run) < RUN_LETTERS:
            return False
        if all(piece in self._counts for piece in WORD.findall(folded)):
            return False
        return self._nearest(folded, ()) != folded

    def _word(self, word: str, around: Sequence[str]) -> str:
        folded = fold(word)
        nearest = self._nearest(folded, around)
        return word if nearest == folded else _case_of(word, nearest)

    def _joined(self, left: str, right: str) -> str:
        """Two fragments as one word of the vocabulary, or "". Known words are no fragments."""
        folded = fold(left + right)
        if len(folded) < self._config.shortest or self._counts.get(folded, 0) < FREQUENT:
            return ""
        if fold(left) in self._counts and fold(right) in self._counts:
            return ""  # the tower is not asked: "sh" and "irt" are pieces that it has learned
        return _case_of(left, folded) if folded.isalpha() and _cased(folded) else ""

    def _look_up(self, folded: str) -> bool:
        return folded in self._counts or (self._whole is not None and self._whole(folded))

    def _nearest(self, folded: str, around: Sequence[str]) -> str:
        """The best word beside these; the word itself where none is near enough."""
        best: Candidate | None = None
        found = self._found(folded)
        if found and not around and self._learned(folded):
            return folded  # alone, a right word is what it says
        for candidate in found:
            support = self._context.support(candidate.word, around)
            cost = candidate.cost - STRENGTH * support
            if support >= candidate.needed and cost <= candidate.most:
                candidate = candidate._replace(cost=cost)
                best = candidate if best is None else min(best, candidate)
        if best is not None and best.edits <= SPLIT_EDITS:
            return best.word
        return (self._unknown(folded) and self._halves(folded)) or (folded if best is None else best.word)

    def _unknown(self, folded: str) -> bool:
        """Whether nothing knows a word as one, nor what stands beside digits: "iphone5"."""
        if not folded.strip(DIGITS) or not self._sized(folded) or self._learned(folded):
            return False
        return self._share is None or self._share(folded) < WHOLE

    def _learned(self, folded: str) -> bool:
        """Whether a word with a letter in it is known, alone or with the digits beside it taken off."""
        return self._known(folded) or self._known(folded.strip(DIGITS))

    def _sized(self, folded: str) -> bool:
        return self._config.shortest <= len(folded) <= LONGEST

    def _search(self, folded: str) -> tuple[Candidate, ...]:
        """The candidates for a word, cheapest first; none for a word that stays whatever stands beside it."""
        letters = folded.strip(DIGITS)
        if not self._sized(folded) or not letters or letters in self._counts or folded in self._counts:
            return ()
        learned = self._learned(folded)
        if learned and not len(self._context):
            return ()
        share = 0.0 if self._share is None else self._share(folded)
        found: dict[str, Candidate] = {}
        for reading in _readings(folded):
            for candidate in self._near(reading, learned, share):
                found[candidate.word] = min(candidate, found.get(candidate.word, candidate))
        return tuple(sorted(found.values())[:CHOICES])

    def _near(self, word: str, learned: bool, share: float) -> list[Candidate]:
        """Candidates for letters; `learned` if what was typed is a right word, `share` its own in English."""
        plain = most = self._edits(word, LONG)
        if learned or share:
            most = 1
        elif len(self._context):
            most = self._edits(word, WIDE, 1)
        first = bisect_left(self._lengths, len(word) - most)
        last = bisect_left(self._lengths, len(word) + most + 1)
        # One edit changes the set of letters by two at most: this spares most comparisons.
        apart = np.bitwise_count(self._letters[first:last] ^ np.uint64(_letters(word)))
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

    def _halves(self, word: str) -> str:
        """Two known words that stand together without a space, or ""; the rarer half decides."""
        pairs = [(word[:cut], word[cut:]) for cut in range(HALF, len(word) - HALF + 1)]
        ranked = [
            (-min(self._counts.get(left, 0), self._counts.get(right, 0)), left, right)
            for left, right in pairs
        ]
        rarest, left, right = min(ranked, default=(0, "", ""))
        return f"{left} {right}" if -rarest >= FREQUENT and _cased(word) else ""


def _words(text: str) -> list[str]:
    return [fold(word) for word in WORD.findall(text)]


def _letters(word: str) -> int:
    """The set of letters as 64 bits; letters that share a bit make words look nearer, never farther."""
    bits = 0
    for letter in word:
        bits |= 1 << (ord(letter) % 64)
    return bits


def _no_choice(word: str, candidate: str) -> bool:
    """Whether one edit made the word by losing a letter or swapping two: few words lie so near."""
    return len(word) < len(candidate) or sorted(word) == sorted(candidate)


def _cased(word: str) -> bool:
    """Whether every letter has two cases: Latin, Greek, Cyrillic and a few more."""
    return all(letter.upper() != letter.lower() for letter in word if letter.isalpha())


def _readings(word: str) -> list[str]:
    """The word as letters: itself, or with its digits and marks read as the letters they look like."""
    others = sum(not character.isalpha() for character in word)
    if not _cased(word) or len(word) <= 2 * others:
        return []
    choices = [LOOKALIKES.get(character, character) for character in word]
    readings = 1
    for choice in choices:
        readings *= len(choice)
    if readings > READINGS:
        return []
    return ["".join(reading) for reading in product(*choices)]


def _case_of(word: str, new: str) -> str:
    """`new` written as `word` is: capitals, a first capital, or small letters."""
    if word.isupper() and len(word) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if word[0].isupper() else new
