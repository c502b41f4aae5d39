"""What watches a run: wired the same for the live service and for replay."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from adapters.semantics import Semantics
from core.protocols import Observer
from core.records import Partition, Record
from core.types import Floats, Outcome
from encoders.base_model import Base
from index.confidence import Confidence, Expectations
from index.evidence import Evidence
from index.gallery import VersionedGallery
from monitoring.aside import Errors
from monitoring.cards import Item
from monitoring.drift import DriftMonitor
from monitoring.expected import ExpectedMonitor
from monitoring.history import History
from monitoring.judged import JudgedQuality
from monitoring.metrics import Metrics
from monitoring.registry import fresh_registry
from qshift.build import Engine, judged
from stream.decision import Decisions
from stream.events import Commanded, Event, Rebalanced, Recovered, Restored, Saved
from stream.kafka import KafkaSource
from stream.lanes import Lane

LAG_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Observers:
    """In the order in which they have to see an outcome: later ones read what earlier ones found."""

    judged: JudgedQuality
    drift: DriftMonitor
    metrics: Metrics
    history: History
    expected: ExpectedMonitor | None = None
    method: str = ""

    def searched(self, gallery: VersionedGallery) -> None:
        """Another version is in use: series and page say which, and how many items it has."""
        self.metrics.index(gallery.version, len(gallery))
        self.history.entitle(subtitle(gallery, self.method))

    def all(self) -> list[Observer]:
        first: list[Observer] = [self.judged, self.drift]
        if self.expected is not None:
            first.append(self.expected)
        return [*first, self.metrics, self.history]

    def unobserved(self, kind: str) -> None:
        """Counts what none of them sees; it waits for none of them, because the loop's thread calls it."""
        self.metrics.unobserved(kind)
        if kind == "label":
            self.judged.overflowed(1)


def semantics(base: Base) -> Callable[[Floats], dict[str, float]] | None:
    """Label-free gauges of a batch by PSCA's prototypes, for bases that bring them."""
    if "semantics" not in base.extras:
        return None
    known = Semantics.read(base.extras["semantics"])

    def gauges(features: Floats) -> dict[str, float]:
        found = known.of(features)
        return {
            "qshift_semantic_agreement_ratio": found.agreement,
            "qshift_semantic_reliability": found.reliability,
            "qshift_semantic_gap": found.gap,
        }

    return gauges


def expected(engine: Engine) -> ExpectedMonitor | None:
    """The mAP to expect without labels, for bases that bring a curve of some kind of query."""
    base, versions = engine.base, engine.versions
    # Its own: in another thread.
    evidence = Evidence(engine.config.answer, base.reference, base.head.codes, base.missed)
    known = Expectations(evidence, base.extras)
    if not known.modalities:
        return None

    def found(outcome: Outcome) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        gallery, modality = versions.version(outcome.gallery_version), outcome.batch.modality
        frozen = None if gallery is None else known.of(gallery, modality, outcome.frozen)
        if gallery is None or frozen is None:
            return None
        same = outcome.adapted is outcome.frozen
        adapted = frozen if same else known.of(gallery, modality, outcome.adapted, adapted=True)
        paired = outcome.paired
        return frozen[paired], (frozen if adapted is None else adapted)[paired]

    return ExpectedMonitor(found)


def abstaining(engine: Engine) -> Callable[[Outcome], int]:
    """Answers of a batch that name nothing, because their confidence is below what their query wants."""
    base, config = engine.base, engine.config
    # Its own: in another thread.
    evidence = Evidence(config.answer, base.reference, base.head.codes, base.missed)
    sure = Confidence(evidence, base.extras, engine.versions.version)
    decisions = Decisions(sure, config.answer.fuse != "none")

    def count(outcome: Outcome) -> int:
        if all(query.wanted.threshold is None for query in outcome.batch.queries):
            return 0
        return int(decisions(outcome).abstained.sum())

    return count


def subtitle(gallery: VersionedGallery, method: str) -> str:
    """What the page says under its title."""
    return f"{len(gallery):,} items · {gallery.bits}-bit codes · method {method}"


def watching(engine: Engine, title: str, attribution: str) -> Observers:
    """All observers of a service."""
    quality, gallery = judged(engine), engine.versions.current()
    mean = gallery.features(gallery.keys()).mean(0)
    drift = DriftMonitor(engine.base.reference, mean, seed=engine.config.seed)
    method = engine.config.adapt.method or "of the base"
    to_expect = expected(engine)
    silent = abstaining(engine)
    metrics = Metrics(
        fresh_registry(), quality, drift, method, semantics=semantics(engine.base), expected=to_expect,
        abstained=silent,
    )  # fmt: skip

    def item(key: int) -> Item:
        current = engine.versions.holding(key)
        name = current.identifier(key)
        return Item(name, current.display(key).title, f"/picture/gallery/{quote(name, safe='')}")

    def relevant_keys(version: str, label: str) -> Collection[int]:
        found = engine.versions.version(version)
        return [] if found is None else found.keys()[found.carriers(label)].tolist()

    history = History(
        quality, drift, item, relevant_keys, title=title, attribution=attribution, expected=to_expect,
        abstained=silent,
    )  # fmt: skip
    found = Observers(quality, drift, metrics, history, to_expect, method)
    found.searched(gallery)
    return found


class Watched:
    """A source that shows its lag at every poll, answered or not: a stalled consumer must be seen.

    Args:
        lanes: whose waiting queries were read and are not answered: they count, too.
    """

    def __init__(
        self, source: KafkaSource, metrics: Metrics, errors: Errors,
        lanes: Callable[[], Collection[Lane]] = tuple,
    ) -> None:  # fmt: skip
        self._lanes = lanes
        self._source, self._metrics, self._errors, self._next = source, metrics, errors, 0.0

    def poll(self, budget_seconds: float) -> list[Record]:
        records = self._source.poll(budget_seconds)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LAG_SECONDS
            lag = self._source.lag()
            self._errors.guarded(type(self._metrics).__name__, lambda: self._show(lag))
        return records

    def _show(self, lag: Mapping[Partition, int]) -> None:
        waiting: Counter[Partition] = Counter()
        for lane in self._lanes():
            waiting[lane.partition] += len(lane.pending)
        for partition, behind in lag.items():
            self._metrics.lag(f"{partition[0]}/{partition[1]}", behind + waiting[partition])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def count(metrics: Metrics, errors: Errors, event: Event) -> None:
    """Shows what happens to a run in the metrics; what those raise is counted and goes no further."""
    errors.guarded(type(metrics).__name__, lambda: _count(metrics, event))


def _count(metrics: Metrics, event: Event) -> None:
    match event:
        case Saved(nbytes):
            metrics.saved(nbytes)
        case Restored(seconds):
            metrics.restored(seconds)
        case Recovered():
            metrics.recovered()
        case Rebalanced():
            metrics.rebalanced()
        case Commanded(obeyed) if not obeyed.repeated:
            metrics.commanded(obeyed)
