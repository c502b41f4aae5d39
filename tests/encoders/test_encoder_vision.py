import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from core.config import LimitConfig
from core.errors import ArtifactError, ConfigError, Refused
from encoders.images import Preprocess
from encoders.sequence import FrameSequence
from encoders.vision import ImageTower, backbone, read_backbone, vision_tower, write_backbone
from qshift.build import limit_pictures

SMALL = Preprocess((64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def batch(tower, count: int = 2) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return tower.collate([tower.prepare(p) for p in pixels], count)


@pytest.mark.parametrize(
    ("name", "width", "norms", "tensors"),
    [("resnet34", 512, 36, 72), ("mobilenet_v2", 1280, 52, 104)],
)
def test_backbones_with_batch_norm(name: str, width: int, norms: int, tensors: int) -> None:
    tower = vision_tower(name, preprocess=SMALL)  # type: ignore[arg-type]
    assert (tower.width, len(tower.hook_points().widths), len(tower.adaptable())) == (width, norms, tensors)
    assert len(tower.hook_points().widths) == norms
    inputs, seen = batch(tower), []
    features = tower.encode(inputs, None, lambda layer, x: seen.append(layer))
    assert sorted(seen) == list(range(norms))  # the order of definition, not of execution, in shortcuts
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert torch.equal(features, tower.encode(inputs, tower.adaptable()))


@pytest.mark.slow
def test_vit_b_16_adapts_its_layer_norms() -> None:
    tower = vision_tower("vit_b_16")
    adaptable = tower.adaptable()
    points = tower.hook_points()
    assert (tower.width, points.widths, points.layer_norm) == (768, (768,) * 50, True)  # two groups each
    assert len(adaptable) == 50
    assert sum(t.numel() for t in adaptable.values()) == 25 * 2 * 768
    assert tower.preprocess.size == (224, 224)


def test_a_tower_without_norms_gets_an_identity_affine() -> None:
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv2d(3, 8, 5, stride=4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(1800, 24),
    )
    module = torch.nn.Sequential(*layers).eval()
    tower = ImageTower(module, SMALL)
    assert {name: list(t.shape) for name, t in tower.adaptable().items()} == {
        "affine.weight": [24],
        "affine.bias": [24],
    }
    inputs = batch(tower)
    with torch.no_grad():
        raw = module(inputs)
    torch.testing.assert_close(tower.encode(inputs), torch.nn.functional.normalize(raw, dim=1))
    scale, shift = torch.linspace(0.5, 2, 24), torch.linspace(-1, 1, 24)
    got = tower.encode(inputs, {"affine.weight": scale, "affine.bias": shift})
    torch.testing.assert_close(got, torch.nn.functional.normalize(raw * scale + shift, dim=1))


def test_random_weights_follow_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second, third = (backbone("mobilenet_v2", seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["features.0.0.weight"], third["features.0.0.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_weights_from_files(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(5)
    whole = torchvision.models.mobilenet_v2()  # with its classifier, as released
    path = tmp_path / f"weights{suffix}"
    match suffix:
        case ".safetensors":
            save_file(whole.state_dict(), path)
        case ".npz":
            np.savez(path, **{name: t.numpy() for name, t in whole.state_dict().items()})
        case _:
            torch.save({"state_dict": whole.state_dict()}, path)
    ours = backbone("mobilenet_v2", path).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole.eval().features(x).mean((2, 3))
        torch.testing.assert_close(ours(x), expected)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no backbone"):
        backbone("vgg_f")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="safetensors"):
        backbone("mobilenet_v2", tmp_path / "weights.onnx")
    with pytest.raises(ArtifactError, match="cannot be read"):
        backbone("mobilenet_v2", tmp_path / "none.safetensors")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="cannot be read"):
        backbone("mobilenet_v2", tmp_path / "junk.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ArtifactError, match=r"does not fit mobilenet_v2: 0 of its 312 tensors .* among 1 \(look at"
    ) as told:
        backbone("mobilenet_v2", tmp_path / "other.safetensors")
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="precision"):
        vision_tower("mobilenet_v2", precision="int8")


def test_a_backbone_folder_round_trips(tmp_path: Path) -> None:
    write_backbone(tmp_path / "towers", "mobilenet_v2", backbone("mobilenet_v2", seed=7), SMALL)
    tower = read_backbone(tmp_path / "towers", None, "cpu", "fp32")
    expected = vision_tower("mobilenet_v2", seed=7, preprocess=SMALL)
    assert tower.preprocess == SMALL
    assert torch.equal(tower.encode(batch(tower)), expected.encode(batch(expected)))
    assert tower.fingerprint == expected.fingerprint


def test_alexnet_cuts_its_classifier() -> None:
    module = backbone("alexnet")
    assert isinstance(module.classifier[6], torch.nn.Identity)
    assert module.classifier[4].out_features == 4096


def test_the_limits_of_the_service_reach_every_kind_of_picture() -> None:
    def png(width: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (width, 10)).save(buffer, "PNG")
        return buffer.getvalue()

    tower = ImageTower(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12288, 8)), SMALL)
    base: Any = SimpleNamespace(encoders={"image": tower, "sequence": FrameSequence(tower)})
    limit_pictures(base, LimitConfig(image_bytes=1000, image_pixels=200))
    tower.prepare(png(20))
    for encoder, content in ((tower, png(21)), (base.encoders["sequence"], (png(20), png(21)))):
        with pytest.raises(Refused, match="21 x 10 pixels, at most 200"):
            encoder.prepare(content)
    limit_pictures(base, LimitConfig(image_bytes=10))
    with pytest.raises(Refused, match="at most 10 are accepted"):
        tower.prepare(png(20))
    limit_pictures(base, LimitConfig(image_bytes=1 << 20))  # above the default, too
    tower.prepare(png(20) + b"\0" * (600 << 10))
