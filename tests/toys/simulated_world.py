"""What workers of a simulation are made of: the production pipeline around small vectors, and a folder.

Each worker has an engine of its own, as a process has, and knows no more of the gallery than it has read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from adapters.online.centring import Centring
from adapters.online.frozen import Frozen
from core.config import Config
from core.errors import ArtifactError, ConfigError
from core.protocols import Adapter, Aligner, Gallery
from core.types import Encoded, Floats, Hits, Modality, Twin
from encoders.head import HashHead
from encoders.vector import VectorEncoder
from index.correction import Corrections
from index.fuse import fuse
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from qshift.following import Following
from stream.codec import Codec, vector_query
from stream.pipeline import Pipeline
from stream.retrieval import Correct, Retrieval

WIDTH, BITS, ITEMS, FLOOR = 8, 16, 24, 4
SHIFT = 0.6


class Fusion:
    """Codes alone decide, by one weight for all rows; now and then a batch is quiet, by its content."""

    def __init__(self, top: int) -> None:
        self.top = top

    def twin(
        self, gallery: Gallery, seen: Encoded, hits: Hits, among: Hits | None = None, top: int | None = None
    ) -> Twin:
        top = top or self.top
        return Twin(seen, hits, Hits(hits.keys[:, :top], hits.distances[:, :top]), among)

    def together(
        self, gallery: Gallery, modality: Modality, frozen: Twin, adapted: Twin, repaired: object,
        correct: Correct | None = None,
    ) -> tuple[Hits, Floats]:  # fmt: skip
        if adapted is frozen:
            return frozen.answer, np.zeros(len(frozen.hits.keys), np.float32)
        weights = np.ones(len(frozen.hits.keys))
        weights = weights if correct is None else correct(weights)
        served = adapted.answer if weights[0] == np.inf else frozen.answer
        if 0 < weights[0] < np.inf:
            hits, codes = (adapted.hits, frozen.hits), (adapted.codes, frozen.codes)
            served = fuse(*hits, *codes, gallery.codes_of, self.top, "mixture", float(weights[0]))
        return served, weights.astype(np.float32)

    def quiet(self, gallery: Gallery, modality: Modality, frozen: Twin, repaired: object) -> bool:
        return int(frozen.hits.distances[:, 0].sum()) % 9 == 0


class Judge:
    """What a label teaches: which weight would have been right, by the item and by how it was seen."""

    def weighed(
        self, gallery: Gallery, frozen: Encoded, adapted: Encoded, weights: Sequence[float], label: str
    ) -> list[Any]:
        (at, *_), seen = gallery.carriers(label), int(adapted.codes.sum()) - int(frozen.codes.sum())
        right = (int(gallery.keys()[at]) % 2 * 2 + 1 + int(seen % 5 == 0)) % len(weights)
        return [float(place == right) for place in range(len(weights))]


class Shelf:
    """The folder of a gallery: every version there was, oldest first."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.items = _unit(rng.normal(size=(ITEMS, WIDTH)))
        weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
        self.head = HashHead(weight, np.zeros(BITS, np.float32), {"vector": np.zeros(WIDTH, np.float32)})
        names = [f"item-{number}" for number in range(ITEMS)]
        first = VersionedGallery(BITS, names, self._codes(self.items), names, self.items, backend="exact")
        self.versions = {first.version: first}
        self.newest, self.names, self._added = first, names, 0

    def _codes(self, items: Floats) -> Any:
        return self.head.codes(torch.from_numpy(items), "vector")

    def change(self, rng: np.random.Generator) -> None:
        """Some items go, one comes or is another one from now on."""
        gone = rng.choice(self.names, size=int(rng.integers(0, 3)), replace=False).tolist()
        new = self.newest.remove(gone) if gone and len(self.names) > ITEMS // 2 else self.newest
        left = [name for name in self.names if new.holds(name)]
        self._added += 1
        name = str(rng.choice(left)) if rng.random() < 0.3 else f"new-{self._added}"
        vector = _unit(rng.normal(size=(1, WIDTH)))
        self.newest = new.upsert([name], self._codes(vector), [name], vector)
        self.names = [*dict.fromkeys([*left, name])]
        self.versions[self.newest.version] = self.newest


class SimulatedFollowing(Following):
    """Follows a shelf instead of a folder; whether the newest version was read already is drawn."""

    def __init__(self, engine: Any, shelf: Shelf, rng: np.random.Generator) -> None:
        self._shelf, self._rng = shelf, rng
        super().__init__(engine, Path("shelf"))

    def turn(self, version: str) -> str:
        if self._rng.random() < 0.3:
            self._newest = self._shelf.newest
        return super().turn(version)

    def _loaded(self, version: str) -> VersionedGallery:
        if version not in self._shelf.versions:
            raise ArtifactError(f"no version {version}")
        return self._shelf.versions[version]


@dataclass
class SimulatedEngine:
    """One worker's."""

    config: Config
    versions: GalleryVersions
    pipeline: Pipeline
    codec: Codec
    base: Any
    """Of which a follower asks for references alone."""


@dataclass
class SimulatedWorld:
    """Configuration, folder, and what the workers of one history share: the clock and the draws."""

    config: Config
    shelf: Shelf
    rng: np.random.Generator
    now_ms: Callable[[], int]
    tenants: int = 0

    def engine(self, bounded: bool = True) -> SimulatedEngine:
        """A worker's own, as after a start: it has read the newest gallery and no other.

        Args:
            bounded: False to keep all lanes in memory, however many may be.
        """
        config, head, encoder = self.config, self.shelf.head, VectorEncoder(WIDTH)
        if self.tenants and not bounded:
            batch = config.batch.model_copy(update={"live_lanes": 0})
            config = config.model_copy(update={"batch": batch})
        versions = GalleryVersions(self.shelf.newest, older=1)
        corrections = Corrections(
            Judge(), versions.version, lambda at: at.offset % 2 == 0, lambda counts: counts, False,  # type: ignore[arg-type, return-value]
        )  # fmt: skip
        pipeline = Pipeline(
            config, {"vector": encoder},
            Retrieval(
                head.codes, versions.current, Fusion(config.answer.top), config.answer.shortlist, "cpu",
                config.answer.top, correction=corrections if config.labels.steer else None,
            ),
            lambda modality: Centring(torch.zeros(WIDTH), FLOOR), lambda modality: None,
            lambda modality, q, near, mask: torch.zeros(len(q)),
        )  # fmt: skip
        pipeline.other = other
        codec = Codec(config.limits, config.kafka, versions.identifier, now_ms=self.now_ms)
        made = SimulatedEngine(config, versions, pipeline, codec, SimpleNamespace(reference={}))
        SimulatedFollowing(made, self.shelf, self.rng)
        return made

    def query(self, rng: np.random.Generator) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
        """Value and headers of one; a few are none, some are a tenant's."""
        if rng.random() < 0.03:
            return b"{", ()
        vector = self.shelf.items[rng.integers(ITEMS)] + SHIFT * rng.normal(size=WIDTH) / WIDTH**0.5 + 0.2
        value, headers = vector_query(vector.astype(np.float32).round(3))
        if self.tenants:
            return value, (*headers, ("x-tenant", b"tenant-%d" % rng.integers(self.tenants)))
        tenant = [("x-tenant", b"acme")] if rng.random() < 0.3 else []
        return value, (*headers, *tenant)


def other(method: str, modality: Modality) -> tuple[Adapter, Aligner | None, int]:
    """What a command can change to: frozen, or centring of another floor."""
    if method == "frozen":
        return Frozen(), None, 1
    if method == "eager":
        return Centring(torch.zeros(WIDTH), 1), None, 1
    raise ConfigError(f"method {method!r} is not known")


def simulated_world(seed: int, now_ms: Callable[[], int], tenants: int = 0, live: int = 0) -> SimulatedWorld:
    """Of a history: how it is configured is drawn, too.

    Args:
        tenants: of which each has a lane of its own; 0: drawn, one at most.
        live: lanes of them that a worker has in memory.
    """
    rng = np.random.default_rng([seed, 2])
    linger, apart = float(rng.choice([0.05, 0.5, 60.0])), bool(rng.random() < 0.5)
    # A lane that is away obeys when it is asked again: where there are commands, all are in memory.
    lanes = {"per_tenant_lanes": bool(tenants) or apart, "live_lanes": live if tenants else 0}
    config = Config.model_validate({
        # As long as any: a seed stays the history it was before lone queries were answered sooner.
        "batch": {"size": 8, "floor": FLOOR, "linger_seconds": linger, "lone_seconds": linger, **lanes},
        "answer": {"top": 3, "shortlist": 6},
        "state": {"every_batches": int(rng.integers(1, 5))},
        "checkpoints": {"keep": 3, "every_batches": int(rng.integers(1, 4))},
        "labels": {"steer": bool(rng.random() < 0.75) and not tenants},  # labels keep all lanes in memory
    })  # fmt: skip
    return SimulatedWorld(config, Shelf(), np.random.default_rng([seed, 3]), now_ms, tenants)


def _unit(rows: Any) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
