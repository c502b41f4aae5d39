"""Base models whose pictures go through a phase fusion: written, loaded, adapted, refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from core.artifacts import MANIFEST
from core.errors import ArtifactError, ConfigError
from encoders.base_model import Fusion, Parts, load_base, write_base
from encoders.clip import open_clip_towers
from encoders.head import HashHead
from encoders.phase import PhaseFusion, Reduced, fused, own_state
from encoders.vision import ImageTower

WIDTH = 16


def served(tiny: Path) -> tuple[ImageTower, Fusion]:
    """An image encoder behind a fusion in which every part has a say."""
    image = open_clip_towers(f"local-dir:{tiny}").image
    torch.manual_seed(1)
    reduced = Reduced(image.raw, torch.randn(image.width) / 9, torch.randn(image.width, WIDTH))
    network = PhaseFusion(reduced, normalize(torch.randn(6, WIDTH), dim=1), WIDTH)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("tower."):
                parameter.add_(0.2 * torch.randn_like(parameter))
        phase = network.phase
        assert phase is not None
        phase.layers[1].running_mean.normal_()
    tensors = {name: tensor.detach().clone() for name, tensor in own_state(network).items()}
    made = fused(image, tensors, network.settings())
    return made, Fusion(network.settings(), {name: tensor.numpy() for name, tensor in tensors.items()})


def write(folder: Path, tiny: Path, fusion: Fusion | None, width: int = WIDTH) -> None:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    head = HashHead(draw(8, width), draw(8), {"image": draw(width)})
    write_base(folder, Parts(name="fused", towers=tiny, head=head, provenance={}, fusion=fusion))


def batch(tower: Any, count: int = 5) -> torch.Tensor:
    rng = np.random.default_rng(2)
    pictures = rng.integers(0, 256, (count, 40, 36, 3), np.uint8)
    inputs: torch.Tensor = tower.collate([tower.prepare(picture) for picture in pictures], count)
    return inputs


def test_loaded_features_are_those_that_were_written(tmp_path: Path, tiny: Path) -> None:
    made, fusion = served(tiny)
    write(tmp_path / "base", tiny, fusion)
    loaded = load_base(tmp_path / "base").encoders["image"]
    own, again = made.encode(batch(made)), loaded.encode(batch(loaded))
    assert own.shape == (5, WIDTH) and torch.equal(own, again)
    assert own.norm(dim=1).tolist() == pytest.approx([1] * 5, abs=1e-5)
    plain = open_clip_towers(f"local-dir:{tiny}").image
    raw = plain.raw(batch(plain))
    with torch.no_grad():
        reduced = normalize(made.raw.tower.reduced(raw), dim=1)  # type: ignore[operator, union-attr]
    assert not torch.allclose(own, reduced, atol=0.05), "the fusion has a say"


def test_the_image_towers_weights_are_written_once(tmp_path: Path, tiny: Path) -> None:
    _, fusion = served(tiny)
    assert not any(name.startswith("tower.tower.") for name in fusion.tensors)
    assert {"tower.mean", "tower.axes", "text", "gate"} <= set(fusion.tensors)


def test_norms_of_the_fusion_adapt_with_those_of_the_tower(tmp_path: Path, tiny: Path) -> None:
    _, fusion = served(tiny)
    write(tmp_path / "base", tiny, fusion)
    encoder = load_base(tmp_path / "base").encoders["image"]
    source = encoder.adaptable()
    assert {"tower.norm.weight", "tower.last.bias", "tower.phase.layers.1.weight"} <= set(source)
    assert any(name.startswith("tower.tower.tower.") for name in source), "the tower's own"
    inputs = batch(encoder)
    own = encoder.encode(inputs)
    assert torch.allclose(encoder.encode(inputs, source), own, atol=1e-5)
    for name in ("tower.last.weight", "tower.phase.layers.1.bias"):
        moved = encoder.encode(inputs, {**source, name: source[name] + 0.5 * torch.rand_like(source[name])})
        assert not torch.allclose(moved, own, atol=1e-4), name
    assert torch.equal(encoder.encode(inputs), own), "the source encoder has not moved"


def test_bases_without_a_fusion_do_not_name_it(tmp_path: Path, tiny: Path) -> None:
    write(tmp_path / "base", tiny, None, width=32)
    manifest: Mapping[str, Any] = json.loads((tmp_path / "base" / MANIFEST).read_text())
    assert "fusion" not in manifest and not any("fusion" in name for name in manifest["files"])


def test_what_does_not_fit_is_refused(tmp_path: Path, tiny: Path) -> None:
    _, fusion = served(tiny)
    write(tmp_path / "base", tiny, fusion)
    with pytest.raises(ConfigError, match="precision 'bf16' is not for bases with a fusion"):
        load_base(tmp_path / "base", precision="bf16")
    kept = {name: array for name, array in fusion.tensors.items() if name != "norm.weight"}
    cases: list[tuple[Mapping[str, Any], dict[str, Any]]] = [
        ({**fusion.settings, "ask": "batch"}, dict(fusion.tensors)),
        ({**fusion.settings, "width": 12}, dict(fusion.tensors)),
        (fusion.settings, kept),
        (fusion.settings, {**fusion.tensors, "more": fusion.tensors["text"]}),
        (fusion.settings, {}),
    ]
    for settings, arrays in cases:
        write(tmp_path / "bad", tiny, Fusion(settings, arrays or {"x": fusion.tensors["text"]}))
        with pytest.raises(ArtifactError, match="not the tensors of a fused encoder"):
            load_base(tmp_path / "bad")
