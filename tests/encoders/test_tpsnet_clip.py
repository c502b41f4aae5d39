"""Both stages of TPSNet on a small CLIP, whose texts and pictures share a space: prompts, then the towers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.offline.prompts import Template
from adapters.offline.tpsnet import cluster, fit
from adapters.offline.tpsnet_config import TpsConfig
from encoders.clip import Towers, open_clip_towers
from encoders.phase import PhaseFusion, phase_image
from encoders.prompting import PromptTower, template

KINDS, EACH = 3, 12


def pictures(towers: Towers, dark: float) -> Tensor:
    """Bars at three heights; the other domain is darker."""
    side = towers.image.preprocess.size[0]
    draw = torch.Generator().manual_seed(int(10 * dark))
    drawn = 0.05 * torch.randn(KINDS * EACH, 3, side, side, generator=draw) - dark
    for i in range(len(drawn)):
        top = (i % KINDS) * side // KINDS
        drawn[i, :, top : top + side // KINDS] += 1.5
    return drawn


def prompts(towers: Towers) -> Template:
    tower = PromptTower(towers.text)
    ids, places = template(tower, "an image of a", 2, ".")
    with torch.no_grad():
        embeds: Tensor = tower.embedding(ids)
    return Template(embeds, places, lambda rows: tower.encode(rows, ids.expand(len(rows), -1)))


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_tpsnet_on_a_small_clip(tiny: Path, rate: float) -> None:
    towers = open_clip_towers(f"local-dir:{tiny}")
    x = [pictures(towers, 0.0), pictures(towers, 0.8)]
    before = {name: tensor.clone() for name, tensor in towers.image.raw.state_dict().items()}
    text = {name: tensor.clone() for name, tensor in towers.text.raw.state_dict().items()}
    with torch.no_grad():
        features = [towers.image.raw(rows) for rows in x]
    config = TpsConfig(
        classes=KINDS, prompt_epochs=6, epochs=5, batch=24, rate=3e-3, tower_rate=rate, returned=0.0
    )
    clusters = cluster(features, prompts(towers), config, lambda *_: None)
    assert clusters.losses[-1] < clusters.losses[0] and clusters.text.shape == (
        2,
        KINDS,
        features[0].shape[1],
    )
    torch.manual_seed(0)
    network = PhaseFusion(towers.image.raw, clusters.text.flatten(0, 1), features[0].shape[1])
    phases = [phase_image(rows) for rows in x]
    found = fit(features, phases, clusters, network, config, pictures=x if rate else None)
    assert found.losses[-1] < found.losses[0]
    moved = [
        name
        for name, tensor in towers.image.raw.state_dict().items()
        if not torch.equal(tensor, before[name])
    ]
    assert bool(moved) == bool(rate), "the image tower trains if it is asked to"
    assert all(torch.equal(tensor, text[name]) for name, tensor in towers.text.raw.state_dict().items())
    with torch.no_grad():
        unit = network.eval()(x[0])
        assert unit.norm(dim=1).tolist() == pytest.approx([1] * len(unit), abs=1e-5)
        assert torch.allclose(network(x[0][:1]), unit[:1], atol=1e-5), "no part in its batch mates"
