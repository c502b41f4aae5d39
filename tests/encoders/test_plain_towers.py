"""Image towers of torchvision and timm: features and pictures as the libraries' own."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ArtifactError, ConfigError
from encoders.images import Preprocess, prepare
from encoders.plain_towers import plain_preprocess, plain_tower
from encoders.vision import backbone, read_backbone, write_backbone

SIZES = ((300, 300), (500, 341), (341, 500), (240, 700), (233, 235), (90, 70))
TORCHVISION = ("mobilenet_v3_small", "resnet18")
TIMM = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet")


def pictures() -> list[Image.Image]:
    found = []
    for number, size in enumerate(SIZES):
        blocks = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        found.append(Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR))
    return found


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def of_torchvision(name: str) -> tuple[nn.Module, Tensor]:
    """A model with its classifier, and what enters that of the pictures."""
    model = torchvision.models.get_model(name, weights=None).eval()
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.stack([transform(picture) for picture in pictures()]))
    handle.remove()
    return model, seen[0]


def of_timm(name: str) -> tuple[nn.Module, Tensor]:
    model = timm.create_model(name, pretrained=False).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        rows = torch.stack([transform(picture) for picture in pictures()])
        return model, model.forward_head(model.forward_features(rows), pre_logits=True)


@pytest.mark.parametrize(
    "name", [*(f"torchvision:{one}" for one in TORCHVISION), *(f"timm:{one}" for one in TIMM)]
)
def test_features_are_the_librarys_own(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    library, model = name.split(":")
    oracle, wanted = (of_torchvision if library == "torchvision" else of_timm)(model)
    save_file(
        {key: value.contiguous() for key, value in oracle.state_dict().items()}, tmp_path / "w.safetensors"
    )
    module = backbone(name, tmp_path / "w.safetensors")
    write_backbone(tmp_path / "towers", name, module, plain_preprocess(name))
    tower = read_backbone(tmp_path / "towers", None, "cpu", "fp32")
    rows = [tower.prepare(png(picture)) for picture in pictures()]
    got = tower.encode(tower.collate(rows, len(rows)))
    torch.testing.assert_close(got, nn.functional.normalize(wanted, dim=1), atol=1e-5, rtol=0)
    assert tower.hook_points().widths  # all of these have normalisation layers, which are aligned


def test_the_shorter_side_may_be_longer_than_what_is_cut_out() -> None:
    to = Preprocess((224, 224), resize=256)
    assert Preprocess.written(to.document()) == to and to.document()["resize"] == 256
    plain = Preprocess((224, 224))
    assert "resize" not in plain.document() and Preprocess.written(plain.document()) == plain
    for picture in pictures():
        resized = torchvision.transforms.Resize(256, torchvision.transforms.InterpolationMode.BICUBIC)(
            picture
        )
        wanted = np.asarray(torchvision.transforms.CenterCrop(224)(resized)).transpose(2, 0, 1)
        np.testing.assert_array_equal(prepare(png(picture), to), wanted)
    for wrong in ({"resize": 100}, {"resize": 256.5}, {"resize": "256"}):
        with pytest.raises(ArtifactError, match="cannot do"):
            Preprocess.written({**plain.document(), **wrong})


def test_names_and_states_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no classifier 'resnet19'; near it are .*resnet18"):
        plain_tower("torchvision:resnet19")
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet5O'; near it are .*resnet50"):
        plain_preprocess("timm:resnet5O")
    with pytest.raises(ArtifactError, match="squeezenet1_1 has no linear classifier"):
        plain_tower("torchvision:squeezenet1_1")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ArtifactError, match=r"does not fit timm:test_vit: 0 of its .* take the state of the lib"
    ):
        backbone("timm:test_vit", tmp_path / "w.pt")


def test_random_weights_are_those_of_the_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = (plain_tower("timm:test_vit", seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
