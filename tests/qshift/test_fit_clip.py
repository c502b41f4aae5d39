"""`qshift fit clip`: models of others as they are, from the weight file to the answers."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from rich.console import Console
from toy_clips import FAMILIES, drawn, write_clip
from typer.testing import CliRunner

from core.artifacts import MANIFEST
from core.config import Config
from encoders.base_model import Base, load_base
from encoders.clip_source import ClipSource
from encoders.stored import CHUNK
from qshift.cli import app
from qshift.demo.fit import build
from qshift.demo.fit_clip import ClipOptions, fit_clip
from qshift.recipes.encode import BATCH
from qshift.recipes.measure import ALIGNED, MENDED
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.own_run import run_records

NEEDS = {"ConvNeXt": "timm", "BERT": "transformers"}


def fitted(place: Path, base: Path, pretrained: Path, **options: object) -> str:
    out = io.StringIO()
    source = ClipSource(None, str(pretrained))
    fit_clip(place, base, ClipOptions(source, bits=32, **options), Console(file=out, width=200))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("drawn") / "pictures")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == "ViT" else pytest.mark.slow) for name in FAMILIES],
)
def family(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A model's folder and the base that is made of it."""
    if find_spec(NEEDS.get(request.param, "open_clip")) is None:
        pytest.skip(f"{NEEDS[request.param]} is not installed")
    place = tmp_path_factory.mktemp("family")
    model = write_clip(place / "model", request.param)
    fitted(pictures, place / "base", model)
    return model, place / "base"


def test_features_are_open_clips_own(family: tuple[Path, Path], pictures: Path) -> None:
    """Pictures from their files through open_clip's transform, texts through its tokenizer."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{family[0]}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{family[0]}")
    files = sorted(pictures.iterdir())[:20]
    texts = ["a red bird", "picture 7 of blocks", "x"]
    with torch.no_grad():
        rows = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
        images = model.eval().encode_image(rows, normalize=True)
        words = model.encode_text(tokenize(texts), normalize=True)
    base = load_base(family[1])
    for modality, contents, wanted in (
        ("image", [file.read_bytes() for file in files], images),
        ("text", texts, words),
    ):
        encoder = base.encoders[modality]  # type: ignore[index]
        got = encoder.encode(encoder.collate([encoder.prepare(one) for one in contents], len(contents)))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_base_is_whole(family: tuple[Path, Path]) -> None:
    base: Base = load_base(family[1])
    assert set(base.encoders) == {"image", "text", "sequence", "composed"}
    assert set(base.calibration) == {"image", "sequence", "composed"}
    assert set(base.constants) == set(base.reference) == {"image", "text", "sequence"}
    told = [base.constants[modality] for modality in ("image", "text")]
    assert [(one.method, one.why) for one in told] == [("frozen", ALIGNED), ("frozen", MENDED)]
    assert base.reference["image"].features.shape == (2 * BATCH, 32)
    assert "expected-image" in base.extras and set(base.memory) == {"image", "text"}
    assert base.vocabulary["blocks"] == 70
    said = json.loads((family[0] / "open_clip_config.json").read_text())["preprocess_cfg"]
    written = json.loads((family[1] / MANIFEST).read_text())
    assert {key: written["preprocess"][key] for key in said} == said
    assert str(family[0]) not in json.dumps(written)  # a base holds no place of the machine it was made on


def test_own_files_find_themselves(family: tuple[Path, Path], pictures: Path, tmp_path: Path) -> None:
    build(pictures, family[1], tmp_path / "gallery", Console(quiet=True))
    lines = [{"image": str(path), "label": path.name} for path in sorted(pictures.iterdir())]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    gallery, base = own_parts(tmp_path / "gallery", family[1])
    config = Config.model_validate({"base": family[1], "gallery": tmp_path / "gallery", "device": "cpu"})
    own = own_queries(tmp_path / "asked.jsonl", gallery, base, config)
    row = run_records(own.records, own.labels, config, ["frozen"])[0]
    assert (row.labels, row.r1) == (70, 100.0)


def test_command_says_what_was_found_and_what_comes_next(model: Path, tmp_path: Path) -> None:
    mine = drawn(tmp_path / "mine", 40)
    (mine / "broken.png").write_bytes(b"no picture")
    asked = ["fit", "clip", str(mine), "--pretrained", str(model), "--base", str(tmp_path / "base")]
    result = CliRunner().invoke(app, [*asked, "--bits", "16"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "1 item left out: broken.png: this is no picture" in result.output
    assert "qshift gallery build" in result.output
    base = load_base(tmp_path / "base")
    assert (base.name, base.bits, base.provenance["left_out"]) == ("mine", 16, 1)


@pytest.mark.slow
def test_equal_fits_are_equal(pictures: Path, model: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        fitted(pictures, tmp_path / name, model)
    fitted(pictures, tmp_path / "one", model)  # with the features of before
    assert load_base(tmp_path / "one").version == load_base(tmp_path / "other").version


@pytest.mark.slow
def test_ctrl_c_loses_nothing(model: Path, tmp_path: Path) -> None:
    """A fit is interrupted between chunks and started again: what was encoded is not encoded again."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for number in range(4 * CHUNK):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(mine / f"{number}.png")
    # Whoever runs tests in the background has Ctrl-C switched off for all that is started there.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += "; from qshift.entry import main; main()"
    asked = ["fit", "clip", str(mine), "--pretrained", str(model), "--base", str(tmp_path / "base")]
    command = [sys.executable, "-c", code, *asked]
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not any("\n{" in path.read_text() for path in tmp_path.glob("base.features/*.jsonl")):
        assert running.poll() is None and time.monotonic() < until, running.communicate()
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 130 and "Traceback" not in said, said
    assert "interrupted: what was encoded so far is kept in" in " ".join(said.split())
    assert [path.name for path in tmp_path.iterdir() if "base" in path.name] == ["base.features"]
    (lines,) = tmp_path.glob("base.features/*.jsonl")
    before = lines.read_text().splitlines()
    assert 2 <= len(before) <= 4  # the encoder, and some of the four chunks
    (rows,) = tmp_path.glob("base.features/*.f32")
    kept = rows.read_bytes()[: (len(before) - 1) * CHUNK * 32 * 4]
    fitted(mine, tmp_path / "base", model)
    assert lines.read_text().splitlines()[: len(before)] == before and rows.read_bytes().startswith(kept)
    assert len(lines.read_text().splitlines()) == 5
    assert load_base(tmp_path / "base").provenance["items"] == 4 * CHUNK


@pytest.mark.slow
def test_a_killed_fit_goes_on(model: Path, tmp_path: Path) -> None:
    """kill -9 while it encodes: the next fit encodes the rest, to the base of one that was not killed."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for number in range(3 * CHUNK):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(mine / f"{number}.png")
    asked = ["fit", "clip", str(mine), "--pretrained", str(model), "--base", str(tmp_path / "base")]
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from qshift.entry import main; main()", *asked, "--bits", "32"]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, env=place, stdout=nowhere, stderr=nowhere) as running:
        until = time.monotonic() + 300
        while not any("\n{" in path.read_text() for path in tmp_path.glob("base.features/*.jsonl")):
            assert running.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        running.kill()
    (lines,) = tmp_path.glob("base.features/*.jsonl")
    before = [line for line in lines.read_text().splitlines() if line.endswith("}")]
    assert 2 <= len(before) <= 3 and not (tmp_path / "base").exists()
    fitted(mine, tmp_path / "base", model)
    assert lines.read_text().splitlines()[: len(before)] == before
    fitted(mine, tmp_path / "whole", model)
    assert load_base(tmp_path / "base").version == load_base(tmp_path / "whole").version


@pytest.mark.slow
def test_pictures_by_class_are_labels(model: Path, tmp_path: Path) -> None:
    for start, name in ((0, "bird"), (40, "boat")):
        drawn(tmp_path / "sorted" / name, 40, start)
    drawn(tmp_path / "flat", 80)
    fitted(tmp_path / "sorted", tmp_path / "classes", model)
    fitted(tmp_path / "flat", tmp_path / "captions", model)
    classes, captions = load_base(tmp_path / "classes"), load_base(tmp_path / "captions")
    assert set(classes.vocabulary) == {"bird", "boat"} and "expected-image" in classes.extras
    assert "image_to_image_r1" in captions.provenance and "image_to_image_r1" not in classes.provenance
    # Whoever asks by class brings another picture: clean copies of items were not let find themselves.
    assert classes.reference["image"].nearest.mean() > captions.reference["image"].nearest.mean()


def test_texts_alone_are_items_and_queries(model: Path, tmp_path: Path) -> None:
    texts = [f"{size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "blue", "green")
             for thing in ("bird", "boat", "car", "cup", "dog", "hat", "key")]  # fmt: skip
    (tmp_path / "texts.txt").write_text("\n".join([*texts, "", texts[0]]))
    fitted(tmp_path / "texts.txt", tmp_path / "base", model)
    assert set(load_base(tmp_path / "base").encoders) == {"text"}
    (tmp_path / "texts.attributes.csv").write_text("id,size\nline 1,small\n")
    build(tmp_path / "texts.txt", tmp_path / "base", tmp_path / "gallery", Console(quiet=True))
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"text": one, "label": one}) for one in texts))
    gallery, base = own_parts(tmp_path / "gallery", tmp_path / "base")
    assert len(gallery) == len(texts) and gallery.attributes_of(0) == {"size": "small"}
    config = Config.model_validate(
        {"base": tmp_path / "base", "gallery": tmp_path / "gallery", "device": "cpu"}
    )
    own = own_queries(tmp_path / "asked.jsonl", gallery, base, config)
    row = run_records(own.records, own.labels, config, ["frozen"])[0]
    assert (row.labels, row.r1) == (len(texts), 100.0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_half_precision_body_is_near_and_said(
    pictures: Path, model: Path, tmp_path: Path, precision: str
) -> None:
    """Served as it was measured: pictures and texts adapt."""
    fitted(pictures, tmp_path / "half", model, precision=precision)
    build(pictures, tmp_path / "half", tmp_path / "gallery", Console(quiet=True))
    lines = [{"image": str(path), "label": path.name} for path in sorted(pictures.iterdir())]
    lines += [{"text": path.stem, "label": path.name} for path in sorted(pictures.iterdir())]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = Config.model_validate(
        {"base": tmp_path / "half", "gallery": tmp_path / "gallery", "device": "cpu", "precision": precision}
    )
    gallery, base = own_parts(tmp_path / "gallery", tmp_path / "half")
    own = own_queries(tmp_path / "asked.jsonl", gallery, base, config)
    rows = run_records(own.records, own.labels, config, ["frozen", "rest"])
    assert [row.labels for row in rows] == [140, 140] and rows[1].backwards > 0
    fitted(pictures, tmp_path / "whole", model)
    half, whole = load_base(tmp_path / "half"), load_base(tmp_path / "whole")
    assert half.provenance["towers"]["precision"] == precision
    near = (half.head.means["image"] * whole.head.means["image"]).sum() / whole.head.means[
        "image"
    ].square().sum()
    assert 0.99 < float(near) < 1.01 and half.version != whole.version


@pytest.mark.slow
def test_a_tower_for_pictures_alone(pictures: Path, tmp_path: Path) -> None:
    asked = ["fit", "clip", str(pictures), "--model", "timm:test_vit", "--pretrained", "random"]
    result = CliRunner().invoke(app, [*asked, "--bits", "32", "--base", str(tmp_path / "base")])
    assert result.exit_code == 0, result.output
    base = load_base(tmp_path / "base")
    assert set(base.encoders) == {"image", "sequence"} and "text_to_image_r1" not in base.provenance
    assert json.loads((tmp_path / "base" / MANIFEST).read_text())["preprocess"]["resize"] == 168
    assert base.calibration["image"].widths == base.encoders["image"].hook_points().widths
    build(pictures, tmp_path / "base", tmp_path / "gallery", Console(quiet=True))
    lines = [{"image": str(path), "label": path.name} for path in sorted(pictures.iterdir())]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    gallery, model = own_parts(tmp_path / "gallery", tmp_path / "base")
    config = Config.model_validate(
        {"base": tmp_path / "base", "gallery": tmp_path / "gallery", "device": "cpu"}
    )
    own = own_queries(tmp_path / "asked.jsonl", gallery, model, config)
    assert run_records(own.records, own.labels, config, ["frozen"])[0].r1 == 100.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["clip", "DATA"], "clip needs data and weights"),
        (["clip", "DATA", "--pretrained", "nowhere"], "no folder nowhere"),
        (["clip", "DATA", "--pretrained", "MODEL", "--side", "64"], "leave --side out"),
        (["open_clip", "DATA", "--pretrained", "MODEL"], "--pretrained is of clip"),
        (["clip", "nothing", "--pretrained", "MODEL"], "no folder nothing"),
        (["clip", "DATA", "--pretrained", "MODEL", "--bits", "12"], "divisible by 8"),
        (["clip", "DATA", "--model", "timm:test_vit", "--pretrained", "nowhere"], "no file nowhere"),
        (
            ["clip", "DATA", "--model", "timm:test_vit", "--pretrained", "random", "--tag", "x"],
            "has no text side",
        ),
        (["clip", "TEXTS", "--model", "timm:test_vit", "--pretrained", "random"], "has no text tower"),
        (["clip", "DATA", "--model", "ViT-B-33", "--pretrained", "x.pt"], "near it are ViT-B-32"),
    ],
)
def test_wrong_choices_are_one_sentence(
    options: list[str], message: str, pictures: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("a\nb\n")
    named = {"DATA": str(pictures), "MODEL": str(model), "TEXTS": str(tmp_path / "texts.txt")}
    result = CliRunner().invoke(
        app, ["fit", *(named.get(one, one) for one in options), "--base", str(tmp_path / "base")]
    )
    assert result.exit_code != 0 and message in str(result.exception)
    assert not (tmp_path / "base").exists() and not list(tmp_path.glob(".base*"))
