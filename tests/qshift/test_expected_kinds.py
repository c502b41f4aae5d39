"""The quality to expect of texts, composed queries, clips and vectors: what asks, how it is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_embeddings import World
from toy_towers import pictures, towers

from core.config import Config
from core.expected import PARTS, read, written
from core.filters import Wanted
from core.readers.vectors import read_vectors
from core.records import Coordinates
from core.types import Modality, Query, QueryBatch
from encoders.base_model import Base, load_base
from encoders.composed import Composed
from encoders.head import HashHead
from encoders.norms import calibrate
from encoders.sequence import FrameSequence
from index.versions import GalleryVersions
from qshift.build import assemble
from qshift.recipes.asked import STRENGTHS, WAYS, CleanQueries, batches_asked, noisy, offset, scaled
from qshift.recipes.composed import composed_clean, composed_pairs
from qshift.recipes.encode import BATCH, Count, collated, encoded
from qshift.recipes.expected import curves_of, first_found, gallery_of
from qshift.recipes.measure import forward_only, measure
from qshift.recipes.vectors import build_vector_gallery, fit_vector_base
from qshift.session import Session as Loop
from stream.session import Session

ITEMS, BITS = 96, 16
STEP, SILENT = forward_only(1e-3, 0.05), Count(0, None)
RNG = np.random.default_rng(0)
NAMES = ["".join(RNG.choice(list("abcdefghijkl"), 7)) for _ in range(ITEMS)]
LABELS = [f"class {item % 4}" for item in range(ITEMS)]
CLIPS = [(one, other) for one, other in zip(pictures(ITEMS), pictures(ITEMS, 1))]
ASKED: dict[Modality, CleanQueries] = {
    "text": CleanQueries(NAMES, LABELS, modality="text"),
    "composed": composed_pairs(pictures(ITEMS), NAMES, LABELS),
    "sequence": CleanQueries(CLIPS, LABELS, np.arange(ITEMS), "sequence"),
}


@pytest.fixture(scope="module")
def base() -> Base:
    """Toy towers, and clean queries of each kind."""
    image, text = towers()
    encoders = {
        "image": image,
        "text": text,
        "composed": Composed(image, text),
        "sequence": FrameSequence(image),
    }
    items = encoded(image, pictures(ITEMS), SILENT)
    weight = np.random.default_rng(1).standard_normal((BITS, items.shape[1])).astype(np.float32)
    seen = {kind: encoded(encoders[kind], ASKED[kind].contents[:BATCH], SILENT) for kind in ASKED}
    means = {"image": items.mean(0), **{kind: rows.mean(0) for kind, rows in seen.items()}}
    head = HashHead(weight, np.zeros(BITS, np.float32), means)
    measured = {kind: measure(rows, items, head, kind, STEP) for kind, rows in seen.items()}
    statistics = {"image": calibrate(image, collated(image, pictures(ITEMS)[:BATCH], SILENT))}
    return Base(
        "toy", BITS, image.width, encoders, head, {kind: one for kind, (one, _) in measured.items()},
        statistics, {kind: one for kind, (_, one) in measured.items()}, "toy",
    )  # fmt: skip


@pytest.fixture(scope="module")
def items(base: Base) -> NDArray[np.float32]:
    return encoded(base.encoders["image"], pictures(ITEMS), SILENT)


@pytest.mark.parametrize("kind", ["text", "composed", "sequence"])
def test_each_kind_has_a_curve_a_confidence_and_a_threshold(
    base: Base, items: NDArray[np.float32], kind: Modality
) -> None:
    gallery, told = gallery_of(base, items, LABELS), []
    count = Count(batches_asked(kind), lambda done, total, _: told.append((done, total)))
    curves = curves_of(base, gallery, [ASKED[kind]], 3, count)
    assert set(curves) == {kind} and told[-1] == (batches_asked(kind),) * 2
    assert curves[kind].queries >= batches_asked(kind) * BATCH and curves[kind].agreed is not None
    one, two = (written(found[kind]) for found in (curves, curves_of(base, gallery, [ASKED[kind]], 3)))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    brought = replace(base, extras={PARTS[kind]: written(curves[kind])})
    engine = assemble(Config(device="cpu"), brought, GalleryVersions(gallery))
    contents, wanted = ASKED[kind].contents, [Wanted(), Wanted(threshold=1.0), Wanted(threshold=0.0)]
    asked = [
        engine.pipeline.admit(Query(Coordinates("q", 0, place), kind, contents[place], wanted=wants))
        for place, wants in enumerate(wanted)
    ]
    answered = engine.pipeline.answer(Session(engine.pipeline, kind), QueryBatch("0", 0, kind, tuple(asked)))
    decision = engine.codec.decisions(answered)
    assert all(sure is not None and 0 <= sure < 1 for sure in decision.confidence)
    assert decision.abstained.tolist() == [False, True, False]


def test_changes_that_nobody_asked_for_are_right_with_either_part() -> None:
    found = composed_pairs(pictures(5), list("abcde"), ["1", "2", "3", "4", "1"])
    assert [text for _, text in found.contents] == ["d", "e", "a", "b", "c"]
    assert found.labels == [("1", "4"), ("2", "1"), ("3", "1"), ("4", "2"), ("1", "3")]
    rows = np.eye(4, dtype=np.float32)
    pairs = composed_pairs(pictures(4), list("0123"), list("0123"))
    for place, query in enumerate(composed_clean(rows, rows, rows, STEP).queries):
        parts = {int(np.flatnonzero(rows[place])[0]), int(pairs.contents[place][1])}
        assert set(np.flatnonzero(query).tolist()) == parts, "the same pairs as the reference"


def test_every_way_gives_what_its_kind_prepares(base: Base) -> None:
    contents = {"image": pictures(1)[0], **{kind: asked.contents[0] for kind, asked in ASKED.items()}}
    contents["text"] = "a small green parrot eats seven red apples"
    for kind, content in contents.items():
        looks = [way(content, np.random.default_rng(0)) for way in WAYS[kind].values()]
        assert all(base.encoders[kind].prepare(look) is not None for look in looks)
        # Of a tiny picture the weakest may leave all as it was.
        assert len({repr(look) for look in looks}) >= len(looks) - 3, kind
    typed = [
        WAYS["text"]["typos/6"]("a small green parrot", np.random.default_rng(seed)) for seed in (0, 0, 1)
    ]
    assert typed[0] == typed[1] != typed[2] and WAYS["text"]["clean"]("as it is", RNG) == "as it is"


@pytest.mark.parametrize("strength", STRENGTHS)
def test_vectors_are_moved_by_so_much(strength: float) -> None:
    one, other = np.random.default_rng(2).standard_normal((2, 16)).astype(np.float32)
    draws = [np.random.default_rng(seed) for seed in (0, 0, 1)]
    by = [noisy(one, draw, strength) - one for draw in draws]
    assert np.linalg.norm(by[0]) == pytest.approx(strength * np.linalg.norm(one), rel=1e-4)
    assert (by[0] == by[1]).all() and (by[0] != by[2]).any()
    moved = [offset(row, draws[0], strength) - row for row in (one, other)]
    unit = [row / np.linalg.norm(row) for row in moved]
    assert unit[0] == pytest.approx(unit[1], abs=1e-4), "the same direction for all"
    factors = [scaled(row, draws[0], strength) / row for row in (one, other)]
    assert factors[0] == pytest.approx(factors[1], rel=1e-4) and np.ptp(factors[0]) > 0


def test_what_a_clean_query_finds_first_leaves_its_own_out() -> None:
    rows = np.random.default_rng(3).standard_normal((6, 4)).astype(np.float32)
    own = np.array([4, 0])
    asking = rows[own]
    assert first_found(asking, rows).tolist() == [int(np.argmax(rows @ row)) for row in asking]
    for place, found in zip(own, first_found(asking, rows, own).tolist()):
        others = [item for item in range(6) if item != place]
        assert found == max(others, key=lambda item: float(rows[item] @ rows[place]))


@pytest.mark.parametrize("labelled", [True, False])
def test_vectors_with_and_without_labels(tmp_path: Path, labelled: bool) -> None:
    world = World(5, width=32, clusters=12)
    rows, labels = world.drawn(300, 0)
    np.savez(tmp_path / "items.npz", vectors=rows, **({"labels": np.array(labels)} if labelled else {}))
    for name in ("one", "two"):
        fit_vector_base(tmp_path / name, read_vectors(tmp_path / "items.npz"), bits=64)
    base = load_base(tmp_path / "one")
    assert base.version == load_base(tmp_path / "two").version
    curve = read(base.extras[PARTS["vector"]])
    assert (curve.agreed is not None) == labelled and curve.precision[0] > curve.precision[-1] + 0.2
    gallery = build_vector_gallery(base, read_vectors(tmp_path / "items.npz"))
    gallery.save(tmp_path / "gallery")
    loop = Loop(tmp_path / "one", tmp_path / "gallery", config=Config(device="cpu"))
    clean, _ = world.drawn(64, 1)
    sure, lost = (
        np.mean(loop.answer(list(asked)).confidence)
        for asked in (clean, clean + 3 * RNG.standard_normal(clean.shape) / np.sqrt(32))
    )
    assert 1 >= sure > lost + 0.1 > 0
