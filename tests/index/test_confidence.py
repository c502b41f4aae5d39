"""How sure an answer is, against a loop over both twins' nearest cosines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_vectors import unit

from core.config import AnswerConfig
from core.expected import PARTS, fitted, written
from core.references import DriftReference, ExpectedQuality
from core.types import Encoded, Twin
from encoders.head import HashHead
from index.confidence import Confidence
from index.evidence import AROUND, Evidence
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


ANSWER = AnswerConfig(shortlist=ITEMS)


def evidence() -> Evidence:
    zeros = np.zeros(ITEMS, np.float32)
    return Evidence(ANSWER, {"image": DriftReference(CLEAN, zeros, zeros)}, HEAD.codes)


def made(
    curve: ExpectedQuality = CURVE, gallery: VersionedGallery = GALLERY
) -> tuple[Confidence, TwinFusion]:
    known = evidence()
    sure = Confidence(known, {PARTS["image"]: written(curve)}, {gallery.version: gallery}.get)
    return sure, TwinFusion(ANSWER, known)


def twin(fusion: TwinFusion, seed: int, shift: float, among: Any = None, most: int = ITEMS) -> Twin:
    rng = np.random.default_rng(seed)
    near = FEATURES[rng.integers(ITEMS, size=ROWS)] + 0.1 * rng.normal(size=(ROWS, WIDTH))
    features = unit(near + shift * np.eye(WIDTH)[0])
    encoded = Encoded(features, coded(features))
    hits = GALLERY.search(encoded.codes, most)
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
    curve = {PARTS["image"]: written(CURVE)}
    for extras, known in (({}, evidence()), (curve, Evidence(AnswerConfig(), {}, HEAD.codes))):
        unknown = Confidence(known, extras, {GALLERY.version: GALLERY}.get)
        assert unknown(GALLERY.version, "image", frozen, frozen, none) is None


def agreeing(keys: list[int], labels: list[str]) -> float:
    first, *others = [labels[key] for key in keys[:AROUND]]
    return (1 + others.count(first)) / (1 + len(others))


CLASSES = [f"class {number % 3}" for number in range(ITEMS)]
OF_CLASSES = VersionedGallery(BITS, NAMES, coded(FEATURES), CLASSES, FEATURES, backend="exact")
OF_FROZEN = [0.9, 0.8, 0.3, 0.1, 0.7, 0.6, 0.2, 0.0]
AGREED = fitted(
    [-1.0, 0.5, 2.0, 30.0] * 4, [*OF_FROZEN, *(0.7 * one for one in OF_FROZEN)], ([0.9] * 4 + [0.3] * 4) * 2,
    [0] * 8 + [1] * 8,
)  # fmt: skip


@pytest.mark.parametrize("among", [None, np.arange(0, ITEMS, 3)], ids=["all", "one class"])
def test_in_a_gallery_of_classes_it_asks_whether_neighbours_agree(among: Any) -> None:
    """Of the whole gallery: what a filter leaves may agree because the filter names it."""
    sure, fusion = made(AGREED, OF_CLASSES)
    frozen, adapted = twin(fusion, 1, 1.0, among, 15), twin(fusion, 2, 0.3, among, 15)
    found = sure(OF_CLASSES.version, "image", frozen, adapted, np.ones(ROWS, np.float32))
    right, shares = np.zeros(ROWS), []
    kept = OF_CLASSES.features(OF_CLASSES.keys())
    assert AGREED.agreed is not None
    usual = [max(float(clean @ item) for item in kept) for clean in CLEAN]
    for side, both in zip((frozen, adapted), AGREED.agreed):
        for row, query in enumerate(side.features):
            order = sorted(side.hits.keys[row].tolist(), key=lambda key: -float(query @ kept[key]))
            shares.append(agreeing(order, CLASSES))
            near = max(float(query @ kept[key]) for key in (order if among is None else among))
            drop = (np.mean(usual) - near) / np.std(usual)
            one = np.interp(drop, both.drops, both.by_drop) + np.interp(
                shares[-1], both.shares, both.by_share
            )
            right[row] += float(np.clip(one, 0, 1)) / 2
    assert found is not None and found == pytest.approx(right, abs=1e-5) and len(set(shares)) > 2


def test_it_asks_how_far_the_batch_has_gathered_where_its_curve_has_such_a_term() -> None:
    """Of the twin whose answer it is, and of the whole gallery."""
    assert AGREED.agreed is not None
    term = {"gathered": np.float32([0, 1]), "by_gathered": np.float32([0, -0.4])}
    falling = replace(AGREED, agreed=tuple(replace(one, **term) for one in AGREED.agreed))  # type: ignore[arg-type]
    (sure, fusion), (other, _) = made(falling, OF_CLASSES), made(AGREED, OF_CLASSES)
    for adapted, weight in enumerate((0.0, np.inf)):
        twins = twin(fusion, 1, 2.0, None, 15), twin(fusion, 2, 1.0, None, 15)
        weights = np.full(ROWS, weight, np.float32)
        found, plain = (one(OF_CLASSES.version, "image", *twins, weights) for one in (sure, other))
        gathered = evidence().gathered(OF_CLASSES, "image", twins[adapted])
        assert found is not None and plain is not None and len(set(gathered)) == 1 and gathered[0] > 0
        lost, inside = 0.4 * gathered, (plain > 0) & (plain < 1)  # elsewhere the sum was cut before
        assert inside.any() and found[inside] == pytest.approx(np.maximum(plain - lost, 0)[inside], abs=1e-6)


def test_without_classes_it_is_the_curve_to_the_bit() -> None:
    """Whatever else the base has learned of classes."""
    (sure, fusion), (other, _) = made(AGREED), made(replace(AGREED, agreed=None))
    frozen, adapted = twin(fusion, 1, 1.0), twin(fusion, 2, 0.3)
    weights = np.ones(ROWS, np.float32)
    found, plain = (one(GALLERY.version, "image", frozen, adapted, weights) for one in (sure, other))
    assert found is not None and plain is not None and found.tobytes() == plain.tobytes()


def test_neighbours_of_a_batch_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By weights first, and by the confidence of the same twins."""
    monkeypatch.setattr("index.evidence.CLASSES", 0.2)  # few agree here
    known = evidence()
    fusion = TwinFusion(ANSWER, known)
    frozen, adapted = twin(fusion, 1, 1.0), twin(fusion, 2, 0.3)
    known(OF_CLASSES, "image", frozen, adapted, np.ones(ROWS, np.bool_))
    first, second = known._agreed
    assert first[0] is frozen and second[0] is adapted
    assert known.agreed(OF_CLASSES, frozen) is first[2] and known.agreed(OF_CLASSES, adapted) is second[2]
    assert known.agreed(GALLERY, frozen) is not first[2] and len(known._agreed) == 2
