"""Judges every query of a replay from full rankings: AP and R@1, 5, 10 of frozen, adapted and served."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.types import Coordinates, Judgement, Outcome, Refusal
from index.shelf import Shelf
from monitoring.judged import Remembered
from monitoring.ranking import class_average_precision, levels

PLACES = (1, 5, 10)
Score = tuple[float, float, float, float]
"""AP and R@1, R@5, R@10 of one query, 0-1."""
Distances = Callable[[str, Remembered], tuple[NDArray[np.float64], ...] | None]


def hit_at(counts: NDArray[np.int64], k: int) -> float:
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


def score(distances: NDArray[np.float64], relevant: NDArray[np.bool_]) -> Score:
    """Measures of one ranking [N]; at least one item must be relevant."""
    counts = levels(distances, relevant)
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
        distances: full rankings of a remembered query, see `app.answering.Answering.distances`.
        known: scores of frozen rankings, shared by the methods of one stream: computed once.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        distances: Distances,
        shelf: Shelf,
        known: dict[tuple[int, bytes], Score],
    ) -> None:
        self._labels, self._distances, self._shelf, self._known = labels, distances, shelf, known
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
        found, gallery = self._distances(outcome.gallery_version, kept), self._shelf.current()
        if found is None:
            return
        relevant = gallery.relevant(self._labels[at.offset])
        if not relevant.any():
            return
        frozen, adapted, served = found
        key = (at.offset, frozen.tobytes())
        if key not in self._known:
            self._known[key] = score(frozen, relevant)
        self.frozen[at.offset] = self._known[key]
        # A method that changed nothing, or does not fuse, is not ranked twice.
        self.adapted[at.offset] = self._known[key] if _same(adapted, frozen) else score(adapted, relevant)
        self.served[at.offset] = (
            self.adapted[at.offset] if _same(served, adapted) else score(served, relevant)
        )


def _same(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(np.array_equal(one, other))
