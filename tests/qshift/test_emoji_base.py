"""What the base model says about its own clean queries, against a loop."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import ConfigError
from encoders.head import HashHead
from qshift.data.emoji import EmojiSet
from qshift.recipes.emoji_base import fit_emoji_base
from qshift.recipes.encode import BATCH
from qshift.recipes.measure import Step, measure


def unit(n: int, seed: int, width: int = 16) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_measured_constants_equal_a_loop() -> None:
    gallery = unit(150, 0)
    queries = gallery[: 2 * BATCH] + 0.3 * unit(2 * BATCH, 1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    means = {"image": gallery.mean(0), "text": queries.mean(0)}
    hashing = HashHead(unit(24, 2), np.zeros(24, np.float32), means)  # type: ignore[arg-type]
    constants, reference = measure(queries, gallery, hashing, "text", Step(0.5, 0.1))

    weight = hashing.weight.numpy()
    items = [[float(h) >= 0 for h in weight @ (g - means["image"])] for g in gallery]
    entropies, gaps, nearest = [], [], []
    for start in (0, BATCH):
        batch = queries[start : start + BATCH]
        near = []
        for q in batch:
            code = [float(h) >= 0 for h in weight @ (q - means["text"])]
            distance = [sum(a != b for a, b in zip(code, item)) for item in items]
            nearest.append(min(distance))
            short = sorted(range(150), key=lambda i: (distance[i], i))[:100]
            near.append(gallery[max(short, key=lambda i: float(gallery[i] @ q))])
        for q in batch:
            logits = [float(q @ g) / 0.1 for g in near]
            top = max(logits)
            total = sum(math.exp(v - top) for v in logits)
            p = [math.exp(v - top) / total for v in logits]
            entropies.append(-sum(v * math.log(v) for v in p if v > 0))
        gaps.append(float(np.linalg.norm(batch.mean(0) - np.mean(near, 0))))
    assert reference.entropy == pytest.approx(np.array(entropies), abs=1e-4)
    assert reference.nearest.tolist() == nearest
    assert reference.batch == constants.batch == BATCH
    assert (reference.features == queries).all()
    assert constants.source_gap == pytest.approx(sum(gaps) / 2, abs=1e-5)
    place = 0.9 * (len(entropies) - 1)
    low, high = sorted(entropies)[math.floor(place) : math.floor(place) + 2]
    assert constants.entropy_ceiling == pytest.approx(low + (high - low) * (place % 1), abs=1e-4)
    assert (constants.learning_rate, constants.temperature) == (0.5, 0.1)


def test_too_few_emoji_are_refused(tmp_path: object) -> None:
    few = np.zeros((3, 8, 8, 3), np.uint8)
    names = ("a", "b", "c")
    data = EmojiSet(few, few, names, names, names, names, "")
    with pytest.raises(ConfigError, match="at least 128"):
        fit_emoji_base(tmp_path, data)  # type: ignore[arg-type]
