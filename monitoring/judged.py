"""Joins late labels to past answers and estimates what adaptation gains over the frozen twin.

A keyed hash decides which queries are labelled, before their outcome is known. Of those the two codes and
the gallery version are remembered; when the label comes, the logged ranking is scored, never one made by
the model of the arrival time. One label gives the AP of a query exactly: only queries are sampled.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from core.records import Coordinates, Judgement, Refusal
from core.types import Codes, Floats, Outcome
from monitoring.live import Live, LiveEstimates
from monitoring.quality import Quality, Score, quality_of
from monitoring.ranking import Levels, ap_and_first

V = TypeVar("V")

IGNORED = ("unsampled", "steering", "unknown", "expired", "gallery", "irrelevant", "overflow")
"""Why a label is not used: not asked for, of the half that steers, of no known query, too late, its gallery
version or every item with this label is gone, more labels came than could be judged."""
EMPTY: Floats = np.zeros(0, dtype=np.float32)


def included(at: Coordinates, key: str, rate: float) -> bool:
    """Whether a query is in the labelled sample: HMAC-SHA256(key, coordinates) as a share of 2^64 < rate.

    The same in replay and in every process; who does not hold the key cannot choose what is measured.
    """
    drawn = hmac.new(key.encode(), str(at).encode(), hashlib.sha256).digest()[:8]
    return int.from_bytes(drawn, "big") < rate * 2.0**64


def steers(at: Coordinates, key: str, rate: float) -> bool:
    """Whether a query of the sample is in its control half, whose labels steer where `labels.steer` is on."""
    return included(at, key, rate / 2)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is kept of a sampled query: codes [L/8], and features [D] if answers are re-ranked (else [0]).

    `order` counts the queries observed before it.
    """

    at: Coordinates
    gallery_version: str
    order: int
    frozen_code: Codes
    adapted_code: Codes
    frozen_features: Floats = field(default_factory=lambda: EMPTY)
    adapted_features: Floats = field(default_factory=lambda: EMPTY)
    weight: float = 1.0
    """Of the adapted twin in the served answer."""


Ranked = Callable[[str, Remembered, str], tuple[Levels, ...] | None]
"""(gallery version, query, label) -> levels of the frozen, adapted and served ranking; None: version gone."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Label traffic since the start; `pending` and `early` are present numbers."""

    requested: int
    arrived: int
    corrected: int
    expired: int
    pending: int
    early: int
    ignored: Mapping[str, int]


class JudgedQuality:
    """Observer: samples, remembers, scores.

    Args:
        key: of the sampling hash.
        rate: share of the queries to label, 0-1.
        report: whether half of them steers, see `steers`, so that the other half alone is measured.
        ttl_queries: a label may come until so many later queries were observed; bounds the memory too.
        ranked: rankings in galleries by version, injected by the app.
        keep_features: needed where answers are re-ranked by float features.
        alpha: fade per label.
        block_labels: labels after which the anytime intervals start again.
        early: labels that may wait for their answer.
    """

    def __init__(
        self,
        key: str,
        rate: float,
        ttl_queries: int,
        ranked: Ranked,
        keep_features: bool = False,
        alpha: float = 0.99,
        block_labels: int = 1000,
        early: int = 4096,
        seed: int = 0,
        report: bool = False,
    ) -> None:
        self._key, self._rate, self._ttl, self._report = key, rate, ttl_queries, report
        self._ranked, self._keep_features = ranked, keep_features
        self._early_size, self._seed = early, seed
        self._lock = threading.RLock()
        # Dictionaries keep insertion order: their first key is always the oldest.
        self._memory: dict[Coordinates, Remembered] = {}
        self._scores: dict[Coordinates, Score] = {}
        self._gone: dict[Coordinates, int] = {}
        self._early: dict[Coordinates, Judgement] = {}
        self._seen = self._requested = self._arrived = self._corrected = self._expired = self._pending = 0
        self._ignored = dict.fromkeys(IGNORED, 0)
        self._overflowed = 0
        self._live = LiveEstimates(alpha, block_labels)

    def sampled(self, at: Coordinates) -> bool:
        """Whether the label of a query is asked for, and measured."""
        return self._asked(at) and not (self._report and steers(at, self._key, self._rate))

    def _asked(self, at: Coordinates) -> bool:
        return included(at, self._key, self._rate)

    def observe(self, outcome: Outcome) -> None:
        """Remembers the sampled queries of a batch, and judges those whose label came first."""
        with self._lock:
            paired = outcome.paired
            for row, query in enumerate(outcome.batch.queries):
                # A restart answers again what it had answered: the first memory is byte-identical.
                if query.at in self._memory or query.at in self._gone:
                    continue
                if paired[row] and self.sampled(query.at):
                    self._remember(query.at, outcome, row)
                self._seen += 1
            self._forget()
            waiting = self._early.keys() & {query.at for query in outcome.batch.queries}
            for at in sorted(waiting):
                self._score(self._early.pop(at))

    def judge(self, judgement: Judgement) -> None:
        """Scores a labelled query; the last label of a query wins."""
        with self._lock:
            if not self.sampled(judgement.query):
                self._ignored["steering" if self._asked(judgement.query) else "unsampled"] += 1
            elif judgement.query in self._memory:
                self._score(judgement)
            elif judgement.query in self._gone:
                self._ignored["expired"] += 1
            else:
                self._early.pop(judgement.query, None)
                self._early[judgement.query] = judgement
                while len(self._early) > self._early_size:
                    del self._early[next(iter(self._early))]
                    self._ignored["unknown"] += 1

    def overflowed(self, labels: int) -> None:
        """Labels that were dropped unseen: more came than could be judged.

        Takes no lock, because a label that is judged holds it for milliseconds and the answers' loop is what
        calls this: only one thread may.
        """
        self._overflowed += labels

    def refuse(self, refusal: Refusal) -> None:
        """A refused query has no answer to judge."""

    def summary(self, select: Callable[[Coordinates], bool] | None = None) -> Quality:
        """Quality over the labelled queries that `select` picks, all by default."""
        with self._lock:
            scores = [score for at, score in self._scores.items() if select is None or select(at)]
        return quality_of(scores, self._seed)

    def between(self, first: int, end: int | None = None) -> Quality:
        """Quality over the labelled queries observed as number `first` (from 0) up to before `end`."""
        with self._lock:
            scores = [s for s in self._scores.values() if s.order >= first and (end is None or s.order < end)]
        return quality_of(scores, self._seed)

    def live(self) -> Live:
        """Faded estimates now."""
        with self._lock:
            return self._live.now()

    def labels(self) -> Labels:
        """Label traffic so far."""
        with self._lock:
            return Labels(
                self._requested,
                self._arrived,
                self._corrected,
                self._expired,
                self._pending,
                len(self._early),
                {**self._ignored, "overflow": self._overflowed},
            )

    def _remember(self, at: Coordinates, outcome: Outcome, row: int) -> None:
        features = (EMPTY, EMPTY)
        if self._keep_features:
            features = (outcome.frozen.features[row].copy(), outcome.adapted.features[row].copy())
        self._memory[at] = Remembered(
            at,
            outcome.gallery_version,
            self._seen,
            outcome.frozen.codes[row].copy(),
            outcome.adapted.codes[row].copy(),
            *features,
            float(outcome.weights[row]),
        )
        self._requested += 1
        self._pending += 1

    def _forget(self) -> None:
        """Drops what is older than the TTL; scores and the names of forgotten queries stay as long again."""
        oldest = self._seen - self._ttl
        for at in _older(self._memory.items(), lambda kept: kept.order < oldest):
            self._gone[at] = self._memory.pop(at).order
            if at not in self._scores:
                self._pending -= 1
                self._expired += 1
        for at in _older(self._gone.items(), lambda order: order < oldest - self._ttl):
            del self._gone[at]
        while len(self._scores) > self._ttl:
            del self._scores[next(iter(self._scores))]

    def _score(self, judgement: Judgement) -> None:
        kept, old = self._memory[judgement.query], self._scores.get(judgement.query)
        if old is not None and old.label == judgement.label:
            return
        ranked = self._ranked(kept.gallery_version, kept, judgement.label)
        if ranked is None:
            self._ignored["gallery"] += 1
            return
        if not ranked[0][0].any():
            self._ignored["irrelevant"] += 1
            return
        (frozen, one), (adapted, two), (served, three) = (ap_and_first(levels) for levels in ranked)
        entered = self._arrived if old is None else old.entered
        score = Score(kept.order, judgement.label, (frozen, adapted, served), (one, two, three), entered)
        self._scores[judgement.query] = score
        if old is None:
            self._arrived += 1
            self._pending -= 1
            self._live.enter(score)
        else:
            self._corrected += 1
            self._live.correct(old, score, self._arrived - 1 - old.entered)


def _older(items: Iterable[tuple[Coordinates, V]], old: Callable[[V], bool]) -> list[Coordinates]:
    """Keys from the oldest on, up to the first that is not old."""
    keys = []
    for key, value in items:
        if not old(value):
            break
        keys.append(key)
    return keys
