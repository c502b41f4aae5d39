"""From two folders of pictures to a base model, a gallery and a replay: the chain that the README shows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toy_domains import KINDS, folder, quiet

from adapters.offline import couple
from adapters.offline.couple_results import Couple
from adapters.semantics import Semantics
from core.config import Config
from core.errors import ArtifactError, ConfigError
from encoders.base_model import load_base
from encoders.vision import backbone
from qshift.build import load_gallery
from qshift.demo.fit import build, fit
from qshift.observers import semantics
from qshift.recipes.domains.base import HEADS, fit_domain_base
from qshift.recipes.domains.couple import projection_head
from qshift.recipes.domains.material import FitOptions, Learnt, Material
from qshift.recipes.domains.tpsnet import tpsnet_head
from qshift.replay.own import replay_own


def inputs(tower: Any, path: Path) -> Any:
    """All pictures of a folder, in the order that it is loaded in, as the tower takes them."""
    files = (file for kind in KINDS for file in sorted((path / kind).iterdir()))
    pictures = [tower.prepare(file.read_bytes()) for file in files]
    return tower.collate(pictures, len(pictures))


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("domains")
    return (
        folder(root / "light", 24, 1, False),
        folder(root / "dark", 24, 2, True),
        folder(root / "asked", 24, 3, True),
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", list(HEADS))
def test_fit_build_and_replay(tmp_path: Path, domains: tuple[Path, Path, Path], method: str) -> None:
    source, target, asked = domains
    base, gallery, out = tmp_path / "base", tmp_path / "gallery", tmp_path / "rows.json"
    console = quiet()
    fit(method, source, target, base, FitOptions(bits=32), console)
    build(source, base, gallery, console)
    rows = replay_own(asked, gallery, base, Config(), ["default"], console, out)
    assert [row.method for row in rows] == ["frozen", "default"]
    assert rows[0].queries == rows[0].labels == 72
    assert rows[0].map > 40, "chance is 33"
    assert rows[1].map >= rows[0].map - 1
    assert {"map", "map_minus_frozen", "low", "high"} <= json.loads(out.read_text())[1].keys()
    found = load_base(base)
    assert found.provenance["method"] == method and found.provenance["classes"] == list(KINDS)
    made = load_gallery(gallery, found)
    mapped = found.head.codes(torch.from_numpy(made.features(made.keys())), "image")
    differing = (mapped != made.codes_of(made.keys())).any(1).mean()
    assert differing > 0.5 if method == "psca" else differing < 0.05, "of PSCA's source the codes are learned"
    assert found.bits == 32 and set(found.constants) >= {"image"}
    again = tmp_path / "again"
    fit(method, source, target, again, FitOptions(bits=32), console)
    assert load_base(again).version == found.version, "the same pictures and seed give the same bytes"
    with pytest.raises(ArtifactError, match="rebuild the gallery"):
        other = tmp_path / "other"
        fit(method, source, target, other, FitOptions(bits=16), console)
        replay_own(asked, gallery, other, Config(), ["default"], console)


@pytest.mark.slow
def test_a_tower_that_is_trained_along_is_served(
    tmp_path: Path, domains: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the base gives for a picture is what its code was learnt from."""
    source, target, asked = domains
    seen: list[Learnt] = []

    def spied(material: Material) -> Learnt:
        seen.append(tpsnet_head(material))
        return seen[0]

    monkeypatch.setattr("qshift.recipes.domains.base.HEADS", {"tpsnet": spied})
    monkeypatch.setattr("qshift.demo.fit.HEADS", {"tpsnet": spied})
    base, gallery = tmp_path / "base", tmp_path / "gallery"
    fit("tpsnet", source, target, base, FitOptions(bits=16, tower_rate=1e-4), quiet())
    found = load_base(base)
    assert found.provenance["image_tower"].endswith("trained along")
    tower = found.encoders["image"]
    unit = tower.encode(inputs(tower, source))
    assert unit.numpy() == pytest.approx(seen[0].source, abs=1e-4)
    frozen = tmp_path / "frozen"
    monkeypatch.undo()
    fit("tpsnet", source, target, frozen, FitOptions(bits=16), quiet())
    assert load_base(frozen).encoders["image"].fingerprint != tower.fingerprint
    build(source, base, gallery, quiet())
    assert replay_own(asked, gallery, base, Config(), ["default"], quiet())[0].map > 40


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 1e-4])
def test_couple_with_a_backbone_of_torchvision(
    tmp_path: Path, domains: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """What is served for a picture is what the trained backbone and head make of it."""
    source, target, asked = domains
    seen: list[tuple[Couple, nn.Module | None]] = []

    def spied(*arguments: Any, backbone: nn.Module | None = None, **others: Any) -> Couple:
        seen.append((couple.fit(*arguments, backbone=backbone, **others), backbone))
        return seen[0][0]

    monkeypatch.setattr("qshift.recipes.domains.couple.fit", spied)
    base, gallery, console = tmp_path / "base", tmp_path / "gallery", quiet()
    options = FitOptions(bits=16, side=32, backbone="mobilenet_v2", tower_rate=rate, epochs=3)
    fit("couple", source, target, base, options, console)
    assert "mobilenet_v2 starts from random weights" in console.file.getvalue()  # type: ignore[attr-defined]
    found = load_base(base)
    name = "torchvision mobilenet_v2, random, seed 0" + (", trained along" if rate else "")
    assert found.provenance["image_tower"] == name
    tower = found.encoders["image"]
    pixels = inputs(tower, source)
    fitted, trained = seen[0]
    if trained is not None:
        assert fitted.backbone is not None
        trained.load_state_dict(dict(fitted.backbone))
        head = projection_head(1280, 16, 0)
        head.load_state_dict(dict(fitted.head))
        with torch.no_grad():
            expected = head.eval()(trained.eval()(pixels))
        assert tower.encode(pixels).numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    start = backbone("mobilenet_v2", seed=0).state_dict()
    served = tower.raw.state_dict()  # type: ignore[attr-defined]
    assert any(not torch.equal(served[key], start[key]) for key in start) == bool(rate)
    build(source, base, gallery, console)
    assert replay_own(asked, gallery, base, Config(), ["default"], console)[0].queries == 72


@pytest.mark.slow
def test_a_stopped_fit_of_a_backbone_goes_on(tmp_path: Path, domains: tuple[Path, Path, Path]) -> None:
    """The base of a fit that was stopped after an epoch is, byte for byte, that of one that was not."""
    source, target, _ = domains
    pictures = [[path.read_bytes() for path in sorted(side.rglob("*.png"))] for side in (source, target)]
    labels = [path.parent.name for path in sorted(source.rglob("*.png"))]
    options = FitOptions(bits=16, side=32, backbone="mobilenet_v2", tower_rate=1e-4, epochs=3)
    epochs: list[int] = []

    def fitted(folder: Path, stop: bool) -> None:
        def told(done: int, total: int, text: str) -> None:
            if text == "training COUPLE":
                epochs.append(done)
                if stop and done == 2:
                    raise KeyboardInterrupt

        fit_domain_base("couple", pictures[0], labels, pictures[1], folder, options, told)

    fitted(tmp_path / "whole", False)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "base", True)
    assert not (tmp_path / "base").exists()
    fitted(tmp_path / "base", False)
    assert epochs == [1, 2, 3, 1, 2, 3], "the third run only trains the third epoch"
    assert load_base(tmp_path / "base").version == load_base(tmp_path / "whole").version


@pytest.mark.slow
def test_psca_tells_whether_geometry_and_semantics_agree(
    tmp_path: Path, domains: tuple[Path, Path, Path]
) -> None:
    source, target, _ = domains
    fit("psca", source, target, tmp_path / "base", FitOptions(bits=32), quiet())
    base = load_base(tmp_path / "base")
    gauges = semantics(base)
    assert gauges is not None and semantics(replace(base, extras={})) is None
    clean = base.reference["image"].features
    told = gauges(clean)
    assert (
        told["qshift_semantic_agreement_ratio"]
        == Semantics.read(base.extras["semantics"]).of(clean).agreement
    )
    noise = np.random.default_rng(0).standard_normal(clean.shape[1]).astype(np.float32)
    assert gauges(clean + noise)["qshift_semantic_gap"] > 3 * told["qshift_semantic_gap"]


@pytest.mark.parametrize(
    ("method", "labels", "count", "bits", "message"),
    [
        ("tree", ("a", "b"), 64, 16, "no method 'tree': expected one of psca"),
        ("psca", ("a", "b"), 64, 12, "multiple of 8, at least 8, got 12"),
        ("psca", ("a", "a"), 64, 16, "the source has 1 class"),
        ("psca", ("a",), 64, 16, "a class for each of 2 source pictures, got 1"),
        ("psca", ("a", "b"), 63, 16, "the target has 63 pictures: at least 64"),
        ("psca", ("a", "b"), 64, 128, "66 pictures are fewer than 128 bits"),
    ],
)
def test_what_cannot_be_fitted_is_said_before_any_work(
    tmp_path: Path, method: str, labels: tuple[str, ...], count: int, bits: int, message: str
) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match=message):
        fit_domain_base(
            method, [picture] * 2, labels, [picture] * count, tmp_path / "base", FitOptions(bits=bits)
        )
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("psca", FitOptions(tower_rate=1e-4), "psca trains no tower"),
        ("psca", FitOptions(epochs=3), "epochs of couple or tpsnet"),
        ("couple", FitOptions(epochs=0), "at least 1, expected"),
        ("couple", FitOptions(weights=Path("w.npz")), "w.npz are weights of a backbone: say which"),
        ("tpsnet", FitOptions(backbone="alexnet"), "tpsnet learns prompts and needs a text tower"),
        ("couple", FitOptions(backbone="vgg"), "no backbone 'vgg': expected one of resnet34, vit_b_16"),
        ("couple", FitOptions(backbone="alexnet", side=32), "alexnet does not take pictures of 32 pixels"),
        ("couple", FitOptions(backbone="vit_b_16", side=64), "vit_b_16 does not take pictures of 64 pixels"),
    ],
)
def test_options_that_do_not_fit_are_said_before_any_work(
    tmp_path: Path, method: str, options: FitOptions, message: str
) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match=message):
        fit_domain_base(method, [picture] * 2, ("a", "b"), [picture] * 64, tmp_path / "base", options)
    assert not (tmp_path / "base").exists()


def test_folders_that_do_not_fit_the_method(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "a.png")
    cases = (
        ("psca", flat, None, "learns from two domains: qshift fit psca SOURCE --target TARGET"),
        ("psca", None, flat, "learns from two domains"),
        ("psca", flat, flat, "flat has no folders by class: sort its pictures as flat/CLASS/NAME.jpg"),
        ("two-tower", flat, flat, "leave --target out"),
    )
    for method, source, target, message in cases:
        with pytest.raises(ConfigError, match=message):
            fit(method, source, target, tmp_path / "base", FitOptions(), quiet())


@pytest.mark.slow
def test_an_interrupted_fit_leaves_the_older_base(
    tmp_path: Path, domains: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, _ = domains
    base = tmp_path / "base"
    fit("psca", source, target, base, FitOptions(bits=32), quiet())
    before = load_base(base).version

    def broken(material: Material) -> Learnt:
        raise KeyboardInterrupt

    monkeypatch.setattr("qshift.recipes.domains.base.HEADS", {"psca": broken})
    with pytest.raises(KeyboardInterrupt):
        fit("psca", source, target, base, FitOptions(), quiet())
    assert load_base(base).version == before
