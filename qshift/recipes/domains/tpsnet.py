"""TPSNet for the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from adapters.offline.parallel import Team
from adapters.offline.tpsnet import TpsNet, cluster, fit
from adapters.offline.tpsnet_config import TpsConfig, paper, plus
from core.types import Floats
from encoders.base_model import Fusion
from encoders.clip import Towers
from encoders.head import HashHead, itq
from encoders.images import Pixels
from encoders.phase import Ask, PhaseFusion, Reduced, own_state, phase_image
from encoders.text import TextTower
from encoders.vision import ImageTower
from qshift.recipes.domains.material import Learnt, Material, batches, raw_features, unit_features
from qshift.recipes.encode import BATCH, Progress
from qshift.recipes.prompt_template import learnable

WIDTH = 256  # of its features: principal axes of the tower's
UNTIED = (
    "clusters of the two domains do not correspond ({:.0%} of the pictures come back to theirs): nothing was "
    "learnt from them, the base is the plain tower; psca and couple use the classes of the source"
)


def tpsnet_head(material: Material) -> Learnt:
    """TPSNet's fused encoder, and ITQ codes of both domains. Source labels only say how many classes."""
    options, image = material.options, material.image
    preset = plus if options.preset == "plus" else paper
    config = preset(classes=int(material.labels.max()) + 1, seed=options.seed, tower_rate=options.tower_rate)
    if options.epochs is not None:
        config = replace(config, epochs=options.epochs)
    raw = [material.source, material.target]
    phases = [phases_of(image, rows) for rows in material.pixels] if config.phase else None
    pictures = [image.collate(rows, len(rows)) for rows in material.pixels] if config.tower_rate else None
    network, found = fitted_tpsnet(
        image, material.text, raw, phases, config, "class_queries", material.progress, material.team, pictures
    )
    moved = config.tower_rate > 0 and bool(found.losses)
    if moved:
        raw = [raw_features(image, rows) for rows in material.pixels]
    inner = phases or (None, None)
    both = tuple(fused_features(network, rows, phase) for rows, phase in zip(raw, inner))
    everything = np.concatenate(both)
    centre = everything.mean(0)
    weight = itq(everything, centre, options.bits, seed=options.seed)
    head = HashHead(weight, np.zeros(options.bits, np.float32), {"image": centre})
    tensors = {name: tensor.detach().numpy() for name, tensor in own_state(network).items()}
    clusters = found.clusters
    gauges = {"returned": clusters.returned}
    if clusters.losses:
        gauges["prompts"] = clusters.losses[-1]
    if found.losses:
        gauges["fusion"] = found.losses[-1]
    fusion = Fusion(network.settings(), tensors)
    notes = () if clusters.tied else (UNTIED.format(clusters.returned),)
    return Learnt(
        head, both[0], fusion=fusion, gauges=gauges, config=asdict(config), notes=notes,
        tower=image.raw.state_dict() if moved else None,
    )  # fmt: skip


def fitted_tpsnet(
    image: ImageTower,
    text: TextTower | None,
    raw: Sequence[Floats],
    phases: Sequence[Tensor] | None,
    config: TpsConfig,
    ask: Ask,
    progress: Progress,
    team: Team | None = None,
    pictures: Sequence[Tensor] | None = None,
) -> tuple[PhaseFusion, TpsNet]:
    """Both stages, on frozen features unless the configuration trains the tower along.

    Args:
        image, text: towers of one model; prompts need that for texts.
        raw: [n_d, raw width] of the two domains by its image tower, of any length.
        phases: of the same pictures; None leaves the phase out.
        config: see there; without text, prompts are neither learnt nor asked.
        ask: how pictures ask the prompts.
        progress: called with (done, total, text).
        team: this process among several.
        pictures: [n_d, 3, H, W] as the tower takes them; needed where it is trained, in place.
    """
    unit = np.concatenate([unit_features(None, rows) for rows in raw])
    mean = unit.mean(0)
    width = min(WIDTH, *unit.shape)
    axes = np.linalg.svd(unit - mean, full_matrices=False)[2][:width].T
    reduced = Reduced(image.raw, torch.from_numpy(mean), torch.from_numpy(axes.copy()))
    features = [reduced.reduced(torch.from_numpy(rows)) for rows in raw]
    template = None
    if config.text:
        assert text is not None  # `check_towers` has looked
        template = learnable(Towers(image, text), reduced.axes, progress)
    clusters = cluster(features, template, config, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        prompts = clusters.text.flatten(0, 1)
        network = PhaseFusion(
            reduced, prompts, width, ask=ask if config.text else "none", phase=phases is not None
        )
    found = fit(features, phases, clusters, network, config, pictures=pictures, progress=progress, team=team)
    return network, found


def fused_features(network: PhaseFusion, raw: Floats, phases: Tensor | None) -> Floats:
    """I' [n, D] of raw tower features and phase images."""
    tower = network.tower
    assert isinstance(tower, Reduced)  # as `fitted_tpsnet` builds it
    found = []
    with torch.no_grad():
        for start in range(0, len(raw), BATCH):
            rows = slice(start, start + BATCH)
            reduced = tower.reduced(torch.from_numpy(raw[rows]))
            found.append(network.fuse(reduced, None if phases is None else phases[rows]).numpy())
    return np.concatenate(found)


def phases_of(tower: ImageTower, pixels: Sequence[Pixels]) -> Tensor:
    """Phase images [n, 1, H, W] of prepared pictures."""
    return torch.cat([phase_image(inputs) for inputs in batches(tower, pixels)])
