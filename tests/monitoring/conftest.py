"""Outcomes to observe: real values, small and seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from core.records import Coordinates
from core.types import AdaptationStep, Encoded, Hits, Outcome, Query, QueryBatch, Twin

TOPIC = "qshift.queries"
DISTANT = 2147483647


def _outcome(
    offsets: Sequence[int],
    *,
    lane: str = "0:image",
    seq: int = 0,
    frozen_codes: np.ndarray | None = None,
    adapted_codes: np.ndarray | None = None,
    features: np.ndarray | None = None,
    entropy: np.ndarray | None = None,
    keys: np.ndarray | None = None,
    distances: np.ndarray | None = None,
    served_keys: np.ndarray | None = None,
    contents: Sequence[str | bytes] | None = None,
    step: AdaptationStep | None = None,
    seconds: dict[str, float] | None = None,
    repeated: bool = False,
    version: str = "v1",
) -> Outcome:
    rows = len(offsets)
    modality = lane.split(":")[1]
    contents = contents or ["a cat"] * rows
    queries = tuple(
        Query(Coordinates(TOPIC, 0, offset), modality, content) for offset, content in zip(offsets, contents)
    )
    zeros = np.zeros((rows, 2), np.uint8)
    frozen = zeros if frozen_codes is None else frozen_codes
    adapted = frozen if adapted_codes is None else adapted_codes
    features = np.zeros((rows, 4), np.float32) if features is None else features
    keys = np.tile(np.arange(5), (rows, 1)) if keys is None else keys
    distances = np.zeros(keys.shape, np.int32) if distances is None else distances
    hits = Hits(keys, distances)
    served = hits if served_keys is None else Hits(served_keys, np.zeros(served_keys.shape, np.int32))
    entropy = np.zeros(rows, np.float32) if entropy is None else entropy
    return Outcome(
        QueryBatch(lane, seq, modality, queries),
        Twin(Encoded(features, frozen), hits, hits), Twin(Encoded(features, adapted), served, served), served,
        np.ones(rows, np.float32), version, "5f" * 32, entropy, step,
        seconds or {}, repeated=repeated,
    )  # fmt: skip


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    return _outcome
