"""`qshift fit calibrate`: an old base learns what its clean queries look like; nothing else changes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from toy_clips import write_clip
from typer.testing import CliRunner

from core.artifacts import MANIFEST, writing
from encoders.base_model import KIND, load_base
from encoders.clip_source import ClipSource
from qshift.cli import app
from qshift.demo.fit_clip import ClipOptions, fit_clip

COUNT = 70
pytestmark = pytest.mark.slow  # a shorter one of its kind: tests/encoders/test_base_again.py
MEASURED = ("calibration", "reference", "expected")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, the base that `fit clip` makes of them, and one as older versions made it."""
    place = tmp_path_factory.mktemp("calibrate")
    (place / "pictures").mkdir()
    for number in range(COUNT):
        blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        picture = Image.fromarray(blocks).resize((96, 96), Image.Resampling.NEAREST)
        picture.save(place / "pictures" / f"{number} of blocks.png")
    source = ClipSource(None, str(write_clip(place / "model")))
    fit_clip(place / "pictures", place / "whole", ClipOptions(source, bits=32), Console(quiet=True))
    older(place / "whole", place / "old")
    return place


def older(whole: Path, old: Path) -> None:
    """The same base without anything measured."""
    manifest = json.loads((whole / MANIFEST).read_text())
    kept = [name for name in manifest["files"] if not name.startswith(MEASURED)]
    said = {key: value for key, value in manifest.items() if key not in ("kind", "format", "files", "extras")}
    said |= {"constants": {}, "bn_widths": {}, "reference_batch": {}}
    with writing(old, KIND, said) as draft:
        for name in kept:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes((whole / name).read_bytes())


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fit", "calibrate", *map(str, words)], env={"COLUMNS": "300"})
    return (
        result.exit_code,
        result.output if result.exception is None else f"{result.output}{result.exception}",
    )


def test_an_old_base_gets_what_a_fit_measures(place: Path, tmp_path: Path) -> None:
    """By the same pictures and seed every file is that of the fit, to the byte."""
    assert not load_base(place / "old").reference
    status, said = run(place / "pictures", "--base", place / "old", "--out", tmp_path / "new")
    assert status == 0 and "qshift gallery build" in said, said
    files = {name: json.loads((place / name / MANIFEST).read_text()) for name in ("whole", "old")}
    new = json.loads((tmp_path / "new" / MANIFEST).read_text())
    measured = {name for name in files["whole"]["files"] if name.startswith(MEASURED)}
    assert {name[:9] for name in measured} == {"calibrati", "reference", "expected-"}
    assert {name: new["files"][name] for name in files["whole"]["files"]} == files["whole"]["files"]
    for key in ("bn_widths", "extras", "bits", "modalities"):
        assert new[key] == files["whole"][key], key
    for modality in ("image", "text"):
        assert new["constants"][modality] == files["whole"]["constants"][modality]
    assert new["provenance"]["measured_on"] == {"pictures": "Pictures: pictures", "items": COUNT, "seed": 0}
    assert "composed" in load_base(tmp_path / "new").reference
    assert not load_base(place / "old").reference  # the old one is still there


def test_in_place_the_base_is_replaced_and_keeps_its_steps(place: Path, tmp_path: Path) -> None:
    """Rates and methods were chosen when it was fitted: they are not those of `fit clip`."""
    older(place / "whole", tmp_path / "base")
    path = tmp_path / "base" / MANIFEST
    said = json.loads(path.read_text())
    kept = json.loads((place / "whole" / MANIFEST).read_text())["constants"]["image"]
    said["constants"] = {"image": {**kept, "learning_rate": 0.125, "method": "rest", "why": "chosen"}}
    path.write_text(json.dumps(said))
    before = load_base(tmp_path / "base").version
    status, output = run(place / "pictures", "--base", tmp_path / "base", "--seed", 1)
    assert status == 0, output
    found = load_base(tmp_path / "base")
    assert found.version != before and found.provenance["measured_on"]["seed"] == 1
    image = found.constants["image"]
    assert (image.learning_rate, image.method, image.why) == (0.125, "rest", "chosen")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base", "base.features"]


def test_mistakes_are_one_sentence_and_leave_the_base(place: Path, tmp_path: Path) -> None:
    before = (place / "old" / MANIFEST).read_bytes()
    vectors = tmp_path / "of-vectors"
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((80, 16)).astype(np.float32))
    made = CliRunner().invoke(app, ["fit", str(tmp_path / "rows.npy"), "--base", str(vectors), "--bits", "8"])
    assert made.exit_code == 0, made.output
    for words, wanted in (
        ((place / "nothing", "--base", place / "old"), "no folder"),
        ((place / "pictures", "--base", place / "none"), "--base names the one to measure"),
        ((place / "pictures", "--base", place / "model"), "no base in"),
        ((place / "pictures", "--base", vectors), "takes vector and no pictures"),
        ((place / "pictures", "--base", place / "old", "--epochs", 3), "leave --epochs out"),
    ):
        status, said = run(*words)
        assert status != 0 and wanted in said, (words, said)
    assert (place / "old" / MANIFEST).read_bytes() == before
    other = CliRunner().invoke(app, ["fit", "two-tower", str(place / "pictures"), "--out", "x"])
    assert other.exit_code != 0 and "--out is of calibrate" in str(other.exception)
