"""Misspelt words of a text query -> the nearest word of a vocabulary, before the text is encoded.

Adaptation does not help against misspelling: every query moves its own way. A vocabulary does, because the
words worth asking for are the words the gallery is described with, and its titles say which stand together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from core.config import RepairConfig
from encoders.context import Context
from encoders.nearest_words import Candidate, NearestWords
from encoders.text import TextTower
from encoders.words import WORD, cased, count_words, fold, in_case_of, words_of

__all__ = ["Repairer", "count_words", "kept_whole"]

log = logging.getLogger("qshift.repair")

# Words with one or two other marks of the number keys between them, as slips of the shift key leave them.
RUN = re.compile(rf"{WORD.pattern}(?:[!@#$%^&*()_+]{{1,2}}{WORD.pattern})*")
RUN_LETTERS = 4  # so that "b&w" is no slip
SPACE = " "
SMALLEST = 50  # words; a smaller vocabulary cannot tell a misspelt word from an unknown one
STRENGTH = 0.7  # of the context; below 1, as the words beside tell much the same
PASSES = 2  # the second sees the repairs of the first around each word
SPLIT_EDITS = 1  # a lost or added space is one edit, and a word one edit away goes first


def kept_whole(tower: TextTower) -> Callable[[str], bool]:
    """Whether the tower's tokenizer keeps a word in one piece: then it is a word the tower learned.

    A word of one piece differs from "a" in one place; more pieces also move the end of the text.
    """
    blank = tower.prepare("a")

    def whole(word: str) -> bool:
        return bool(np.count_nonzero(tower.prepare(word) != blank) <= 1)

    return whole


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
        self._context = Context(words_of(title) for title in titles)
        self._words = NearestWords(vocabulary, config, whole, share, beside=len(self._context) > 0)
        self._shortest, self._foreign = config.shortest, foreign
        self.active = config.enabled and len(self._words) >= SMALLEST
        if config.enabled and not self.active:
            log.warning(
                "query repair is off: %d words are known, at least %d needed", len(self._words), SMALLEST
            )

    def repair(self, text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The text with its misspelt words replaced, and what was replaced: (from, to) in order of place."""
        if not self.active:
            return text, ()
        words = words_of(text)
        # One word of the gallery's own says that the text is in its language.
        ours = any(word in self._words for word in words)
        if self._foreign is not None and not ours and self._foreign(words):
            return text, ()
        new, changes = text, tuple[tuple[str, str], ...]()
        for _ in range(PASSES if len(self._context) else 1):
            before = new
            new, changes = self._pass(text, sorted({word for word in words_of(new) if word in self._context}))
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
        if all(piece in self._words for piece in WORD.findall(folded)):
            return False
        return self._nearest(folded, ()) != folded

    def _word(self, word: str, around: Sequence[str]) -> str:
        folded = fold(word)
        nearest = self._nearest(folded, around)
        return word if nearest == folded else in_case_of(word, nearest)

    def _joined(self, left: str, right: str) -> str:
        """Two fragments as one word of the vocabulary, or "". Known words are no fragments."""
        folded = fold(left + right)
        if len(folded) < self._shortest or not self._words.frequent(folded):
            return ""
        if fold(left) in self._words and fold(right) in self._words:
            return ""  # the tower is not asked: "sh" and "irt" are pieces that it has learned
        return in_case_of(left, folded) if folded.isalpha() and cased(folded) else ""

    def _nearest(self, folded: str, around: Sequence[str]) -> str:
        """The best word beside these; the word itself where none is near enough."""
        best: Candidate | None = None
        found = self._words.candidates(folded)
        if found and not around and self._words.learned(folded):
            return folded  # alone, a right word is what it says
        for candidate in found:
            support = self._context.support(candidate.word, around)
            cost = candidate.cost - STRENGTH * support
            if support >= candidate.needed and cost <= candidate.most:
                candidate = candidate._replace(cost=cost)
                best = candidate if best is None else min(best, candidate)
        if best is not None and best.edits <= SPLIT_EDITS:
            return best.word
        return self._words.halves(folded) or (folded if best is None else best.word)
