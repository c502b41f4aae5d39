"""TPSNet: one encoder for two unlabelled domains, from clusters, learnt prompts and phase images.

    0  cluster      k-means of each domain, its features minus its own mean
    1  prompts      one learnt prompt per (domain, cluster); which cluster is which across domains: by prompts
    2  fuse         loss = alpha CE(I'; prototypes) + beta smoothed CE(I'; prompts of the domain)
                    once per epoch the prototypes follow the class means of I'

The network is handed in: `PhaseFusion` of the encoders, or anything with `fuse` and `forward` like it.

Reference: TPSNet, arXiv 2603.12711, of which only the abstract was read: losses are second-hand, the wiring
and every constant reconstructed or ours (docs/methods/tpsnet.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from adapters.offline.assignment import class_means, kmeans, matched, tied_by_centres
from adapters.offline.parallel import Team
from adapters.offline.prompts import Template, fit_prompts
from adapters.offline.tpsnet_config import TpsConfig, checked
from core.errors import ConfigError

Progress = Callable[[int, int, str], None]


class Network(Protocol):
    """What stage 2 trains; `nn.Module` in everything else."""

    def fuse(self, raw: Tensor, phases: Tensor | None) -> Tensor:
        """Tower features [B, D] and phase images [B, 1, H, W] -> unit features [B, D]."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Of both domains, under one index if tied: labels [n] of each, and prompts [2, C, D], or class means."""

    labels: tuple[Tensor, Tensor]
    text: Tensor
    losses: tuple[float, ...]
    """Of stage 1, per epoch; empty without text."""
    returned: float = math.nan
    """Share of the leading domain's rows that come back to their cluster, if tied by centres."""
    tied: bool = True
    """Whether a class of one domain is that of the other."""


@dataclass(frozen=True, slots=True)
class TpsNet:
    """A fitted TPSNet: load the state into a network built like the one that was handed in."""

    config: TpsConfig
    state: Mapping[str, Tensor]
    clusters: Clusters
    prototypes: Tensor
    """P [C, D], unit rows; [2 C, D] where the domains are not tied."""
    means: tuple[Tensor, Tensor]
    """[D] of I' of each domain: taken off at read-out."""
    losses: tuple[float, ...]
    """Of stage 2, per epoch."""


def cluster(
    features: Sequence[Tensor], template: Template | None, config: TpsConfig, progress: Progress
) -> Clusters:
    """Stages 0 and 1.

    Args:
        features: of the two domains, [n_d, D], of any length.
        template: of the prompts; None: no text.
        config: see there.
        progress: called with (done, total, text).
    """
    unit = [normalize(v, dim=1) for v in features]
    centred = [normalize(v - v.mean(0), dim=1) for v in unit]
    labels = [kmeans(v, config.classes, config.seed) for v in centred]
    tied, returned = config.tie == "prompts", math.nan
    if config.tie == "centres":
        together, returned = tied_by_centres(centred, labels, config.classes)
        tied = returned >= config.returned
        labels = together if tied else labels
    if template is None:
        empty = torch.zeros(config.classes, unit[0].shape[1])
        means = [normalize(class_means(v, y, empty), dim=1) for v, y in zip(unit, labels)]
        return Clusters((labels[0], labels[1]), torch.stack(means), (), returned, tied)
    prompted = fit_prompts(
        centred, labels, template, config.classes, epochs=config.prompt_epochs, batch=config.batch,
        rate=config.prompt_rate, temperature=config.temperature, repair=config.repair, seed=config.seed,
        progress=lambda done: progress(done, config.prompt_epochs, "learning prompts"),
    )  # fmt: skip
    if config.tie != "prompts":
        return Clusters(prompted.labels, prompted.text, prompted.losses, returned, tied)
    pi = matched(prompted.text[0], prompted.text[1])
    inverse = torch.empty_like(pi)
    inverse[pi] = torch.arange(len(pi))
    text = torch.stack((prompted.text[0], prompted.text[1][pi]))
    return Clusters((prompted.labels[0], inverse[prompted.labels[1]]), text, prompted.losses)


def fit(
    features: Sequence[Tensor],
    phases: Sequence[Tensor] | None,
    clusters: Clusters,
    network: nn.Module,
    config: TpsConfig,
    *,
    pictures: Sequence[Tensor] | None = None,
    progress: Progress = lambda done, total, text: None,
    team: Team | None = None,
) -> TpsNet:
    """Stage 2; same inputs, configuration and thread count: same bits. `network` itself is trained.

    Clusters that were to be tied and do not correspond teach nothing: then the network stays as it is.

    Args:
        features: raw tower features [n_d, D] of the two domains.
        phases: phase images [n_d, 1, H, W]; None where the network leaves them out.
        clusters: of the same rows.
        network: see `Network`.
        config: `tower_rate` above 0 trains the tower, and needs pictures.
        pictures: [n_d, 3, H, W] as the tower takes them.
        progress: called with (done, total, text).
        team: this process among several that call with the same arguments.

    Raises:
        ConfigError: inputs that do not fit together.
    """
    checked(features, phases, config)
    _complete(phases, pictures, network, config)
    team = team or Team()
    team.agreed(network.state_dict().values())
    own = 0 if clusters.tied else config.classes
    labels = [clusters.labels[0], clusters.labels[1] + own]
    run = _Run(features, phases, labels, clusters.text, network, config, pictures, team)
    prototypes = run.start(own + config.classes)
    losses = []
    trusted = clusters.tied or config.tie == "none"
    for epoch in range(config.epochs if trusted else 0):
        losses.append(run.epoch(epoch, prototypes))
        prototypes = run.moved(prototypes)
        progress(epoch + 1, config.epochs, "training the fusion")
    network.eval()
    means = [run.encoded(d).mean(0) for d in range(2)]
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return TpsNet(config, state, clusters, prototypes, (means[0], means[1]), tuple(losses))


def _complete(
    phases: Sequence[Tensor] | None, pictures: Sequence[Tensor] | None, network: nn.Module, config: TpsConfig
) -> None:
    """Raises ConfigError where the network needs what was not handed in."""
    if config.tower_rate > 0 and pictures is None:
        raise ConfigError("pictures expected, since tower_rate is above 0: hand them in, or take 0")
    if phases is None and getattr(network, "phase", None) is not None:
        raise ConfigError("phase images expected by the network: hand them in, or build it without")


class _Run:
    """Rows, labels and the optimiser of stage 2."""

    def __init__(
        self,
        features: Sequence[Tensor],
        phases: Sequence[Tensor] | None,
        labels: Sequence[Tensor],
        text: Tensor,
        network: nn.Module,
        config: TpsConfig,
        pictures: Sequence[Tensor] | None,
        team: Team,
    ) -> None:
        self.features, self.phases, self.labels, self.text = features, phases, labels, text
        self.network, self.config, self.team = network, config, team
        self.pictures = pictures if config.tower_rate > 0 else None
        tower = {id(p) for p in getattr(network, "tower", nn.Identity()).parameters()}
        own = [p for p in network.parameters() if id(p) not in tower]
        groups = [{"params": own}]
        if self.pictures is not None:
            inner = [p.requires_grad_(True) for p in network.parameters() if id(p) in tower]
            groups.append({"params": inner, "lr": config.tower_rate})  # type: ignore[dict-item]
        for parameter in own:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(groups, config.rate, weight_decay=config.weight_decay)
        self.steps = -(-2 * max(len(v) for v in features) // config.batch)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.epochs * self.steps)

    def embedded(self, domain: int, rows: Tensor) -> Tensor:
        """I' [B, D] of some rows."""
        if self.pictures is not None:
            found: Tensor = self.network(self.pictures[domain][rows])
            return found
        phases = None if self.phases is None else self.phases[domain][rows]
        fused: Tensor = self.network.fuse(self.features[domain][rows], phases)  # type: ignore[operator]
        return fused

    def encoded(self, domain: int) -> Tensor:
        """I' [n, D] of a domain, in eval mode."""
        self.network.eval()
        with torch.no_grad():
            parts = _blocks(len(self.features[domain]), self.config.batch)
            return torch.cat([self.embedded(domain, rows) for rows in parts])

    def training(self) -> None:
        """Training mode, but for batch statistics: halves of two domains have no one mean."""
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def settled(self) -> None:
        """Batch statistics of the phase encoder, once, over all pictures; the tower has its own."""
        self.network.train()
        fresh = [
            m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d) and not m.num_batches_tracked
        ]
        for layer in fresh:
            layer.momentum = None  # a plain mean over batches
        with torch.no_grad():
            for d, phases in enumerate(self.phases or ()):
                for rows in _blocks(len(phases), self.config.batch):
                    self.network.fuse(self.features[d][rows], phases[rows])  # type: ignore[operator]

    def start(self, count: int) -> Tensor:
        """Prototypes of the untrained network, as many as are asked for."""
        self.settled()
        empty = torch.zeros(count, self.features[0].shape[1])
        return normalize(self._means(empty), dim=1)

    def moved(self, prototypes: Tensor) -> Tensor:
        """P <- norm(m P + (1 - m) class means); an empty class keeps its own."""
        m = self.config.momentum
        return normalize(m * prototypes + (1 - m) * self._means(prototypes), dim=1)

    def _means(self, otherwise: Tensor) -> Tensor:
        rows = torch.cat([self.encoded(d) for d in range(2)])
        return class_means(rows, torch.cat(list(self.labels)), otherwise)

    def epoch(self, epoch: int, prototypes: Tensor) -> float:
        """Equal halves of both domains per step; the smaller domain is gone through more often."""
        draw = torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)
        half = max(1, self.config.batch // 2)
        orders = [_cycled(len(v), self.steps * half, draw) for v in self.features]
        total = 0.0
        self.training()
        for step in range(self.steps):
            parts = []
            for d in range(2):
                rows = orders[d][step * half : (step + 1) * half]
                embedded = self.team.gathered(self.embedded(d, self.team.part(rows)))
                parts.append(self.loss(embedded, self.labels[d][rows], self.text[d], prototypes))
            loss = torch.stack(parts).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.team.averaged(self.network.parameters())
            self.optimizer.step()
            self.schedule.step()
            total += float(loss.detach())
        return total / self.steps

    def loss(self, embedded: Tensor, y: Tensor, text: Tensor, prototypes: Tensor) -> Tensor:
        """Of one domain's half; `y` index the prototypes."""
        config = self.config
        found = config.prototype_weight * cross_entropy(embedded @ prototypes.T / config.temperature, y)
        if config.text and config.text_weight:
            named = y % config.classes  # an untied target has prototypes of its own, behind the source's
            smoothed = cross_entropy(
                embedded @ text.T / config.temperature, named, label_smoothing=config.smoothing
            )
            found = found + config.text_weight * smoothed
        return found


def _cycled(n: int, count: int, draw: torch.Generator) -> Tensor:
    """`count` indices below n: shuffled passes, one after the other."""
    return torch.cat([torch.randperm(n, generator=draw) for _ in range(-(-count // n))])[:count]


def _blocks(n: int, size: int) -> list[Tensor]:
    """Indices below n, `size` at a time."""
    return [torch.arange(start, min(start + size, n)) for start in range(0, n, size)]
