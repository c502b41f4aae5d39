"""How sure an answer is, against a loop over both twins' nearest cosines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_vectors import unit

from core.config import AnswerConfig
from core.expected import EXPECTED, fitted, written
from core.references import DriftReference
from core.types import Encoded, Twin
from encoders.head import HashHead
from index.confidence import Confidence
from index.evidence import Evidence
from index.fusion import TwinFusion
from index.gallery import VersionedGallery

WIDTH, BITS, ITEMS, ROWS = 8, 32, 40, 12
RNG = np.random.default_rng(0)
FEATURES = unit(RNG.normal(size=(ITEMS, WIDTH)))
HEAD = HashHead(
    RNG.normal(size=(BITS, WIDTH)).astype(np.float32), np.zeros(BITS, np.float32), {"image": np.zeros(WIDTH)}
)
CLEAN = unit(FEATURES + 0.1 * RNG.normal(size=(ITEMS, WIDTH)))
CURVE = fitted([-1.0, 0.5, 2.0, 30.0], [0.9, 0.8, 0.3, 0.1])


def coded(features: np.ndarray) -> np.ndarray:
    return HEAD.codes(torch.from_numpy(features), "image")


NAMES = [f"item {number}" for number in range(ITEMS)]
GALLERY = VersionedGallery(BITS, NAMES, coded(FEATURES), NAMES, FEATURES, backend="exact")


def made(**config: Any) -> tuple[Confidence, TwinFusion]:
    answer, zeros = AnswerConfig.model_validate({"shortlist": ITEMS, **config}), np.zeros(ITEMS, np.float32)
    evidence = Evidence(answer, {"image": DriftReference(CLEAN, zeros, zeros)}, HEAD.codes)
    versions = {GALLERY.version: GALLERY}
    return Confidence(evidence, {EXPECTED: written(CURVE)}, versions.get), TwinFusion(answer, evidence)


def twin(fusion: TwinFusion, seed: int, shift: float, among: Any = None) -> Twin:
    rng = np.random.default_rng(seed)
    near = FEATURES[rng.integers(ITEMS, size=ROWS)] + 0.1 * rng.normal(size=(ROWS, WIDTH))
    features = unit(near + shift * np.eye(WIDTH)[0])
    encoded = Encoded(features, coded(features))
    hits = GALLERY.search(encoded.codes, ITEMS)
    shortlist = None if among is None else GALLERY.search(encoded.codes, ITEMS, among)
    return fusion.twin(GALLERY, encoded, hits, shortlist)


def expected(features: np.ndarray, keys: np.ndarray) -> list[float]:
    """The curve at the drop of each query among some items."""
    kept = GALLERY.features(GALLERY.keys())
    usual = [max(float(clean @ item) for item in kept) for clean in CLEAN]
    mean, sd = float(np.mean(usual)), float(np.std(usual))
    found = []
    for query in features:
        nearest = max(float(query @ kept[key]) for key in keys)
        found.append(float(np.interp((mean - nearest) / sd, CURVE.drops, CURVE.precision)))
    return found


@pytest.mark.parametrize("among", [None, np.arange(0, ITEMS, 5)], ids=["all", "filtered"])
def test_it_is_the_mean_of_both_twins_by_their_weights(among: Any) -> None:
    sure, fusion = made()
    frozen, adapted = twin(fusion, 1, 1.0, among), twin(fusion, 2, 0.3, among)
    keys = np.arange(ITEMS) if among is None else among
    weights = np.array([0, 0.25, 0.5, 1, 2, 4, np.inf, 0, 1, 1, 1, 1], np.float32)
    found = sure(GALLERY.version, "image", frozen, adapted, weights)
    assert found is not None
    sides = zip(expected(frozen.features, keys), expected(adapted.features, keys), weights.tolist())
    right = [b if w == np.inf else (a + w * b) / (1 + w) for a, b, w in sides]
    assert found.tolist() == pytest.approx(right, abs=1e-5) and len({round(x, 3) for x in right}) > 5


def test_a_quiet_batch_is_the_frozen_twins() -> None:
    sure, fusion = made()
    frozen = twin(fusion, 1, 0.2)
    found = sure(GALLERY.version, "image", frozen, frozen, np.zeros(ROWS, np.float32))
    assert found is not None and found.tolist() == pytest.approx(
        expected(frozen.features, np.arange(ITEMS)), abs=1e-5
    )


def test_where_nothing_is_allowed_the_curve_is_at_its_end() -> None:
    sure, fusion = made()
    frozen = twin(fusion, 1, 0.2, np.empty(0, np.int64))
    found = sure(GALLERY.version, "image", frozen, frozen, np.zeros(ROWS, np.float32))
    assert found is not None and found.tolist() == pytest.approx([0.1] * ROWS)


def test_nothing_is_said_without_curve_gallery_or_scores() -> None:
    sure, fusion = made()
    frozen, none = twin(fusion, 1, 0.2), np.zeros(ROWS, np.float32)
    assert sure(GALLERY.version, "text", frozen, frozen, none) is None
    assert sure("gone", "image", frozen, frozen, none) is None
    by_codes = replace(frozen, answer=replace(frozen.answer, scores=None))
    assert sure(GALLERY.version, "image", by_codes, by_codes, none) is None
    evidence = Evidence(AnswerConfig(), {}, HEAD.codes)
    for extras, known in (({}, made()[0]._evidence), ({EXPECTED: written(CURVE)}, evidence)):
        unknown = Confidence(known, extras, {GALLERY.version: GALLERY}.get)
        assert unknown(GALLERY.version, "image", frozen, frozen, none) is None
