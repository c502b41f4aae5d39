"""COUPLE's epochs: which rows meet in a step, and what a step lowers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.diffusion import Indices
from adapters.offline.couple_config import CoupleConfig
from adapters.offline.couple_losses import mix_loss, mixed, source_loss, target_ce, target_supcon
from adapters.offline.couple_model import Coder, Data
from adapters.offline.couple_results import Losses, Trust
from core.errors import ConfigError


class Steps:
    """A fit on its way: the parameters and their optimiser."""

    def __init__(self, data: Data, coder: Coder, config: CoupleConfig) -> None:
        self.data, self.coder, self.config = data, coder, config
        model = coder.model
        groups: list[dict[str, Any]] = [{"params": [*model.head.parameters(), *model.labels.parameters()]}]
        if model.backbone is not None:
            groups.append({"params": [*model.backbone.parameters()], "lr": config.backbone_rate})
        self.optimizer = torch.optim.Adam(groups, config.learning_rate, weight_decay=config.weight_decay)

    def epoch(self, epoch: int, trust: Trust | None) -> Losses:
        """One pass over the larger domain, the smaller is repeated; draws depend on seed and epoch alone."""
        draw = np.random.default_rng((self.config.seed, epoch))
        total = max(len(self.data.source), len(self.data.target) if trust else 0)
        steps = math.ceil(total / self.config.batch)
        own = cycled(lambda: stratified(self.data.y, draw), total)
        other = cycled(lambda: draw.permutation(len(self.data.target)), total) if trust else own[:0]
        sums = np.zeros(4)
        self.coder.model.start()
        devices = [self.coder.device] if self.coder.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # for dropout
            torch.manual_seed(int(draw.integers(2**62)))
            for i, j in zip(np.array_split(own, steps), np.array_split(other, steps)):
                sums += self.step(i, j, trust, draw)
        return Losses(*(sums / steps).tolist())

    def step(
        self, own: Indices, other: Indices, trust: Trust | None, draw: np.random.Generator
    ) -> NDArray[np.float64]:
        """Lowers the loss of some sources and targets; returns its four parts before weights."""
        config = self.config
        parts = torch.stack(self.losses(own, other, trust, draw))
        weights = (1.0, config.target_weight, config.mix_weight, config.mix_weight)
        total = (parts * parts.new_tensor(weights)).sum()
        if not torch.isfinite(total):
            raise ConfigError(f"a finite loss expected, got {parts.tolist()}: lower learning_rate")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.coder.team.averaged(self.coder.model.parameters())
        self.optimizer.step()
        return parts.detach().double().cpu().numpy()

    def losses(
        self, own: Indices, other: Indices, trust: Trust | None, draw: np.random.Generator
    ) -> list[Tensor]:
        """L_s, L_t, L_pix, L_man."""
        config, codes = self.config, self.coder.codes()
        h_s, y_s = self.coder.relaxed(self.data.source, own), self.coder.named(self.data.y[own])
        l_s = source_loss(
            h_s, y_s, codes, scale=config.scale, margin=config.margin, quantised=config.quantisation
        )
        nothing = h_s.sum() * 0
        if trust is None:
            return [l_s, nothing, nothing, nothing]
        sure = other[trust.chosen[other]]
        h_t, told = self.coder.relaxed(self.data.target, sure), self.coder.named(trust.pseudo[sure])
        if config.target_loss == "supcon":
            l_t = target_supcon(h_t, told, h_s, y_s, config.tau)
        else:
            l_t = target_ce(h_t, told, codes, config.scale)
        if not config.mix_weight:
            return [l_s, l_t, nothing, nothing]
        return [l_s, l_t, *self.mix_losses(trust, codes, draw)]

    def mix_losses(self, trust: Trust, codes: Tensor, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """L_pix, which features have not, and L_man, over the same pairs."""
        drawn = [
            (p, draw.integers(len(p), size=self.config.pairs)) for p in (trust.intra, trust.inter) if len(p)
        ]
        nothing = codes.sum() * 0
        if not drawn:
            return nothing, nothing
        i, j = (np.concatenate([getattr(p, k)[at] for p, at in drawn]) for k in ("source", "target"))
        lam = (
            torch.from_numpy(np.concatenate([p.weights[at] for p, at in drawn])).float().to(self.coder.device)
        )
        model, share = self.coder.model, self.coder.team.part(lam)
        first, second = self.coder.taken(self.data.source, i), self.coder.taken(self.data.target, j)
        named = (
            self.coder.named(self.data.y[i]),
            self.coder.named(trust.pseudo[j]),
            lam,
            codes,
            self.config.scale,
        )

        def loss(features: Tensor) -> Tensor:
            return mix_loss(self.coder.team.gathered(model.head(features)), *named)

        manifold = loss(mixed(model.features(first), model.features(second), share))
        if model.backbone is None:
            return nothing, manifold
        return loss(model.features(mixed(first, second, share))), manifold


def stratified(y: Indices, draw: np.random.Generator) -> Indices:
    """Every row once, shuffled so that any stretch holds the classes in their proportions.

    A target finds sources of its class in every batch, as far as the class has enough of them.
    """
    order = draw.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    rank = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.argsort((rank + draw.random(len(y))) / counts[y[order]])]


def cycled(order: Callable[[], Indices], total: int) -> Indices:
    """As many fresh orders in a row as `total` rows take."""
    parts = [order()]
    while sum(map(len, parts)) < total:
        parts.append(order())
    return np.concatenate(parts)[:total]
