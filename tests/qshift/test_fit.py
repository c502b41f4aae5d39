"""Fitting a base model from scratch: what is written, loaded and said."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from core.errors import ConfigError
from core.types import Modality
from encoders.base_model import Base, load_base
from encoders.scratch import ScratchConfig
from qshift.data.emoji import EmojiSet
from qshift.demo.fit import MODELS, fit
from qshift.recipes.domains.material import FitOptions
from qshift.recipes.encode import BATCH
from qshift.recipes.finish import hash_head
from qshift.recipes.measure import ALIGNED, BLOCK, MENDED, PAIRS, first_hits, measure
from qshift.recipes.open_clip_base import choose_step, fit_open_clip_base

QUICK = ScratchConfig(
    image_size=16, patch=8, width=16, heads=2, image_layers=1, text_layers=1, embed=16, context=16, steps=3,
    batch=16, warm_up=1,
)  # fmt: skip
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")


def dots(n: int, side: int = 24) -> EmojiSet:
    """n pictures of black bars on two edges; the last two look the same and share a label."""
    colour = np.full((n, side, side, 3), 255, np.uint8)
    for item in range(n):
        colour[item, 2 : 2 + 3 * (item % 7), 2:8] = 0
        colour[item, 12:18, 8 : 8 + 2 * (item // 7)] = (200, 0, 60)
    colour[n - 1] = colour[n - 2]
    names = tuple(f"{NUMBERS[item % 7]} high {NUMBERS[item // 7]} wide" for item in range(n))
    ids = tuple(f"{item}" for item in range(n))
    return EmojiSet(colour, colour, names, ids, ids, (*ids[:-1], ids[-2]), "drawn by a test")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int, str]]]:
    calls: list[tuple[int, int, str]] = []
    folder = tmp_path_factory.mktemp("fit") / "base"
    fit_open_clip_base(folder, dots(40), 16, 5, lambda *call: calls.append(call), QUICK)
    return folder, calls


@pytest.fixture(scope="module")
def base(written: tuple[Path, list[tuple[int, int, str]]]) -> Base:
    return load_base(written[0])


def test_base_is_whole(written: tuple[Path, list[tuple[int, int, str]]], base: Base) -> None:
    assert (base.name, base.bits, base.width) == ("open_clip", 16, 16)
    assert set(base.encoders) == {"image", "text", "sequence", "composed"}
    # Those of sequences are the pictures'; composed queries have their own.
    assert set(base.constants) == set(base.reference) == {"image", "text", "sequence", "composed"}
    assert base.constants["sequence"] == base.constants["image"]
    made = base.constants["composed"]
    assert made != base.constants["image"] and (made.method, made.why) == ("frozen", ALIGNED)
    # Clean statistics of the pictures' LayerNorms; clips and composed queries have the same tower.
    assert set(base.calibration) == {"image", "sequence", "composed"}
    for modality in ("image", "text"):
        encoder = base.encoders[modality]
        assert (encoder.hook_points().widths != ()) == (modality == "image")
        assert encoder.adaptable() and all("ln_" in name for name in encoder.adaptable())
        constants, reference = base.constants[modality], base.reference[modality]
        assert (constants.learning_rate, constants.temperature, constants.batch) == (3e-3, 0.05, BATCH)
        assert reference.features.shape == (2 * BATCH, 16)  # 40 pictures, seen several times
        assert np.linalg.norm(reference.features, axis=1) == pytest.approx(1, abs=1e-5)
    calls = written[1]
    assert [call[0] for call in calls] == list(range(1, calls[-1][1] + 1))
    assert base.provenance["pictures"] == "drawn by a test"
    assert base.provenance["training"]["steps"] == 3


def test_constants_are_those_of_the_loaded_towers(base: Base) -> None:
    """Gallery features from the written towers, and clean queries from the reference, measure the same."""
    data, image = dots(40), base.encoders["image"]
    prepared = [image.prepare(picture) for picture in data.colour]
    gallery = image.encode(image.collate(prepared, len(prepared))).numpy()
    assert base.head.means["image"].numpy() == pytest.approx(gallery.mean(0), abs=1e-5)
    text = base.encoders["text"]
    words = [text.prepare(data.captions(item)[0]) for item in range(40)]
    texts = text.encode(text.collate(words, 40)).numpy()
    hits = 0
    for item, row in enumerate(texts):
        best = max(range(40), key=lambda i: float(row @ gallery[i]))
        hits += data.labels[best] == data.labels[item]
    assert base.provenance["text_to_image_r1"] == pytest.approx(hits / 40)
    known = {tuple(row) for row in texts.round(4).tolist()}
    first = {tuple(row) for row in base.reference["text"].features[:40].round(4).tolist()}
    assert first == known  # the first copies of the clean queries are the names themselves
    modality: Modality
    for modality in ("image", "text"):
        queries = base.reference[modality].features
        constants, reference = measure(queries, gallery, base.head, modality, choose_step(modality))
        assert constants.method == base.constants[modality].method == "frozen"
        assert base.constants[modality].why == (MENDED if modality == "text" else ALIGNED)
        assert constants.source_gap == pytest.approx(base.constants[modality].source_gap, abs=1e-5)
        assert constants.entropy_ceiling == pytest.approx(base.constants[modality].entropy_ceiling, abs=1e-4)
        assert (reference.nearest == base.reference[modality].nearest).all()


def test_seed_decides_every_byte(
    tmp_path: Path, written: tuple[Path, list[tuple[int, int, str]]], base: Base
) -> None:
    threads = torch.get_num_threads()
    for seed in (5, 6):
        fit_open_clip_base(tmp_path / str(seed), dots(40), 16, seed, config=QUICK)
    assert load_base(tmp_path / "5").version == base.version != load_base(tmp_path / "6").version
    assert torch.get_num_threads() == threads


def test_first_hits() -> None:
    gallery: NDArray[np.float32] = np.eye(4, dtype=np.float32)
    texts = gallery[[0, 2, 2, 0]]
    assert first_hits(texts, gallery, ("a", "b", "c", "d")) == 0.5
    assert first_hits(texts, gallery, ("a", "c", "c", "a")) == 1.0


def test_the_reference_knows_what_its_queries_were_made_of() -> None:
    draw = np.random.default_rng(0)
    gallery = draw.standard_normal((100, 16)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    own = draw.permutation(100)[:64]
    crops = gallery[own] + 0.05 * draw.standard_normal((64, 16)).astype(np.float32)
    crops /= np.linalg.norm(crops, axis=1, keepdims=True)
    head = hash_head({"image": gallery, "composed": gallery}, 16)
    found = measure(crops, gallery, head, "image", choose_step("image"), own=own)[1].own
    assert found is not None and (found == gallery[own]).all()
    assert measure(crops, gallery, head, "image", choose_step("image"))[1].own is None
    composed = measure(crops, gallery, head, "composed", choose_step("image"), own=own)
    assert composed[1].own is None  # a change leads away from the picture, which may well come back


def test_large_galleries_are_measured_block_by_block() -> None:
    """What is looked at in blocks is what it is in one piece."""
    draw = np.random.default_rng(0)
    gallery, queries = (draw.standard_normal((n, 16)).astype(np.float32) for n in (BLOCK + 5000, 320))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries[:64] = gallery[-64:]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    assert len(queries) * len(gallery) > PAIRS
    head = hash_head({"image": gallery[:500]}, 16)
    own = np.arange(len(gallery) - 64, len(gallery), dtype=np.int64)
    constants, reference = measure(queries[:64], gallery, head, "image", choose_step("image"), own=own)
    ours, theirs = (head.codes(torch.from_numpy(rows), "image") for rows in (queries[:64], gallery))
    for row, code in enumerate(ours):
        distances = np.bitwise_count(code ^ theirs).sum(1).astype(float)
        distances[own[row]] = np.inf
        assert reference.nearest[row] == distances.min()
    assert np.isfinite(constants.source_gap) and reference.own is None  # exact copies tell themselves
    wanted = [int((gallery @ query).argmax()) for query in queries]
    assert first_hits(queries, gallery, range(len(gallery)), wanted) == 1.0


@pytest.mark.parametrize(
    ("n", "bits", "message"),
    [(8, 16, "8 pictures are too few for 16 bits: expected at least 16"), (40, 12, "divisible by 8")],
)
def test_what_the_hash_head_would_refuse_is_said_first(
    tmp_path: Path, n: int, bits: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_open_clip_base(tmp_path / "base", dots(n), bits, config=QUICK)
    assert not (tmp_path / "base").exists()


def test_more_bits_than_width_from_few_pictures(tmp_path: Path) -> None:
    fit_open_clip_base(tmp_path / "base", dots(5), 24, config=QUICK)
    found = load_base(tmp_path / "base")
    assert found.bits == 24 and len(found.reference["image"].features) == 2 * BATCH


def test_command_chooses_the_model(tmp_path: Path) -> None:
    assert set(MODELS) == {"two-tower", "distil", "open_clip"}
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for item in range(3):
        Image.new("RGB", (8, 6), (80 * item, 0, 0)).save(pictures / f"red {item}.png")
    console = Console(file=io.StringIO())
    for model, message in (
        ("tree", "no method 'tree': expected one of two-tower, distil, open_clip, psca, couple, tpsnet"),
        ("two-tower", "3 pictures are too few for a base: expected at least 128"),
        ("open_clip", "3 pictures are too few for 64 bits"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(model, pictures, None, tmp_path / "base", FitOptions(), console)


@pytest.mark.slow
def test_names_find_their_pictures(tmp_path: Path) -> None:
    config = ScratchConfig(
        image_size=32, patch=8, image_layers=2, text_layers=1, context=16, steps=300, batch=48, rotation=0.1
    )
    fit_open_clip_base(tmp_path / "base", dots(49), 32, config=config)
    found = load_base(tmp_path / "base")
    assert found.provenance["text_to_image_r1"] > 0.9  # chance is about 1 in 49
    data, image, text = dots(49), found.encoders["image"], found.encoders["text"]
    looks = image.encode(image.collate([image.prepare(p) for p in data.colour], 49))
    words = text.encode(text.collate([text.prepare(data.captions(i)[0]) for i in range(49)], 49))
    ours, theirs = found.head.codes(words, "text"), found.head.codes(looks, "image")
    right = 0
    for item, code in enumerate(ours):
        distance = [int(np.bitwise_count(code ^ other).sum()) for other in theirs]
        right += data.labels[distance.index(min(distance))] == data.labels[item]
    assert right / 49 > 0.8
