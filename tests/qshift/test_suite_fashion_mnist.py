"""The FashionMNIST tasks from made-up files, and their base from made-up clothes."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import ConfigError
from encoders.base_model import Base, load_base
from encoders.scratch import ScratchConfig
from qshift.benchmarks.suite.bases import RECIPES
from qshift.benchmarks.suite.fashion_mnist_base import fit_fashion_mnist_base
from qshift.benchmarks.suite.tasks import DEVELOP, load_task
from qshift.benchmarks.tasks.fashion_mnist import NAMES, Clothes
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.recipes.encode import BATCH

SMALL = ScratchConfig(
    image_size=28, patch=14, width=16, heads=2, image_layers=1, text_layers=1, embed=16, context=16, steps=2,
    batch=16, warm_up=1,
)  # fmt: skip
KINDS = 3


def clothes(n: int, start: int) -> tuple[Sample, ...]:
    """Noise of one brightness a kind."""
    found = []
    for i in range(start, start + n):
        draw = np.random.default_rng(i)
        picture = draw.integers(0, 80 * (i % KINDS + 1), (28, 28, 3), np.uint8)
        name = NAMES[i % KINDS]
        found.append(Sample(str(i), picture, name, name, name))
    return tuple(found)


def task(clean: int = BATCH + 5) -> Task:
    fit = clothes(160, 0)
    data = Clothes(fit, fit[:20], clothes(clean, 1000), ())
    return Task(
        "fashion-mnist/develop", "image", "image", data.gallery, {"clean": ()}, "fashion-mnist",
        extra={"clothes": data},
    )  # fmt: skip


def features(base: Base, samples: tuple[Sample, ...]) -> np.ndarray:
    image = base.encoders["image"]
    rows = [image.encode(image.collate([image.prepare(sample.content)], 1)) for sample in samples]
    return torch.cat(rows).numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Clothes]:
    folder, told = tmp_path_factory.mktemp("clothes"), []
    for name in ("one", "two"):
        fit_fashion_mnist_base(task(), folder / name, 16, lambda *args: told.append(args), SMALL)
    base = load_base(folder / "one")
    assert base.version == load_base(folder / "two").version
    assert told[0][0] == 1 and told[-1][0] == told[-1][1] == len(told) // 2
    return base, task().extra["clothes"]


def test_it_serves_pictures_with_clean_statistics_at_layer_norms(made: tuple[Base, Clothes]) -> None:
    base, data = made
    assert set(base.encoders) >= {"image"} and "text" not in base.encoders and base.bits == 16
    assert base.encoders["image"].preprocess.size == (28, 28)  # type: ignore[attr-defined]
    found = base.calibration["image"]
    assert found.widths and found.widths == base.encoders["image"].hook_points().widths
    assert len(found.features) == BATCH  # whole batches of pictures that are not learned from
    clean = features(base, data.clean)
    nearest = (found.features @ clean.T).argmax(1)
    assert len(set(nearest.tolist())) == BATCH
    assert found.features == pytest.approx(clean[nearest], abs=1e-5)
    assert base.reference["image"].features == pytest.approx(found.features, abs=1e-5)
    assert base.constants["image"].source_gap > 0


def test_bits_come_from_the_gallery(made: tuple[Base, Clothes]) -> None:
    base, data = made
    gallery = features(base, data.gallery)
    assert base.head.means["image"].numpy() == pytest.approx(gallery.mean(0), abs=1e-5)
    # Most similar item by a loop.
    hits = 0
    for sample, row in zip(data.clean, features(base, data.clean)):
        best = max(range(len(gallery)), key=lambda i: float(gallery[i] @ row))
        hits += data.gallery[best].label == sample.label
    told = base.provenance["clean_r1"] * BATCH  # of 64 of the 69
    assert hits - 5 <= round(told) <= hits


def test_memory_pairs_training_pictures_with_items_of_their_kind(made: tuple[Base, Clothes]) -> None:
    base, data = made
    gallery, pairs = features(base, data.gallery), base.memory["image"]
    kinds = {sample.content.tobytes(): sample.label for sample in data.fit[len(data.gallery) :]}
    assert len(pairs.contents) == 128
    for content, target in zip(pairs.contents, pairs.targets):
        item = int((gallery @ target).argmax())
        assert gallery[item] == pytest.approx(target, abs=1e-5)
        assert data.gallery[item].label == kinds[content.tobytes()]


def test_the_recipe_refuses_what_is_too_little(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="63 clean pictures are too few: expected at least 64"):
        fit_fashion_mnist_base(task(63), tmp_path / "base", 16, None, SMALL)
    bare = Task("made/up", "image", "image", (), {"clean": ()}, "fashion-mnist")
    with pytest.raises(ConfigError, match="made/up brings no pictures"):
        fit_fashion_mnist_base(bare, tmp_path / "base", 16, None, SMALL)
    assert list(tmp_path.iterdir()) == []


def write(folder: Path, part: str, n: int) -> None:
    """n pictures that carry their own number, in MNIST's form."""
    pictures = np.zeros((n, 28, 28), np.uint8)
    pictures[:, 0, 0], pictures[:, 0, 1] = np.arange(n) // 256, np.arange(n) % 256
    labels = (np.arange(n) % 10).astype(np.uint8)
    for kind, values in (("images-idx3", pictures), ("labels-idx1", labels)):
        sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
        header = bytes((0, 0, 8, values.ndim)) + sizes
        (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes(), 1))


def test_tasks_from_a_data_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs DATA/FashionMNIST/raw/train-images.*: pass --data, see"):
        load_task("fashion-mnist/develop", tmp_path, tmp_path)
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    write(raw, "train", 6000)
    write(raw, "t10k", 50)
    report, develop = (
        load_task(f"fashion-mnist/{name}", tmp_path, tmp_path) for name in ("picture-picture", "develop")
    )
    for found in (report, develop):
        assert found.base in RECIPES and not found.retaken and list(found.pools) == ["clean"]
        assert (found.name in DEVELOP) == (found.split == "develop")
        data = found.extra["clothes"]
        assert found.gallery == data.gallery and len(data.gallery) == 3000 and len(data.clean) == 512
    assert report.split == "report" and [s.key for s in report.gallery] == [s.key for s in develop.gallery]
    assert [s.key for s in report.pools["clean"]] == [f"fashion-mnist/test/{i}" for i in range(50)]
    asked = {s.key for s in develop.pools["clean"]}
    data = develop.extra["clothes"]
    assert len(asked) == 88 and not asked & {s.key for s in (*data.fit, *data.clean, *data.gallery)}
