"""The quality to expect, of a toy base: against loops, where it is known, and where there is none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy_clips import write_clip
from toy_towers import pictures, towers

from core.config import Config
from core.errors import ConfigError
from core.expected import PARTS, fitted, precision_at, read, written
from core.records import Coordinates
from core.types import Encoded, Query, QueryBatch
from encoders.base_model import Base, Parts, load_base
from encoders.head import HashHead
from encoders.norms import calibrate
from index.evidence import Evidence
from index.gathered import gathered
from index.judging import Judge
from index.versions import GalleryVersions
from monitoring.ranking import ap_and_first, counted_levels
from qshift.benchmarks.suite.picture_base import fit_picture_base
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.build import assemble
from qshift.data.emoji import EmojiSet
from qshift.methods import with_method
from qshift.observers import expected, watching
from qshift.recipes.asked import (
    HIDDEN,
    OF_CLASSES,
    WAYS,
    CleanQueries,
    Way,
    batches_asked,
    covered,
    striped,
)
from qshift.recipes.emoji_base import fit_emoji_base
from qshift.recipes.encode import BATCH, Count, collated, encoded
from qshift.recipes.expected import (
    Curves,
    _answered,
    average_precision,
    gallery_of,
    measure_expected,
    measured_answers,
)
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import Step, measure
from stream.session import Session

ITEMS, BITS, AROUND = 96, 16, 20
BATCHES = batches_asked("image")
CONFIG = with_method(Config(device="cpu"), "aligned+fused")


@pytest.fixture(scope="module")
def base() -> Base:
    tower, silent = towers()[0], Count(0, None)
    items = encoded(tower, pictures(ITEMS), silent)
    rng = np.random.default_rng(0)
    again = [
        np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        for picture in pictures(ITEMS)[:BATCH]
    ]
    statistics = calibrate(tower, collated(tower, again, silent))
    weight = rng.standard_normal((BITS, items.shape[1])).astype(np.float32)
    head = HashHead(weight, np.zeros(BITS, np.float32), {"image": items.mean(0)})
    constants, reference = measure(statistics.features, items, head, "image", Step(1e-3, 0.02, "frozen"))
    return Base(
        "toy", BITS, tower.width, {"image": tower}, head, {"image": constants}, {"image": statistics},
        {"image": reference}, "toy",
    )  # fmt: skip


@pytest.fixture(scope="module")
def items(base: Base) -> NDArray[np.float32]:
    return encoded(base.encoders["image"], pictures(ITEMS), Count(0, None))


def few(classes: int) -> list[str]:
    return [f"class {item % classes}" for item in range(ITEMS)]


def asked(labels: Sequence[str], own: bool = False) -> CleanQueries:
    return CleanQueries(pictures(ITEMS), labels, np.arange(ITEMS) if own else None)


def test_where_everything_is_right_perfect_answers_are_expected(
    base: Base, items: NDArray[np.float32]
) -> None:
    labels = few(1)
    told: list[tuple[int, int]] = []
    count = Count(BATCHES, lambda done, total, _: told.append((done, total)))
    curve = measure_expected(base, gallery_of(base, items, labels), asked(labels), count=count)
    assert curve is not None and curve.precision == pytest.approx(1.0)
    assert BATCHES * BATCH < curve.queries <= 2 * BATCHES * BATCH
    assert told == [(done, BATCHES) for done in range(1, BATCHES + 1)]


def test_where_no_other_item_is_right_nothing_is_expected(base: Base, items: NDArray[np.float32]) -> None:
    labels = few(ITEMS)
    assert measure_expected(base, gallery_of(base, items, labels), asked(labels, own=True)) is None


@pytest.mark.parametrize("own", [False, True])
def test_the_curve_is_that_of_its_answers(
    base: Base, items: NDArray[np.float32], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer again, ranked item by item, its cosine held against the clean ones item by item."""
    monkeypatch.setattr("index.evidence.AROUND", AROUND)  # of a hundred nearest all 96 items would be
    labels = [f"class {min(item % 7, 3)}" for item in range(ITEMS)]  # of several sizes: so are shares
    clean = asked(labels, own)
    gallery = gallery_of(base, items, labels)
    half = gallery.features(gallery.keys()).astype(np.float64)
    queries = base.reference["image"].features.astype(np.float64)
    usual = (queries @ half.T).max(1)  # none is a copy, and the shortlist holds every item
    drops, shares, precision, whose, quiet = [], [], [], [], []
    engine = assemble(CONFIG, base, GalleryVersions(gallery))
    named, together = [], []
    for way, rows, outcome in _answered(engine, clean, 5, list(WAYS["image"])):
        quiet.append(outcome.quiet)
        for number, twin in enumerate(
            (outcome.frozen,) if outcome.quiet else (outcome.frozen, outcome.adapted)
        ):
            whose += [2 if outcome.quiet else number] * len(rows)
            named += [way] * len(rows)
            votes: dict[str, float] = {}
            for place, row in enumerate(rows.tolist()):
                cosine = {item: float(half[item] @ twin.features[place]) for item in range(ITEMS)}
                if own:
                    del cosine[row]
                order = sorted(cosine, key=lambda item: -cosine[item])
                near = [labels[item] for item in order[:AROUND]]
                shares.append(near.count(near[0]) / len(near))
                for label in near:
                    votes[label] = votes.get(label, 0.0) + 1 / len(near)
                found = [number for number, item in enumerate(order, 1) if labels[item] == labels[row]]
                precision.append(sum(n / at for n, at in enumerate(found, 1)) / len(found))
                drops.append((usual.mean() - max(cosine.values())) / usual.std())
            clean_votes = Evidence(CONFIG.answer, base.reference, base.head.codes).clean_votes(
                gallery, "image"
            )
            far = float(np.mean(drops[-len(rows) :]))
            together += [gathered(votes, clean_votes, far)] * len(rows)
    found = measured_answers(base, gallery, clean, 5)
    # Features are kept in half precision: what is as near may change places.
    assert found.drops == pytest.approx(np.array(drops), abs=2e-2)
    for seen, right in ((found.shares, shares), (found.precision, precision)):
        assert np.isclose(seen, right, atol=1e-9).mean() > 0.97 and np.ptp(right) > 0.2
    assert found.gathered == pytest.approx(np.array(together), abs=5e-3) and found.gathered.max() > 0.02
    assert found.ways.tolist() == named and set(named) == set(WAYS["image"])
    assert found.twins.tolist() == whose and set(quiet) == {True, False} and found.classes
    curve = measure_expected(base, gallery, clean, 5)
    again = fitted(found.drops, found.precision, found.shares, found.twins, found.gathered, found.ways)
    assert curve is not None and len(curve.drops) > 1 and curve.queries == len(drops)
    one, other = written(curve), written(again)
    assert set(one) == set(other) and all((one[name] == other[name]).all() for name in one)


def test_where_no_label_is_shared_the_curve_is_of_drops_alone(base: Base, items: NDArray[np.float32]) -> None:
    curve = measure_expected(base, gallery_of(base, items, few(ITEMS)), asked(few(ITEMS)))
    assert curve is not None and curve.agreed is None
    told: list[tuple[int, int]] = []
    count = Count(BATCHES, lambda done, total, _: told.append((done, total)))
    found = measured_answers(base, gallery_of(base, items, few(ITEMS)), asked(few(ITEMS)), count=count)
    assert set(found.ways) == set(WAYS["image"]) - OF_CLASSES and told[-1] == (BATCHES, BATCHES)


@pytest.mark.parametrize("way", [covered, striped])
def test_what_hides_a_picture_hides_that_share_of_it(way: Way) -> None:
    picture = np.full((40, 50, 3), 7, np.uint8)
    for share in HIDDEN:
        shares = []
        for number in range(20):
            found = way(picture, np.random.default_rng(number), share=share)
            again = way(picture, np.random.default_rng(number), share=share)
            assert found.dtype == np.uint8 and found.shape == picture.shape and (found == again).all()
            shares.append((found != picture).any(-1).mean())
        assert np.mean(shares) == pytest.approx(share, abs=0.06)
    assert (picture == 7).all()


def test_equal_seeds_give_equal_curves(base: Base, items: NDArray[np.float32]) -> None:
    gallery, clean = gallery_of(base, items, few(4)), CleanQueries(pictures(ITEMS)[:32], few(4))
    one, again, other = (measure_expected(base, gallery, clean, seed) for seed in (0, 0, 1))
    assert one is not None and again is not None and other is not None
    assert written(one)["precision"].tobytes() == written(again)["precision"].tobytes()
    assert written(one)["precision"].tobytes() != written(other)["precision"].tobytes()


def test_precision_is_that_of_the_judge_of_late_labels(base: Base, items: NDArray[np.float32]) -> None:
    """With a shortlist that leaves most items behind it."""
    labels = few(7)
    gallery = gallery_of(base, items, labels)
    config = Config.model_validate({"answer": {"shortlist": 9, "top": 5}})
    engine = assemble(config, base, GalleryVersions(gallery))
    tower = base.encoders["image"]
    rows = encoded(tower, pictures(20, 3), Count(0, None))
    known = gallery.features(gallery.keys())
    for place, feature in enumerate(rows):
        code = base.head.codes(torch.from_numpy(feature[None]), "image")
        seen = Encoded(feature[None], code)
        counts = Judge(config.answer, engine.fusion).rankings(gallery, seen, seen, 0.0, f"class {place % 7}")
        right = np.array([label == f"class {place % 7}" for label in labels]).astype(np.int64)
        found = average_precision(gallery.distances(code)[0], known @ feature, right, 9)
        assert found == pytest.approx(ap_and_first(counted_levels(*counts[0]))[0], abs=1e-9)


def test_an_item_that_is_left_out_is_not_there(base: Base, items: NDArray[np.float32]) -> None:
    rng = np.random.default_rng(2)
    for case in range(40):
        bits = rng.integers(0, 6, 30).astype(np.int32)
        cosine, right = rng.random(30).astype(np.float32), rng.integers(0, 2, 30)
        but = int(rng.integers(30))
        without = [np.delete(column, but) for column in (bits, cosine, right)]
        found = average_precision(bits, cosine, right, 8, but)
        assert found == pytest.approx(average_precision(*without, 8)), f"case {case}"


CURVE = fitted([0.0, 3.0], [1.0, 0.0])


def vectors(tmp_path: Path) -> tuple[Path, Parts, dict[str, Clean]]:
    rows = np.random.default_rng(0).standard_normal((BATCH, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    head = hash_head({"vector": rows}, 8, items="vector")
    parts = Parts(name="small", towers=None, head=head, provenance={}, extras={"more": {"x": rows}})
    return tmp_path / "base", parts, {"vector": Clean(rows, rows, Step(1, 1), items_are="vector")}


def test_a_base_brings_its_curve(tmp_path: Path) -> None:
    folder, parts, clean = vectors(tmp_path)
    seen: list[Base] = []

    def curve(base: Base) -> Curves:
        seen.append(base)
        return {"image": CURVE, "vector": CURVE}

    finish_base(folder, parts, clean, curve)  # type: ignore[arg-type]
    found = load_base(folder)
    assert set(found.extras) == {"more", "expected-image", "expected-vector"}
    assert set(seen[0].extras) == {"more"}
    assert read(found.extras[PARTS["image"]]).precision.tolist() == [1.0, 0.0]
    assert (seen[0].reference["vector"].features == found.reference["vector"].features).all()
    first = (folder / "manifest.json").read_bytes()
    finish_base(folder, parts, clean, curve)  # type: ignore[arg-type]
    assert (folder / "manifest.json").read_bytes() == first


def test_a_curve_is_measured_without_a_second_copy_of_the_towers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model it would not fit into the folder for temporary files."""
    towers = write_clip(tmp_path / "clip")
    rows = np.random.default_rng(0).standard_normal((BATCH, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    parts = Parts(name="seen", towers=towers, head=hash_head({"image": rows}, 8), provenance={})
    linked: list[str] = []

    def symlink(source: str, target: str) -> None:
        linked.append(Path(source).name)
        os.link(source, target)

    monkeypatch.setattr("os.symlink", symlink)

    def curve(base: Base) -> Curves:
        assert "image" in base.encoders
        return {}

    finish_base(tmp_path / "base", parts, {"image": Clean(rows, rows, Step(1, 1))}, curve)
    assert sorted(linked) == ["open_clip_config.json", "open_clip_model.safetensors"]
    written = list((tmp_path / "base").rglob("open_clip*"))
    assert len(written) == 2 and not any(path.is_symlink() for path in written)


def test_a_base_without_is_whole_and_a_curve_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    folder, parts, clean = vectors(tmp_path)
    finish_base(folder, parts, clean, lambda base: {})  # type: ignore[arg-type]
    assert set(load_base(folder).extras) == {"more"}

    def fails(base: Base) -> Curves:
        raise ConfigError("no pictures")

    with pytest.raises(ConfigError):
        finish_base(folder, replace(parts, name="new"), clean, fails)  # type: ignore[arg-type]
    assert load_base(folder).name == "small"


def test_a_service_watches_what_its_base_brings(base: Base, items: NDArray[np.float32]) -> None:
    gallery = gallery_of(base, items, few(4))
    engine = assemble(CONFIG, base, GalleryVersions(gallery))
    assert expected(engine) is None
    with_curve = replace(base, extras={PARTS["image"]: written(CURVE)})
    engine = assemble(CONFIG, with_curve, GalleryVersions(gallery))
    monitor = expected(engine)
    assert monitor is not None
    tower = base.encoders["image"]
    dark = [picture // 4 for picture in pictures(BATCH, 5)]
    queries = tuple(
        Query(Coordinates("q", 0, place), "image", b"", prepared=tower.prepare(picture))
        for place, picture in enumerate(dark)
    )
    session = Session(engine.pipeline, "image")
    outcome = session.learn(session.answer(QueryBatch("0:image", 0, "image", queries)))
    monitor.observe(outcome)
    agreeing = fitted([0.0, 3.0, 0.0], [1.0, 0.0, 0.5], [1.0, 0.3, 0.3])
    engine = assemble(CONFIG, replace(base, extras={PARTS["image"]: written(agreeing)}), engine.versions)
    both = expected(engine)
    assert both is not None
    both.observe(outcome)
    evidence, found = Evidence(CONFIG.answer, base.reference, base.head.codes), monitor.of_lane("0:image")
    assert found is not None and not outcome.quiet and found.frozen != found.adapted
    for twin, value in ((outcome.frozen, found.frozen), (outcome.adapted, found.adapted)):
        drops = evidence.drops(gallery, "image", twin)
        assert drops is not None and value == pytest.approx(precision_at(CURVE, drops).mean())
    near, drops = (
        evidence.agreed(gallery, outcome.frozen).around,
        evidence.drops(gallery, "image", outcome.frozen),
    )
    told = both.of_lane("0:image")
    assert told is not None and drops is not None
    assert told.frozen == pytest.approx(precision_at(agreeing, drops, near).mean())
    quiet = replace(outcome, batch=replace(outcome.batch, lane="1:image"), quiet=True, adapted=outcome.frozen)
    gone = replace(outcome, batch=replace(outcome.batch, lane="2:image"), gallery_version="gone")
    text = replace(outcome, batch=replace(outcome.batch, lane="0:text", modality="text"))
    for other in (quiet, gone, text):
        monitor.observe(other)
    same = monitor.of_lane("1:image")
    assert same is not None and same.frozen == same.adapted == pytest.approx(found.frozen)
    assert monitor.of_lane("2:image") is None and monitor.of_lane("0:text") is None


def test_it_is_seen_before_what_shows_it(base: Base, items: NDArray[np.float32]) -> None:
    for extras in ({}, {PARTS["image"]: written(CURVE)}):
        known = replace(base, extras=extras)
        engine = assemble(CONFIG, known, GalleryVersions(gallery_of(known, items, few(4))))
        names = [type(observer).__name__ for observer in watching(engine, "", "").all()]
        assert names == [
            "JudgedQuality",
            "DriftMonitor",
            *["ExpectedMonitor"] * len(extras),
            "Metrics",
            "History",
        ]


def blocks(item: int, kinds: int = 8) -> NDArray[np.uint8]:
    """Pictures of a kind share a pattern of colours."""
    kind, one = np.random.default_rng(item % kinds), np.random.default_rng(1000 + item)
    coarse = kind.integers(0, 256, (4, 4, 3)) + one.integers(-40, 41, (4, 4, 3))
    return np.kron(np.clip(coarse, 0, 255), np.ones((12, 12, 1))).astype(np.uint8)


@pytest.mark.slow
def test_the_base_of_plain_pictures_brings_one(tmp_path: Path) -> None:
    samples = [Sample(f"{item}", blocks(item), f"kind {item % 8}") for item in range(96)]
    task = Task("blocks", "image", "image", samples, {"clean": samples}, "blocks")
    told: list[tuple[int, int]] = []
    for name in ("one", "two"):
        fit_picture_base(task, tmp_path / name, 32, lambda done, total, _: told.append((done, total)))
    first, again = (load_base(tmp_path / name) for name in ("one", "two"))
    curve = read(first.extras[PARTS["image"]])
    assert first.version == again.version and told[-1][0] == told[-1][1]
    assert curve.precision[0] > curve.precision[-1] and curve.queries >= BATCHES * BATCH


@pytest.mark.slow
def test_the_base_of_named_pictures_brings_one(tmp_path: Path) -> None:
    looks = np.stack([blocks(item, 128) for item in range(128)])
    keys = tuple(f"{item}" for item in range(128))
    data = EmojiSet(looks, looks, tuple(f"block {key}" for key in keys), keys, keys, keys, "drawn")
    told: list[tuple[int, int]] = []
    fit_emoji_base(tmp_path / "base", data, 32, progress=lambda done, total, _: told.append((done, total)))
    curve = read(load_base(tmp_path / "base").extras[PARTS["image"]])
    assert told[-1][0] == told[-1][1] and curve.queries >= BATCHES * BATCH
    assert curve.precision[0] > curve.precision[-1]
