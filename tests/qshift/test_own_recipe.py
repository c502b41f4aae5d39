"""A recipe of a user's own: from pictures in a folder to a base model, a gallery and a session."""

import inspect
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from core.config import Config
from core.errors import ArtifactError
from core.references import SourcePairs
from encoders.base_model import Parts, load_base
from encoders.images import Preprocess
from encoders.norms import calibrate
from encoders.vision import backbone, read_backbone, write_backbone
from qshift.cli import app
from qshift.recipes.encode import BATCH, Count, Progress, batches_of, collated, encoded, prepared_pictures
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import Step
from qshift.session import Session
from qshift.shifts.images import jitter

SIDE, ITEMS = 32, 70


def fit_backbone_base(folder: Path, pictures: Sequence[Path], bits: int, progress: Progress | None) -> None:
    """A torchvision model as it is. What asks will be these pictures, taken again."""
    count = Count(batches_of(len(pictures)) + batches_of(2 * BATCH), progress)
    with tempfile.TemporaryDirectory() as scratch:
        towers = Path(scratch)
        write_backbone(towers, "mobilenet_v2", backbone("mobilenet_v2"), Preprocess((SIDE, SIDE)))
        image = read_backbone(towers, None, "cpu", "fp32")
        items = encoded(image, [picture.read_bytes() for picture in pictures], count)

        draw = np.random.default_rng(0)
        drawn = draw.integers(0, len(pictures), 2 * BATCH)
        again = [jitter(np.asarray(Image.open(pictures[item])), 1.0, draw) for item in drawn]
        statistics = calibrate(image, collated(image, again, count))

        parts = Parts(
            name="mine",
            towers=towers,
            head=hash_head({"image": items}, bits),
            calibration={"image": statistics},
            provenance={"towers": "torchvision mobilenet_v2, random", "items": len(pictures)},
            memory={"image": SourcePairs(prepared_pictures(image, again), items[drawn])},
            preprocess=image.preprocess,
        )
        step = Step(learning_rate=1e-3, temperature=0.02)
        finish_base(folder, parts, {"image": Clean(statistics.features, items, step)})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("mine")
    for item in range(ITEMS):
        blocks = np.random.default_rng(item).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(blocks).resize((48, 48), Image.Resampling.NEAREST).save(
            folder / f"item {item:02}.png"
        )
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def base(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    folder, told = tmp_path_factory.mktemp("own") / "base", list[int]()
    fit_backbone_base(folder, pictures, 32, lambda done, total, _: told.extend((done, total)))
    return folder, told


def test_it_is_a_page_of_code_and_the_base_is_whole(base: tuple[Path, list[int]]) -> None:
    assert len(inspect.getsource(fit_backbone_base).splitlines()) < 40
    folder, told = base
    found = load_base(folder)
    assert (found.name, found.bits, set(found.encoders)) == ("mine", 32, {"image", "sequence"})
    assert found.constants["image"].batch == BATCH and found.constants["image"].temperature == 0.02
    assert len(found.reference["image"].features) == len(found.memory["image"].contents) == 2 * BATCH
    assert told == [part for done in range(1, 5) for part in (done, 4)]


def test_gallery_build_and_session_accept_it(
    base: tuple[Path, list[int]], pictures: list[Path], tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    asked = [str(pictures[0].parent), "--base", str(base[0]), "--out", str(gallery)]
    result = CliRunner().invoke(app, ["gallery", "build", *asked])
    assert result.exit_code == 0, result.output
    contents = [path.read_bytes() for path in pictures[:BATCH]]
    session = Session(base[0], gallery, config=Config(device="cpu"))
    answer = session.answer(contents)
    assert [row[0] for row in answer.served.items] == [path.name for path in pictures[:BATCH]]
    assert session.learn(answer).reason == "no-shift"  # the gallery's own pictures
    learner = Session(base[0], gallery, "rest-memory", Config(device="cpu"))  # with the base's memory, too
    before = learner.state_hash("image")
    assert learner.learn(learner.answer(contents)).updated and learner.state_hash("image") != before


def test_a_gallery_is_built_with_attributes_and_asked_by_them(
    base: tuple[Path, list[int]], pictures: list[Path], tmp_path: Path
) -> None:
    folder, gallery = tmp_path / "pictures", tmp_path / "gallery"
    shutil.copytree(pictures[0].parent, folder)
    lines = [
        json.dumps({"file": path.name, "attributes": {"n": number, "half": ["low", "high"][number // 35]}})
        for number, path in enumerate(pictures)
    ]
    (folder / "attributes.jsonl").write_text("\n".join(lines))
    asked = [str(folder), "--base", str(base[0]), "--out", str(gallery)]
    result = CliRunner().invoke(app, ["gallery", "build", *asked])
    assert result.exit_code == 0 and "attributes: half, n" in result.output
    session = Session(base[0], gallery, config=Config(device="cpu"))
    contents = [path.read_bytes() for path in pictures[:3]]
    answer = session.answer(contents, filter={"half": "high", "n": {"to": 40}})
    named = [{name for name in row if name} for row in answer.served.items]
    assert named == [{path.name for path in pictures[35:41]}] * 3


def test_parts_that_do_not_fit_leave_no_folder(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((BATCH, 16)).astype(np.float32)
    with pytest.raises(ArtifactError, match="64 bits need at least as many gallery features, got 20"):
        hash_head({"image": np.resize(rows, (20, 80))}, 64)
    head = hash_head({"vector": rows}, 8, items="vector")
    memory = {"text": SourcePairs(("a",), rows[:1])}
    parts = Parts(name="mine", towers=None, head=head, provenance={}, memory=memory)  # type: ignore[arg-type]
    clean = {"vector": Clean(rows, rows, Step(1, 1), items_are="vector")}
    with pytest.raises(ArtifactError, match="a text memory, but the head serves"):
        finish_base(tmp_path / "base", parts, clean)  # type: ignore[arg-type]
    assert not (tmp_path / "base").exists()
