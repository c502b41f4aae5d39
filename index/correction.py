"""Late labels correct the weight of the adapted twin: between the twins, and by a step or two.

What is remembered of an answered query (both codes and features) gives, once its label has come, the AP of
every weight that could have served it. Without labels the rule's own weight (index/weighing.py) is taken for
the best, and others for worse by so much a step; that expectation counts as a number of labels. Another
weight is served only where it is better by a standard error.

Ours; measured in docs/methods/fusion.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ArtifactError
from core.protocols import Gallery
from core.records import Coordinates, Judgement
from core.types import Encoded, Outcome
from index.fusion import WEIGHTS
from index.judging import Counts, Judge

PRIOR = 15.0
"""Labels that the expectation without labels counts as: docs/lab/log.md, as all of these."""
STEP = 0.25
"""Points of AP that a weight is expected to lose for each step away from the rule's own."""
FAR = 2
"""Steps that labels may take from the rule's own weight: so far goes what a hostile labeller can do."""
DECAY = 100.0
"""Labels after which what one said counts 1/e."""
QUIET = 2
"""Quiet batches in a row that end a shift: under a weak one single batches show no evidence."""
KEPT = 256
"""Queries that wait for their label; the oldest go first."""

Aps = Callable[[str, Encoded, Encoded, str], Sequence[float] | None]
"""(gallery version, frozen row, adapted row, label) -> AP, 0-1, of each of `WEIGHTS`; None: not to be had."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What is remembered of a query: how either twin saw it, a single row."""

    version: str
    frozen: Encoded
    adapted: Encoded


class Correction:
    """What labels have taught a lane about its weights.

    Args:
        samples: whether the label of a query may steer; keyed, so that nobody chooses.
        aps: of a labelled query, by weight.
        keep_features: needed where answers are re-ranked by float features.
    """

    def __init__(self, samples: Callable[[Coordinates], bool], aps: Aps, keep_features: bool = True) -> None:
        self.samples, self._aps, self._keep = samples, aps, keep_features
        self._forget()

    def _forget(self) -> None:
        self._answered: dict[Coordinates, Answered] = {}
        self._quiet = 0
        """Quiet batches in a row, while anything is known."""
        self._labels = 0.0
        """How many, faded."""
        self._gained = np.zeros(len(WEIGHTS))
        """Sum of gains over the frozen answer by weight, in points of AP, faded."""
        self._products = np.zeros((len(WEIGHTS), len(WEIGHTS)))
        """Sum of products of the gains of two weights, faded."""

    def correct(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights [B] by the rule without labels -> those to serve with, each one of `WEIGHTS`.

        What is corrected is the weight of the batch, the largest of its rows. Rows that the rule limits stay
        within their limits: labels are of all kinds of query, and most speak for the others.
        """
        if not len(weights):
            return weights
        most = weights.max()
        served = WEIGHTS[corrected(self._labels, self._gained, self._products)[WEIGHTS.index(most)]]
        return np.where(weights == most, served, np.minimum(weights, served))

    def observe(self, outcome: Outcome) -> bool:
        """Remembers sampled queries; two quiet batches end a shift, and what was known about it."""
        if outcome.quiet:
            known = bool(self._answered) or self._labels > 0
            self._quiet += known
            if self._quiet >= QUIET:
                self._forget()
            return known
        changed, self._quiet = self._quiet > 0, 0
        rows = [
            (row, query.at)
            for row, query in enumerate(outcome.batch.queries)
            # Of mended texts only the adapted twin knows what was meant: there is nothing to weigh.
            if not query.repaired and self.samples(query.at)
        ]
        for row, at in rows:
            self._answered[at] = self._remembered(outcome, row)
        while len(self._answered) > KEPT:
            del self._answered[next(iter(self._answered))]
        return changed or bool(rows)

    def _remembered(self, outcome: Outcome, row: int) -> Answered:
        width = slice(None) if self._keep else slice(0)
        frozen, adapted = (
            Encoded(twin.features[row : row + 1, width].copy(), twin.codes[row : row + 1].copy())
            for twin in (outcome.frozen, outcome.adapted)
        )
        return Answered(outcome.gallery_version, frozen, adapted)

    def judge(self, judgement: Judgement) -> bool:
        """Learns from the first label of a remembered query; any other changes nothing."""
        kept = self._answered.pop(judgement.query, None)
        if kept is None:
            return False
        found = self._aps(kept.version, kept.frozen, kept.adapted, judgement.label)
        if found is not None:
            gains = 100.0 * (np.array(found) - found[0])
            fade = math.exp(-1.0 / DECAY)
            self._labels = fade * self._labels + 1.0
            self._gained = fade * self._gained + gains
            self._products = fade * self._products + np.outer(gains, gains)
        return True

    def remembers(self, at: Coordinates) -> bool:
        """Whether the label of a query is waited for."""
        return at in self._answered

    def drop(self, at: Coordinates) -> None:
        """Forgets a query, whose label was passed over."""
        self._answered.pop(at, None)

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The sums, and what is remembered: at most `KEPT` rows."""
        rows = list(self._answered.values())
        tensors: dict[str, NDArray[Any]] = {
            "gained": self._gained.copy(),
            "products": self._products.copy(),
        }
        if rows:
            for name, twins in (
                ("frozen", [row.frozen for row in rows]),
                ("adapted", [row.adapted for row in rows]),
            ):
                tensors[f"{name}.codes"] = np.concatenate([twin.codes for twin in twins])
                tensors[f"{name}.features"] = np.concatenate([twin.features for twin in twins])
        meta = {
            "labels": self._labels,
            "quiet": self._quiet,
            "answered": [
                [at.topic, at.partition, at.offset, row.version] for at, row in self._answered.items()
            ],
        }
        return tensors, meta

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Returns to a snapshot. Raises ArtifactError where it is none."""
        self._forget()
        try:
            self._labels, self._quiet = float(meta["labels"]), int(meta.get("quiet", 0))  # none before 0.3
            self._gained, self._products = tensors["gained"].copy(), tensors["products"].copy()
            for row, (topic, partition, offset, version) in enumerate(meta["answered"]):
                frozen, adapted = (
                    Encoded(
                        tensors[f"{name}.features"][row : row + 1], tensors[f"{name}.codes"][row : row + 1]
                    )
                    for name in ("frozen", "adapted")
                )
                self._answered[Coordinates(topic, partition, offset)] = Answered(version, frozen, adapted)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the labels' part of a state cannot be read: {error!r}") from error

    def go_back(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Unlearns down to a snapshot. Raises ArtifactError where it is none.

        A query that is forgotten by now stays so: its label may have passed by meanwhile, and whoever repeats
        the log may have read that label ahead and hold it still.
        """
        waiting = self._answered
        self.restore(tensors, meta)
        self._answered = {at: row for at, row in self._answered.items() if at in waiting}


class Corrections:
    """Makes corrections that judge by the galleries that are kept.

    Args:
        judge: rankings as they were, or would have been, served.
        version: a gallery by its version; None: gone.
        samples, keep_features: see `Correction`.
        ap: of a ranking.
    """

    def __init__(
        self, judge: Judge, version: Callable[[str], Gallery | None], samples: Callable[[Coordinates], bool],
        ap: Callable[[Counts], float], keep_features: bool,
    ) -> None:  # fmt: skip
        self._judge, self._version, self._ap = judge, version, ap
        self._samples, self._keep = samples, keep_features

    def __call__(self) -> Correction:
        """A new one, which knows nothing yet."""
        return Correction(self._samples, self._aps, self._keep)

    def _aps(self, version: str, frozen: Encoded, adapted: Encoded, label: str) -> list[float] | None:
        gallery = self._version(version)
        if gallery is None or not len(gallery.carriers(label)):
            return None
        return [self._ap(counts) for counts in self._judge.weighed(gallery, frozen, adapted, WEIGHTS, label)]


def corrected(labels: float, gained: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each place in `WEIGHTS` that the rule may choose, the place that is served [W].

    Args:
        labels: n, how many, faded.
        gained: [W] sum over the labels of each weight's gain, in points of AP.
        products: [W, W] sum of the products of two weights' gains.
    """
    places = np.arange(len(WEIGHTS))
    if labels <= 0.0:
        return places
    more = (gained[None, :] - gained[:, None]) / labels  # of a weight (column) than of the rule's (row)
    squares = np.diag(products)
    # Mean squares and not variances: that of a single label would be 0.
    spread = (squares[None, :] + squares[:, None] - 2.0 * products) / labels
    steps = np.abs(places[:, None] - places[None, :])
    known = labels + PRIOR
    better = (labels * more - PRIOR * STEP * steps) / known - np.sqrt(np.maximum(spread, 0.0) / known)
    better[steps > FAR] = -np.inf
    np.fill_diagonal(better, 0.0)
    chosen: NDArray[np.int64] = better.argmax(axis=1)
    return chosen
