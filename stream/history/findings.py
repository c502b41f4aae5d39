"""What a check of the log may find, in words of its own, and the verdict that they make together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Violation = Literal[
    "lost", "duplicate-different", "unseen-state", "time-travel", "fork", "skip", "broken-chain"
]
Notice = Literal["fenced-duplicate", "fenced-write", "late-write", "torn", "unreadable"]
"""What may happen without harm: who slept through a replacement wrote, or what was given up arrived late."""

MEANINGS: dict[str, str] = {
    "lost": "a query below the newest checkpoint has neither an answer nor a dead letter",
    "duplicate-different": "two answers to one query differ, and come from one generation of the group",
    "unseen-state": "an answer comes from a state, or a batch, that the journal does not know",
    "time-travel": "an answer comes from a state that has seen later queries of its lane",
    "fork": "two checkpoints of one generation hold different states of a lane before one batch",
    "skip": "the journal of a lane has a gap or an overlap",
    "broken-chain": "a checkpoint does not follow its predecessor, or its next batch began elsewhere",
    "fenced-duplicate": "two answers to one query differ and come from different generations",
    "fenced-write": "a generation wrote a checkpoint or a boundary after a newer one had begun",
    "late-write": "a checkpoint that was given up arrived all the same, beside another in its place",
    "torn": "a checkpoint is not whole: a writer died, or compaction has begun to remove it",
    "unreadable": "a record of the journal or of the answers is none",
}
EXAMPLES = 20
"""Places that are named for each kind; all are counted."""


@dataclass(slots=True)
class Verdict:
    """What was read, found, and could not be decided. Examples are places with what is wrong there."""

    queries: int = 0
    """Below the newest checkpoints, as far as the journal reaches back."""
    answers: int = 0
    repeated: int = 0
    dead_letters: int = 0
    batches: int = 0
    checkpoints: int = 0
    violations: Counter[Violation] = field(default_factory=Counter)
    notices: Counter[Notice] = field(default_factory=Counter)
    undecided: Counter[str] = field(default_factory=Counter)
    """Sentence -> how often: what retention, or a journal that begins later, has made unknowable."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    def violated(self, kind: Violation, words: str) -> None:
        """Counts a violation and keeps the first of its kind."""
        self.violations[kind] += 1
        self._example(kind, words)

    def noticed(self, kind: Notice, words: str) -> None:
        """Counts what may happen."""
        self.notices[kind] += 1
        self._example(kind, words)

    def unknown(self, sentence: str, count: int = 1) -> None:
        """Counts what cannot be decided."""
        if count:
            self.undecided[sentence] += count

    def _example(self, kind: str, words: str) -> None:
        found = self.examples.setdefault(kind, [])
        if len(found) < EXAMPLES:
            found.append(words)

    @property
    def status(self) -> int:
        """Exit status: 0 nothing found, 1 violations, 3 nothing found but not all can be decided."""
        return 1 if self.violations else 3 if self.undecided else 0

    def counts(self) -> dict[str, int]:
        """Every kind, violations first; 0 where nothing was found."""
        found: dict[str, int] = dict.fromkeys(MEANINGS, 0)
        for kind, count in [*self.violations.items(), *self.notices.items()]:
            found[kind] = count
        return found

    def document(self) -> dict[str, object]:
        """As JSON: every kind is there, with 0 where nothing was found."""
        counts = self.counts()
        return {
            "status": ("clean", "violations", "", "undecided")[self.status],
            "read": {
                "queries": self.queries, "answers": self.answers, "repeated": self.repeated,
                "dead_letters": self.dead_letters, "batches": self.batches, "checkpoints": self.checkpoints,
            },
            "found": {
                kind: {"count": count, "examples": self.examples.get(kind, [])}
                for kind, count in counts.items()
            },
            "undecided": dict(self.undecided),
        }  # fmt: skip
