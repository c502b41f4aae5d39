"""Composed queries of a fitted base: clean ones are measured, and a shifted batch is heard of both twins."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.config import Config
from core.records import Coordinates
from core.types import Outcome, Query, QueryBatch
from encoders.base_model import Base, load_base
from encoders.scratch import ScratchConfig
from index.versions import GalleryVersions
from qshift.build import assemble
from qshift.data.emoji import EmojiSet
from qshift.recipes.composed import composed_clean
from qshift.recipes.encode import BATCH
from qshift.recipes.expected import gallery_of
from qshift.recipes.measure import forward_only
from qshift.recipes.open_clip_base import fit_open_clip_base
from stream.session import Session

ITEMS, BITS = 40, 16
ANY_DROP = Config.model_validate({"answer": {"evidence": (-99.0, -90.0)}, "batch": {"floor": 8}})
"""Any difference from clean queries counts fully."""


def drawn_set() -> EmojiSet:
    """Blocks of seven heights, six widths."""
    colour = np.full((ITEMS, 24, 24, 3), 255, np.uint8)
    for item in range(ITEMS):
        colour[item, : 3 + 3 * (item % 7), : 4 + 3 * (item // 7)] = (200, 0, 60)
    ids = tuple(f"{item}" for item in range(ITEMS))
    names = tuple(f"block {item % 7} {item // 7}" for item in range(ITEMS))
    return EmojiSet(colour, colour, names, ids, ids, ids, "drawn by a test")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    small = ScratchConfig(
        image_size=16, patch=8, width=16, heads=2, image_layers=1, text_layers=1, embed=16, context=8,
        steps=2, batch=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("composed") / "base"
    fit_open_clip_base(folder, drawn_set(), BITS, 0, None, small)
    return load_base(folder)


def asked(base: Base) -> Outcome:
    """A batch of dark pictures with names, by a lane that has seen nothing."""
    data, encoder = drawn_set(), base.encoders["composed"]
    items = base.encoders["image"]
    gallery = items.encode(items.collate([items.prepare(one) for one in data.colour], ITEMS)).numpy()
    engine = assemble(ANY_DROP, base, GalleryVersions(gallery_of(base, gallery, data.labels)))
    dark = data.colour // 3
    queries = tuple(
        Query(Coordinates("q", 0, i), "composed", b"", prepared=encoder.prepare((dark[i], data.names[i])))
        for i in range(16)
    )
    session = Session(engine.pipeline, "composed")
    return session.learn(session.answer(QueryBatch("0:composed", 0, "composed", queries)))


def test_the_base_has_measured_composed_queries(base: Base) -> None:
    reference = base.reference["composed"].features
    assert reference.shape == (2 * BATCH, 16) and base.constants["composed"].method == "frozen"
    assert base.head.means["composed"].numpy() == pytest.approx(reference.mean(0), abs=1e-6)
    # Half of each is a clean picture, the other half a clean text, but not of that picture.
    looks, words = base.reference["image"].features, base.reference["text"].features
    for row in range(0, 2 * BATCH, 17):
        mean = looks[row] / 2 + words[(row + BATCH) % (2 * BATCH)] / 2
        assert reference[row] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_both_twins_are_heard_of_shifted_composed_queries(base: Base) -> None:
    outcome = asked(base)
    assert (outcome.weights > 0).all() and not outcome.quiet
    assert not np.array_equal(outcome.adapted.features, outcome.frozen.features)
    assert outcome.step.updated  # its statistics are remembered


def test_without_a_clean_reference_the_frozen_twin_answers(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    """As in bases of before: their composed queries were not measured."""
    older = replace(
        base,
        constants={kind: one for kind, one in base.constants.items() if kind != "composed"},
        reference={kind: one for kind, one in base.reference.items() if kind != "composed"},
    )
    for _ in range(2):  # a run of its own each, with the one base
        outcome = asked(older)
        assert outcome.quiet and (outcome.weights == 0).all()
    assert [record.message.count("no clean reference") for record in caplog.records].count(1) == 1


def test_no_picture_is_composed_with_its_own_text() -> None:
    rows = torch.eye(BATCH).numpy()
    own = np.arange(BATCH)
    clean = composed_clean(rows, rows, rows, forward_only(1e-3, 0.05), own)
    assert clean.own is own and clean.items is rows and clean.items_are == "image"
    for row, query in enumerate(clean.queries):
        assert sorted(np.flatnonzero(query)) == sorted({row, (row + BATCH // 2) % BATCH})
        assert np.linalg.norm(query) == pytest.approx(1)
