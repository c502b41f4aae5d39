"""A small real world: 24-d vectors, an adapting encoder, 40 items, the production pipeline and codec."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from adapters.online.frozen import Frozen
from adapters.online.objectives import refined
from adapters.online.rest import Rest
from core.config import Config
from core.protocols import Adapter, Gallery
from core.records import Coordinates, Judgement, Record, Refusal
from core.references import SourceConstants
from core.types import Encoded, Floats, Hits, Modality, Outcome, Twin
from encoders.head import HashHead
from encoders.vector import VectorEncoder
from index.fuse import fuse
from index.gallery import VersionedGallery
from stream.codec import Codec, text_query, vector_query
from stream.memory import MemorySink
from stream.pipeline import Pipeline
from stream.retrieval import Retrieval

WIDTH, BITS, ITEMS = 24, 32, 40


class ToyFusion:
    """Codes alone decide, the nearer twin for each item; never quiet."""

    def __init__(self, top: int) -> None:
        self.top = top

    def twin(
        self, gallery: Gallery, seen: Encoded, hits: Hits, among: Hits | None = None, top: int | None = None
    ) -> Twin:
        return Twin(seen, hits, hits if among is None else among, among)

    def together(
        self, gallery: Gallery, modality: Modality, frozen: Twin, adapted: Twin, repaired: object,
        correct: object = None,
    ) -> tuple[Hits, Floats]:  # fmt: skip
        sides = [twin.among or twin.hits for twin in (adapted, frozen)]
        served = fuse(*sides, adapted.codes, frozen.codes, gallery.codes_of, self.top, "max")
        return served, np.ones(len(served.keys), np.float32)

    def quiet(self, gallery: Gallery, modality: Modality, frozen: Twin, repaired: object) -> bool:
        return False


@dataclass
class Watch:
    """Keeps what observers see."""

    outcomes: list[Outcome] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def judge(self, judgement: Judgement) -> None:
        self.judgements.append(judgement)

    def refuse(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)


@dataclass
class World:
    config: Config
    gallery: VersionedGallery
    pipeline: Pipeline
    codec: Codec
    items: np.ndarray
    head: HashHead

    def queries(self, count: int, seed: int = 1, shift: float = 0.4) -> list[Record]:
        rng = np.random.default_rng(seed)
        records = []
        for offset in range(count):
            vector = self.items[rng.integers(ITEMS)] + shift * rng.normal(size=WIDTH) / WIDTH**0.5 + 0.1
            value, headers = vector_query(vector.astype(np.float32), f"q{offset}")
            records.append(Record(Coordinates("qshift.queries", 0, offset), value, None, tuple(headers)))
        return records

    def text(self, offset: int, text: str) -> Record:
        value, headers = text_query(text)
        return Record(Coordinates("qshift.queries", 0, offset), value, None, tuple(headers))


@pytest.fixture
def make_world() -> Callable[..., World]:
    torch.set_num_threads(1)

    def make(**sections: object) -> World:
        document = {"batch": {"size": 16, "floor": 8, "linger_seconds": 60.0}, "state": {"every_batches": 3}}
        document.update(sections)  # type: ignore[arg-type]
        config = Config.model_validate(document)
        rng = np.random.default_rng(0)
        items = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
        items /= np.linalg.norm(items, axis=1, keepdims=True)
        weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
        head = HashHead(weight, np.zeros(BITS, np.float32), {"vector": np.zeros(WIDTH, np.float32)})
        codes = head.codes(torch.from_numpy(items), "vector")
        names = [f"item-{i}" for i in range(ITEMS)]
        said = [{"n": i, "parity": ("even", "odd")[i % 2]} for i in range(ITEMS)]
        gallery = VersionedGallery(BITS, names, codes, names, items, backend="exact", attributes=said)
        encoder = VectorEncoder(WIDTH)
        constants = SourceConstants(0.1, 2.0, 0.05, 1e-2, 16)

        def adapter(modality: Modality) -> Adapter:
            if config.adapt.method == "frozen":
                return Frozen()
            return Rest(encoder.adaptable(), constants, config.adapt, config.batch.floor)

        pipeline = Pipeline(
            config, {"vector": encoder},
            Retrieval(
                head.codes, lambda: gallery, ToyFusion(config.answer.top), config.answer.shortlist, "cpu",
                config.answer.top,
            ),
            adapter, lambda modality: None,
            lambda modality, q, near, mask: refined(q, near, 0.05, mask)[1],
        )  # fmt: skip
        codec = Codec(config.limits, config.kafka, lambda version, key: gallery.identifier(key))
        return World(config, gallery, pipeline, codec, items, head)

    return make


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def answers_of() -> Callable[[MemorySink], dict[bytes, set[bytes]]]:
    """Distinct answer bytes per query."""

    def collect(sink: MemorySink) -> dict[bytes, set[bytes]]:
        found: dict[bytes, set[bytes]] = {}
        for record in sink.records["answers"]:
            assert record.key is not None and record.value is not None
            found.setdefault(record.key, set()).add(record.value)
        return found

    return collect
