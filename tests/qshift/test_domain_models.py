"""PSCA, COUPLE and TPSNet on models of a user's own, with both presets, up to a replay."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from toy_clips import write_clip
from toy_domains import KINDS, folder, quiet
from typer.testing import CliRunner

from core.artifacts import MANIFEST
from core.config import Config
from core.errors import ConfigError
from encoders.base_model import load_base
from encoders.clip_source import ClipSource
from encoders.prompting import PromptTower
from qshift.cli import app
from qshift.demo.fit import build, fit
from qshift.recipes.domains.checks import check_towers
from qshift.recipes.domains.material import FitOptions, Preset
from qshift.replay.own import replay_own


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, pictures that ask, and a tiny CLIP."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("light", "dark", "asked"), 1):
        folder(root / name, 24, seed, name != "light")
    write_clip(root / "clip")
    return root


def served(place: Path, base: Path, tmp_path: Path) -> int:
    """How many queries were answered by the base, with its gallery."""
    build(place / "light", base, tmp_path / "gallery", quiet())
    rows = replay_own(place / "asked", tmp_path / "gallery", base, Config(), ["default"], quiet())
    assert [row.method for row in rows] == ["frozen", "default"] and rows[0].map > 33, "chance is 33"
    return rows[0].queries


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "plus"])
@pytest.mark.parametrize("method", ["psca", "couple", "tpsnet"])
def test_a_clip_of_the_users_is_fitted_and_served(
    place: Path, tmp_path: Path, method: str, preset: Preset
) -> None:
    model = ClipSource(None, str(place / "clip"))
    options = FitOptions(bits=16, model=model, preset=preset, epochs=None if method == "psca" else 3)
    fit(method, place / "light", place / "dark", tmp_path / "base", options, quiet())
    base = load_base(tmp_path / "base")
    said = base.provenance
    assert (said["method"], said["preset"], said["side"]) == (method, preset, 32)
    assert said["image_tower"] == "of its folder, weights open_clip_model.safetensors"
    expected = {
        "psca": ("weights", {"paper": "literal", "plus": "joint"}),
        "couple": ("selection", {"paper": "flow", "plus": "both"}),
        "tpsnet": ("text", {"paper": True, "plus": False}),
    }[method]
    assert said["settings"][expected[0]] == expected[1][preset]
    manifest = json.loads((tmp_path / "base" / MANIFEST).read_text())
    assert str(place) not in json.dumps(manifest), "a base holds no place of the machine it was made on"
    assert manifest["preprocess"]["mean"] == [0.4, 0.5, 0.6], "pictures are prepared as the model wants them"
    assert served(place, tmp_path / "base", tmp_path) == 72


@pytest.mark.slow
def test_a_clip_that_is_trained_along_is_served(place: Path, tmp_path: Path) -> None:
    options = FitOptions(bits=16, model=ClipSource(None, str(place / "clip")), tower_rate=1e-3, epochs=2)
    fit("couple", place / "light", place / "dark", tmp_path / "base", options, quiet())
    fit(
        "psca",
        place / "light",
        place / "dark",
        tmp_path / "still",
        FitOptions(bits=16, model=options.model),
        quiet(),
    )
    moved, still = (load_base(tmp_path / name).encoders["image"] for name in ("base", "still"))
    names = moved.raw.state_dict()  # type: ignore[attr-defined]
    differ = [name for name, tensor in still.raw.state_dict().items() if not torch.equal(tensor, names[name])]  # type: ignore[attr-defined]
    assert len(differ) > 10
    assert served(place, tmp_path / "base", tmp_path) == 72


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision:mobilenet_v3_small", "timm:test_vit", "torchvision:alexnet"])
def test_towers_for_pictures_alone_are_fitted_and_served(place: Path, tmp_path: Path, model: str) -> None:
    """From the command line; AlexNet has no layer that could be aligned."""
    weights = "random"
    if model.endswith("mobilenet_v3_small"):
        weights = str(tmp_path / "w.pth")
        torch.save(torchvision.models.mobilenet_v3_small().state_dict(), weights)
    method = ["tpsnet", "--preset", "plus"] if model.startswith("timm") else ["psca"]
    asked = ["fit", method[0], str(place / "light"), "--target", str(place / "dark"), *method[1:]]
    asked += ["--model", model, "--pretrained", weights, "--bits", "16", "--base", str(tmp_path / "base")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    base = load_base(tmp_path / "base")
    assert base.provenance["image_tower"].startswith(f"{model}, weights ")
    assert ("image" in base.calibration) == (not model.endswith("alexnet"))
    assert base.provenance["classes"] == list(KINDS)
    build(place / "light", tmp_path / "base", tmp_path / "gallery", quiet())
    rows = replay_own(
        place / "asked", tmp_path / "gallery", tmp_path / "base", Config(), ["default"], quiet()
    )
    assert rows[1].queries == 72


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "ViT-B-32"], "--model needs weights: add --pretrained FILE, TAG or DIR"),
        (["--pretrained", "CLIP", "--side", "64"], "leave --backbone and --side out"),
        (["--pretrained", "CLIP", "--backbone", "alexnet"], "leave --backbone and --side out"),
        (["--pretrained", "CLIP", "--precision", "bf16"], "--precision is of clip"),
        (["--pretrained", "CLIP", "--train", "heads"], "--train is of clip"),
        (["--pretrained", "nowhere"], "no folder nowhere"),
        (["--pretrained", "CLIP", "--tag", "openai"], "leave --tag and --quick-gelu out"),
        (["--model", "timm:test_vit", "--pretrained", "random"], "needs a text tower beside the image tower"),
    ],
)
def test_wrong_choices_are_one_sentence(
    place: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    named = [str(place / "clip") if one == "CLIP" else one for one in options]
    asked = ["fit", "tpsnet", str(place / "light"), "--target", str(place / "dark"), *named]
    result = CliRunner().invoke(app, [*asked, "--bits", "16", "--base", str(tmp_path / "base")])
    assert result.exit_code != 0 and message in str(result.exception)
    assert not (tmp_path / "base").exists()


def test_a_preset_is_of_two_domains(tmp_path: Path) -> None:
    for method in (["two-tower"], ["clip", "--pretrained", "x"]):
        result = CliRunner().invoke(app, ["fit", method[0], str(tmp_path), *method[1:], "--preset", "paper"])
        assert "--preset" in str(result.exception)


def test_a_text_tower_that_prompts_do_not_know_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def strange(self: PromptTower, text: object) -> None:
        raise ConfigError("prompts for a CLIP or a Hugging Face text tower expected")

    monkeypatch.setattr(PromptTower, "__init__", strange)
    with pytest.raises(ConfigError, match="prompts for a CLIP"):
        check_towers("tpsnet", object(), FitOptions())  # type: ignore[arg-type]
    check_towers("tpsnet", None, FitOptions(preset="plus"))
    check_towers("couple", None, FitOptions())
