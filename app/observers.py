"""What watches a run: wired the same for the live service and for replay."""

from __future__ import annotations

from app.build import Engine, judged_distances
from monitoring.judged import JudgedQuality


def judged(engine: Engine) -> JudgedQuality:
    """Sampled quality against the galleries on the shelf."""
    config, shelf = engine.config, engine.shelf

    def relevant(version: str, label: str):  # type: ignore[no-untyped-def]
        gallery = shelf.version(version)
        return None if gallery is None else gallery.relevant(label)

    return JudgedQuality(
        config.labels.key,
        config.labels.rate,
        config.labels.ttl_queries,
        judged_distances(config, shelf),
        relevant,
        keep_features=config.answer.rerank,
        seed=config.seed,
    )
