"""What watches a run: wired the same for the live service and for replay."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import quote

from adapters.semantics import Semantics
from app.build import Engine
from core.protocols import Observer
from core.types import Encoded, Floats
from encoders.base_model import Base
from index.judging import Judge
from monitoring.drift import DriftMonitor
from monitoring.history import History, Item
from monitoring.judged import JudgedQuality, Ranked, Remembered
from monitoring.metrics import Metrics
from monitoring.ranking import Levels, counted_levels
from monitoring.registry import fresh_registry


@dataclass(frozen=True, slots=True)
class Observers:
    """In the order in which they have to see an outcome: later ones read what earlier ones found."""

    judged: JudgedQuality
    drift: DriftMonitor
    metrics: Metrics
    history: History

    def all(self) -> list[Observer]:
        return [self.judged, self.drift, self.metrics, self.history]


def ranked(engine: Engine) -> Ranked:
    """Rankings of a remembered query by the gallery version that answered it."""
    judge = Judge(engine.config.answer, engine.fusion)

    def levels(version: str, kept: Remembered, label: str) -> tuple[Levels, ...] | None:
        gallery = engine.shelf.version(version)
        if gallery is None:
            return None
        frozen = Encoded(kept.frozen_features[None], kept.frozen_code[None])
        adapted = Encoded(kept.adapted_features[None], kept.adapted_code[None])
        found = judge.rankings(gallery, frozen, adapted, kept.weight, label)
        return tuple(counted_levels(*counts) for counts in found)

    return levels


def judged(engine: Engine) -> JudgedQuality:
    """Sampled quality against the galleries on the shelf."""
    config = engine.config
    return JudgedQuality(
        config.labels.key,
        config.labels.rate,
        config.labels.ttl_queries,
        ranked(engine),
        keep_features=config.answer.rerank,
        seed=config.seed,
    )


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


def watching(engine: Engine, title: str, attribution: str) -> Observers:
    """All observers of a service."""
    quality, gallery = judged(engine), engine.shelf.current()
    mean = gallery.features(gallery.keys()).mean(0)
    drift = DriftMonitor(engine.base.reference, mean, seed=engine.config.seed)
    metrics = Metrics(
        fresh_registry(), quality, drift, engine.config.adapt.method, semantics=semantics(engine.base)
    )
    metrics.index(gallery.version, len(gallery))

    def item(key: int) -> Item:
        current = engine.shelf.current()
        name = current.identifier(key)
        return Item(name, current.display(key).title, f"/picture/gallery/{quote(name, safe='')}")

    def relevant_keys(version: str, label: str) -> Collection[int]:
        found = engine.shelf.version(version)
        return [] if found is None else found.keys()[found.carriers(label)].tolist()

    history = History(
        quality, drift, item, relevant_keys, title=title, attribution=attribution,
        subtitle=f"{len(gallery):,} items · {gallery.bits}-bit codes · method {engine.config.adapt.method}",
    )  # fmt: skip
    return Observers(quality, drift, metrics, history)
