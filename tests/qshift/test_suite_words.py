"""Tasks with words, and the base models that are fitted for them."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.offline.two_tower import TwoTowerConfig
from core.errors import ConfigError
from encoders.base_model import load_base
from encoders.scratch import ScratchConfig
from qshift.benchmarks.suite.composition_base import (
    PURPOSE,
    clean_changes,
    clean_clips,
    fit_composition_base,
)
from qshift.benchmarks.suite.pair_base import SIDE, fit_pair_base
from qshift.benchmarks.suite.scratch_base import in_random_order
from qshift.benchmarks.suite.tasks import DEVELOP
from qshift.benchmarks.suite.text_base import fit_text_base
from qshift.benchmarks.suite.word_tasks import BASE_OF_FASHION, RECIPES, TASKS
from qshift.benchmarks.tasks import composition, fashion
from qshift.benchmarks.tasks.coco import Captioned, Captions
from qshift.benchmarks.tasks.types import Task
from qshift.recipes.encode import BATCH
from qshift.recipes.measure import first_hits

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
SMALL = ScratchConfig(
    image_size=32,
    patch=16,
    width=16,
    heads=2,
    image_layers=1,
    text_layers=1,
    embed=16,
    context=16,
    steps=2,
    batch=8,
)


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith("composition/")])
def test_missing_data_are_named(name: str, tmp_path: Path) -> None:
    for root in (None, tmp_path):
        expected = r"needs DATA/.*pass --data, see docs/reference/data\.md"
        with pytest.raises(ConfigError, match=expected) as error:
            TASKS[name](root, tmp_path)
        assert name in str(error.value)


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("composition/")])
def test_composition_needs_no_data(name: str, tmp_path: Path) -> None:
    task = TASKS[name](None, tmp_path)
    assert task.name == name and task.base in RECIPES
    query, item = ("text", "picture") if name == "composition/develop" else name.split("/")[1].split("-")
    modality = {"picture": "image"}
    assert (task.modality, task.gallery_modality) == (modality.get(query, query), modality.get(item, item))
    kept = ("composition/picture-text", "composition/develop")
    assert task.split == ("develop" if name in kept else "report")
    assert (task.split == "develop") == (name in DEVELOP)  # or the task would be in no suite
    labels = {sample.label for sample in task.gallery}
    for sample in task.pools["clean"]:
        assert sample.label in labels
    assert len({sample.key for sample in task.pools["clean"]}) == len(task.pools["clean"])
    fitted = {shown.picture.tobytes() for shown in task.extra["composition"].fit}
    shown = [s.content for s in (*task.gallery, *task.pools["clean"])]
    pictures = [c for c in shown if isinstance(c, np.ndarray)] + [c[0] for c in shown if isinstance(c, tuple)]
    assert not [picture for picture in pictures if picture.tobytes() in fitted]


def test_recipes_refuse_tasks_without_their_data(tmp_path: Path) -> None:
    for name, recipe in RECIPES.items():
        task = Task("made/up", "text", "image", (), {"clean": ()}, name)
        with pytest.raises(ConfigError, match="made/up brings no"):
            recipe(task, tmp_path / "base", 8, None)
    assert not (tmp_path / "base").exists()


def test_first_hits_counts_rows() -> None:
    gallery = np.eye(4, dtype=np.float32)
    assert first_hits(gallery[[0, 1, 3, 2]], gallery) == 0.5


def few(step: int) -> Task:
    """Every `step`-th picture of the composition."""
    whole = composition.make_composition()
    parts = (whole.fit[::step], whole.clean[::step], whole.gallery[::step], whole.queries[::step])
    data = composition.Composition(*parts)
    extra = {"composition": data}
    return Task("composition/picture-text", "image", "text", (), {"clean": ()}, "composition", extra=extra)


def test_the_scratch_base_is_whole_and_the_same_twice(tmp_path: Path) -> None:
    task, told = few(13), []
    for folder in ("one", "two"):
        fit_composition_base(task, tmp_path / folder, 8, lambda *args: told.append(args), SMALL)
    one, two = load_base(tmp_path / "one"), load_base(tmp_path / "two")
    assert one.version == two.version
    for parts in (one.encoders, one.constants, one.memory, one.reference):
        assert {"image", "text"} <= set(parts)
    assert told[0][0] == 1 and told[-1][0] == told[-1][1] == len(told) // 2
    assert one.constants["image"].source_gap > 0 and one.constants["image"].batch == BATCH
    assert set(one.vocabulary) >= {"red", "seven", "top", "photo"}
    assert len(one.reference["image"].features) == len(task.extra["composition"].clean) // BATCH * BATCH
    # Each modality's memory holds the other's features, of the same scenes.
    text, image = one.encoders["text"], one.encoders["image"]
    words, looks = one.memory["text"].contents, one.memory["image"].contents
    read = text.encode(text.collate([text.prepare(word) for word in words], len(words)))
    seen = image.encode(image.collate([image.prepare(look) for look in looks], len(looks)))
    assert torch.allclose(read, torch.from_numpy(one.memory["image"].targets), atol=1e-5)
    assert torch.allclose(seen, torch.from_numpy(one.memory["text"].targets), atol=1e-5)
    shown = {s.picture.tobytes(): s.scene for s in task.extra["composition"].fit}
    for word, look in zip(words, looks):
        assert word in shown[look.tobytes()].captions()


def test_composed_queries_and_clips_are_measured_as_they_come(tmp_path: Path) -> None:
    task = few(13)
    fit_composition_base(task, tmp_path / "base", 8, None, SMALL)
    base = load_base(tmp_path / "base")
    clean = in_random_order(task.extra["composition"].clean, 8, PURPOSE)
    for modality, asked in (("composed", clean_changes(clean)), ("sequence", clean_clips(clean))):
        encoder, features = base.encoders[modality], base.reference[modality].features
        seen = encoder.encode(
            encoder.collate([encoder.prepare(one) for one in asked.contents], len(features))
        )
        assert features == pytest.approx(seen.numpy(), abs=1e-5) and len(features) % BATCH == 0
        assert base.constants[modality].method == "frozen"
        if modality == "composed":
            for (picture, text), place in zip(asked.contents, asked.own):
                assert picture is clean[place].picture and text.split()[0] in ("as", "in")
    clips, looks = base.calibration["sequence"], base.calibration["image"]
    assert np.array_equal(clips.features, base.reference["sequence"].features)
    assert not np.array_equal(clips.mean[: len(looks.mean)], looks.mean)


def test_too_few_clean_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="19 clean pictures are too few: expected at least 64"):
        fit_composition_base(few(53), tmp_path / "base", 8, None, SMALL)
    texts = tuple(Captioned(str(i), tuple(f"text {i} {c}" for c in range(5))) for i in range(BATCH - 1))
    task = Task(
        "coco/text-text",
        "text",
        "text",
        (),
        {"clean": ()},
        "captions",
        extra={"captions": Captions((), texts)},
    )
    with pytest.raises(ConfigError, match="63 pictures are too few"):
        fit_text_base(task, tmp_path / "base", 8)


@pytest.mark.slow
def test_the_captions_base_is_measured_on_other_captions(tmp_path: Path) -> None:
    animals = ("dog", "cat", "horse", "train", "plane", "pizza", "boat", "bird")
    places = ("beach", "street", "table", "field", "roof", "snow", "kitchen", "river")
    clean = tuple(
        Captioned(
            f"{a}{p}",
            (f"a {a} on the {p}", *(f"{word} {a} near a {p}" for word in ("one", "the", "my", "this"))),
        )
        for a in animals
        for p in places
    )
    task = Task(
        "coco/text-text",
        "text",
        "text",
        (),
        {"clean": ()},
        "captions",
        extra={"captions": Captions((), clean)},
    )
    fit_text_base(task, tmp_path / "base", 16)
    base = load_base(tmp_path / "base")
    assert set(base.encoders) == {"text"} and base.bits == 16 and base.width == 384
    assert base.vocabulary["dog"] == 8 * 5 and base.vocabulary["near"] == 64 * 4
    tower, pairs = base.encoders["text"], base.memory["text"]
    partners = {c.texts[0]: c.texts[1] for c in clean}
    wanted = [tower.prepare(partners[content]) for content in pairs.contents]
    features = tower.encode(tower.collate(wanted, len(wanted))).numpy()
    assert features == pytest.approx(pairs.targets, abs=1e-4)
    assert base.reference["text"].features.shape == (64, 384)


def products(folder: Path, n: int) -> Path:
    with zipfile.ZipFile(folder / fashion.ARCHIVE, "w") as archive:
        for i in range(n):
            with archive.open(f"{i}.jpg", "w") as file:
                Image.new("RGB", (60, 80), (i, 255 - i, 90)).save(file, "JPEG")
    rows = [f"{i}.jpg,Belt number {i},Belts" for i in range(n)]
    (folder / fashion.TABLE).write_text("\n".join(("file,text,articleType", *rows)))
    return folder


@pytest.mark.slow
def test_the_pair_base_joins_pictures_and_titles(tmp_path: Path) -> None:
    data = fashion.read_products(products(tmp_path, 200), 4, 4, fit_share=0.3)
    extra = {"products": data}
    task = Task("fashion/text-picture", "text", "image", (), {"clean": ()}, BASE_OF_FASHION, extra=extra)
    fit_pair_base(task, tmp_path / "base", 16, None, TwoTowerConfig(epochs=1))
    base = load_base(tmp_path / "base")
    for parts in (base.encoders, base.constants, base.memory, base.reference):
        assert {"image", "text"} <= set(parts)
    known = {word.casefold() for product in data.fit for word in product.text.split()}
    assert set(base.vocabulary) <= known
    assert len(base.calibration["image"].features) == len(data.clean)
    image, pairs = base.encoders["image"], base.memory["text"]
    by_text = {product.text: product for product in data.fit}
    pictures = data.pictures([by_text[content] for content in pairs.contents])
    seen = image.encode(image.collate([image.prepare(p) for p in pictures], len(pictures))).numpy()
    assert seen == pytest.approx(pairs.targets, abs=1e-3)
    assert (base.memory["image"].targets == pairs.targets).all()
    assert base.encoders["image"].preprocess.size == (SIDE, SIDE)
