"""Judges every query of a replay from full rankings: AP and R@1, 5, 10 of frozen, adapted and served."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from core.records import Coordinates, Judgement, Refusal
from core.types import Outcome, Twin
from monitoring.judged import Ranked, Remembered
from monitoring.ranking import Levels, class_average_precision

PLACES = (1, 5, 10)
Score = tuple[float, float, float, float]
"""AP and R@1, R@5, R@10 of one query, 0-1."""


def hit_at(counts: Levels, k: int) -> float:
    """Chance that one of the first k places is relevant (R@k of the retrieval papers), ties in any order.

    Args:
        counts: [2, M] relevant and other items per distance level, nearest first.
        k: places; those beyond N are empty.
    """
    left = k
    for relevant, others in counts.T.tolist():
        if relevant:
            # None of the `left` places drawn from this level is relevant: others! / total!, falling.
            drawn = min(left, relevant + others)
            return 1.0 - math.comb(others, drawn) / math.comb(relevant + others, drawn)
        left -= others
        if left <= 0:
            return 0.0
    return 0.0


def score(counts: Levels) -> Score:
    """Measures of one ranking by its levels; at least one item must be relevant."""
    one, five, ten = (hit_at(counts, k) for k in PLACES)
    return float(class_average_precision(counts)[0]), one, five, ten


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What one batch cost and did."""

    queries: int
    forwards: int
    backwards: int
    updated: bool
    resets: int
    seconds: float


class Judge:
    """Observer: scores of every labelled query, by its offset, and the facts of every batch.

    Args:
        labels: by offset; "" where nothing is right, and nothing is judged.
        ranked: full rankings of a remembered query, see `monitoring.judged.Ranked`.
        known: scores of frozen rankings, shared by the methods of one stream: computed once.
        whole: the frozen twin of all rows of a batch that has asked it for a sample alone.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        ranked: Ranked,
        known: dict[tuple[int, bytes], Score],
        whole: Callable[[Outcome], Twin] = lambda outcome: outcome.frozen,
    ) -> None:
        self._labels, self._ranked, self._known, self._whole = labels, ranked, known, whole
        self.frozen: dict[int, Score] = {}
        self.adapted: dict[int, Score] = {}
        self.served: dict[int, Score] = {}
        self.batches: list[BatchFacts] = []
        self.refused: list[Refusal] = []
        self.seconds = 0.0

    def observe(self, outcome: Outcome) -> None:
        step = outcome.step
        self.batches.append(
            BatchFacts(
                len(outcome.batch),
                outcome.forwards,
                step.backwards if step else 0,
                bool(step and step.updated),
                step.resets if step else 0,
                sum(outcome.seconds.values()),
            )
        )
        if not outcome.paired.all():
            outcome = replace(outcome, frozen=self._whole(outcome))
        for row, query in enumerate(outcome.batch.queries):
            if self._labels[query.at.offset]:
                self._score(query.at, outcome, row)

    def judge(self, judgement: Judgement) -> None:
        """Every label is known from the start."""

    def refuse(self, refusal: Refusal) -> None:
        self.refused.append(refusal)

    def _score(self, at: Coordinates, outcome: Outcome, row: int) -> None:
        kept = Remembered(
            at, outcome.gallery_version, 0, outcome.frozen.codes[row], outcome.adapted.codes[row],
            outcome.frozen.features[row], outcome.adapted.features[row], float(outcome.weights[row]),
        )  # fmt: skip
        found = self._ranked(outcome.gallery_version, kept, self._labels[at.offset])
        if found is None or not found[0][0].any():
            return
        frozen, adapted, served = found
        key = (at.offset, frozen.tobytes())
        if key not in self._known:
            self._known[key] = score(frozen)
        self.frozen[at.offset] = self._known[key]
        # A method that changed nothing, or does not fuse, is not measured twice.
        self.adapted[at.offset] = self._known[key] if np.array_equal(adapted, frozen) else score(adapted)
        self.served[at.offset] = self.adapted[at.offset] if np.array_equal(served, adapted) else score(served)
