"""COUPLE: a hash for a labelled source and an unlabelled target, by trust that flows over a graph of both.

    1  epochs on the source alone: L_s
    2  graph of both domains; mass poured on the source overflows along it; the targets of the highest
       potential are trusted with their pseudo-labels, and edges and random walks give pairs to mix
    3  epochs of L_s + L_t + mix_weight (L_pix + L_man), the graph renewed as features move

    z = backbone(v), or cached features      h = head(z)      code h >= 0      p = softmax(scale cos(h, e))

Reference: COUPLE (IEEE TIP 2025, arXiv 2505.13907). docs/methods/couple.md holds symbols, origins, results.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.diffusion import Graph, Indices, Reals
from adapters.offline.couple_config import (
    Couple,
    CoupleConfig,
    Losses,
    Report,
    Rows,
    Trust,
    alike,
    code_width,
    rows,
)
from adapters.offline.couple_losses import (
    FixedCodes,
    label_codes,
    label_logits,
    label_net,
    mix_loss,
    mix_shares,
    mixed,
    settled,
    source_loss,
    target_ce,
    target_supcon,
)
from adapters.offline.parallel import Team
from adapters.offline.psca_config import indexed
from adapters.offline.relation_graph import (
    Edges,
    Pairs,
    agreement,
    cross_pairs,
    diffuse,
    ranked_together,
    relation_edges,
    select,
    walk_pairs,
)
from core.artifacts import MANIFEST, read_manifest, tensors_hash, writing
from core.errors import ConfigError

Progress = Callable[[int, int, str], None]
KIND = "COUPLE checkpoint"
TENSORS = "state.safetensors"
BLOCK = 256  # rows encoded at once where no gradient is needed


def fit(
    source: ArrayLike,
    labels: ArrayLike,
    target: ArrayLike,
    head: nn.Module,
    config: CoupleConfig | None = None,
    *,
    backbone: nn.Module | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    team: Team | None = None,
) -> Couple:
    """Trains; the same inputs, configuration and thread count give the same bits, interrupted or not.

    Args:
        source: features [n_s, D], or pictures [n_s, 3, H, W] as the backbone takes them; finite.
        labels: [n_s] integers >= 0, at least two classes.
        target: [n_t, ...] likewise. Their labels are not asked for.
        head: phi, [B, D] -> [B, L]; rows of length 1 or relaxed. It is copied and stays as it is.
        config: see there.
        backbone: F, rows -> [B, D], trained along. Likewise copied. Its batch statistics stay those it came
            with: batches of one domain, of both and of mixtures alternate, and no one mean fits them all.
        progress: called with (epochs done, epochs, text).
        checkpoint: folder written at every end of an epoch, from which a later call with the same arguments
            goes on, on a disk that all processes see. It stays when all is done.
        team: this process among several that call with the same arguments.

    Raises:
        ConfigError: arguments do not fit together, the checkpoint is of another fit, the loss is not finite.
        ArtifactError: the checkpoint is damaged.
    """
    config, team = config or CoupleConfig(), team or Team()
    x_s, x_t = rows(source, "source"), rows(target, "target")
    alike(x_s, x_t, backbone is not None)
    classes, y = indexed(labels, len(x_s))
    model = _Model(head, backbone, len(classes), code_width(head, backbone, x_s), config)
    team.agreed(model.state_dict().values())
    run = _Run(x_s, y, x_t, model, config, team)
    identity = "" if checkpoint is None else _identity(run)
    trust, losses, reports = run.restored(checkpoint, identity) if checkpoint else (None, [], [])
    for epoch in range(len(losses), config.epochs):
        if config.renews(epoch, len(x_s) + len(x_t)):
            trust, report, _ = run.trusted(epoch)
            reports.append(report)
        losses.append(run.epoch(epoch, trust))
        if checkpoint is not None and team.rank == 0:
            run.save(checkpoint, identity, trust, losses, reports)
        if progress is not None:
            progress(epoch + 1, config.epochs, "training COUPLE")
    trust, report, graph = run.trusted(config.epochs)
    inner = None if model.backbone is None else _cpu(model.backbone)
    with torch.no_grad():
        codes = run.codes().cpu().numpy()
    return Couple(
        config, classes, _cpu(model.head), inner, codes, trust, graph, tuple(losses), (*reports, report)
    )


class _Model(nn.Module):
    """Copies of head and backbone, and the label net."""

    def __init__(
        self, head: nn.Module, backbone: nn.Module | None, classes: int, bits: int, config: CoupleConfig
    ) -> None:
        super().__init__()
        self.head, self.backbone = copy.deepcopy(head), copy.deepcopy(backbone)
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.manual_seed(config.seed)
            net: nn.Module = label_net(classes, config.label_hidden, bits)
        if config.label_codes == "frozen":
            net = FixedCodes(settled(net, classes))
        self.labels = net.to(next(self.head.parameters(), torch.empty(0)).device)

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = x if self.backbone is None else self.backbone(x)
        return found

    def start(self) -> None:
        """Training mode, but for batch statistics."""
        self.train()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class _Run:
    """A fit on its way: data, parameters and optimiser. Rows are named by index until a step takes them."""

    def __init__(self, x_s: Rows, y: Indices, x_t: Rows, model: _Model, config: CoupleConfig, team: Team):
        self.x_s, self.y, self.x_t = x_s, y, x_t
        self.model, self.config, self.team = model, config, team
        self.device = next(model.parameters()).device
        groups: list[dict[str, Any]] = [{"params": [*model.head.parameters(), *model.labels.parameters()]}]
        if model.backbone is not None:
            groups.append({"params": [*model.backbone.parameters()], "lr": config.backbone_rate})
        self.optimizer = torch.optim.Adam(groups, config.learning_rate, weight_decay=config.weight_decay)
        self.fixed: Edges | None = None

    # Steps.

    def epoch(self, epoch: int, trust: Trust | None) -> Losses:
        """One pass over the larger domain, the smaller is repeated; draws depend on seed and epoch alone."""
        draw = np.random.default_rng((self.config.seed, epoch))
        total = max(len(self.x_s), len(self.x_t) if trust else 0)
        steps = math.ceil(total / self.config.batch)
        own = cycled(lambda: stratified(self.y, draw), total)
        other = cycled(lambda: draw.permutation(len(self.x_t)), total) if trust else own[:0]
        sums = np.zeros(4)
        self.model.start()
        devices = [self.device] if self.device.type == "cuda" else []
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
        self.team.averaged(self.model.parameters())
        self.optimizer.step()
        return parts.detach().double().cpu().numpy()

    def losses(
        self, own: Indices, other: Indices, trust: Trust | None, draw: np.random.Generator
    ) -> list[Tensor]:
        """L_s, L_t, L_pix, L_man."""
        config, codes = self.config, self.codes()
        h_s, y_s = self.relaxed(self.x_s, own), self.named(self.y[own])
        l_s = source_loss(
            h_s, y_s, codes, scale=config.scale, margin=config.margin, quantised=config.quantisation
        )
        nothing = h_s.sum() * 0
        if trust is None:
            return [l_s, nothing, nothing, nothing]
        sure = other[trust.chosen[other]]
        h_t, told = self.relaxed(self.x_t, sure), self.named(trust.pseudo[sure])
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
        lam = torch.from_numpy(np.concatenate([p.weights[at] for p, at in drawn])).float().to(self.device)
        model, share = self.model, self.team.part(lam)
        first, second = self.taken(self.x_s, i), self.taken(self.x_t, j)
        named = self.named(self.y[i]), self.named(trust.pseudo[j]), lam, codes, self.config.scale

        def loss(features: Tensor) -> Tensor:
            return mix_loss(self.team.gathered(model.head(features)), *named)

        manifold = loss(mixed(model.features(first), model.features(second), share))
        if model.backbone is None:
            return nothing, manifold
        return loss(model.features(mixed(first, second, share))), manifold

    def relaxed(self, x: Rows, index: Indices) -> Tensor:
        """h [B, L] of rows [B], encoded by all processes together."""
        return self.team.gathered(self.model.head(self.model.features(self.taken(x, index))))

    def taken(self, x: Rows, index: Indices) -> Tensor:
        """This process's share of rows."""
        return torch.from_numpy(x[self.team.part(torch.from_numpy(index)).numpy()]).to(self.device)

    def named(self, index: Indices) -> Tensor:
        return torch.from_numpy(index).to(self.device)

    def codes(self) -> Tensor:
        """e [C, L]."""
        like = torch.empty(0, device=self.device)
        return label_codes(self.model.labels, like, int(self.y.max()) + 1)

    # Trust.

    @torch.no_grad()
    def trusted(self, epoch: int) -> tuple[Trust, Report, Graph]:
        """Graph, flow, selection and pairs by the parameters of now."""
        config, n_s, rho = self.config, len(self.x_s), self.config.rho_at(epoch)
        draw = np.random.default_rng((config.seed, epoch, 1))
        edges, pseudo, sure = self.predicted()
        named = np.concatenate((self.y, pseudo))
        graph = edges.graph(named, config.label_eps)
        found = diffuse(
            graph, n_s, rho, beta=config.beta, slack=config.slack, eps=config.eps, sweeps=config.sweeps
        )
        score = found.scores if config.selection == "flow" else sure
        if config.selection == "both":
            score = ranked_together(found.scores, sure * agreement(edges, named))
        every = np.ones(len(pseudo), bool)
        chosen = every if config.selection == "all" else select(score, rho, pseudo, config.quota)
        starts = np.concatenate((np.arange(n_s), n_s + np.flatnonzero(chosen)))
        walks = walk_pairs(graph, n_s, starts, config.walk_length, min(config.walks, len(pseudo)), draw)
        intra, inter = (
            replace(pairs, weights=mix_shares(pairs.weights, config.lam, config.lam_fixed))
            for pairs in (cross_pairs(graph, n_s, chosen), walks)
        )
        report = Report(
            epoch, rho, len(edges.first), found.load, found.components, found.capped, found.dry,
            float((found.scores > 0).mean()), float((found.flow.potentials[n_s:] > 0).mean()),
            int(chosen.sum()), found.flow.sweeps, found.flow.residual / found.capacity,
        )  # fmt: skip
        return Trust(pseudo, score, chosen, intra, inter), report, graph

    def predicted(self) -> tuple[Edges, Indices, Reals]:
        """Edges of the graph, pseudo-labels [n_t] and their probabilities [n_t]."""
        self.model.eval()
        z_t = self.encoded(self.x_t)
        h_t = torch.cat([self.model.head(part.to(self.device)) for part in torch.split(z_t, BLOCK)])
        chance = label_logits(h_t, self.codes(), self.config.scale).softmax(1)
        sure, pseudo = (v.cpu().numpy() for v in chance.max(1))
        edges = self.fixed or relation_edges(
            self.encoded(self.x_s), self.y, z_t, self.config.neighbours, self.config.source_edges
        )
        if self.model.backbone is None:
            self.fixed = edges  # cached features do not move
        return edges, pseudo, sure

    def encoded(self, x: Rows) -> Tensor:
        """z [n, D] on the processor, float32."""
        if self.model.backbone is None:
            return torch.from_numpy(np.array(x))  # a copy: x may not be writable, of which torch warns
        blocks = np.array_split(np.arange(len(x)), math.ceil(len(x) / (BLOCK * self.team.size)))
        found = [self.team.gathered(self.model.features(self.taken(x, index))).cpu() for index in blocks]
        return torch.cat(found).float()

    # Checkpoints.

    def save(
        self, folder: Path, identity: str, trust: Trust | None, losses: list[Losses], reports: list[Report]
    ) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": torch.as_tensor(v) for name, v in state.items()}
        if trust is not None:
            arrays = (trust.pseudo, trust.scores, trust.chosen, *astuple(trust.intra), *astuple(trust.inter))
            tensors |= {f"trust/{place}": torch.from_numpy(v) for place, v in enumerate(arrays)}
        told = {"losses": [astuple(v) for v in losses], "reports": [astuple(v) for v in reports]}
        with writing(folder, KIND, {"identity": identity, **told}) as draft:
            save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, draft / TENSORS)

    def restored(self, folder: Path, identity: str) -> tuple[Trust | None, list[Losses], list[Report]]:
        """What `save` wrote last, parameters and optimiser set to it; nothing where there is none."""
        if not (folder / MANIFEST).exists():
            return None, [], []
        manifest = read_manifest(folder, KIND)
        if manifest["identity"] != identity:
            raise ConfigError(
                f"{folder} holds a fit of other rows, another head or other settings than those given: "
                "delete it to start anew, or name another folder"
            )
        tensors = load_file(folder / TENSORS)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "adam": {}, "trust": {}}
        for name, tensor in tensors.items():
            kind, rest = name.split("/", 1)
            parts[kind][rest] = tensor
        self.model.load_state_dict(parts["model"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        a = [parts["trust"][str(place)].numpy() for place in range(len(parts["trust"]))]
        trust = Trust(a[0], a[1], a[2], Pairs(*a[3:6]), Pairs(*a[6:9])) if a else None
        return trust, [Losses(*v) for v in manifest["losses"]], [Report(*v) for v in manifest["reports"]]


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


def _identity(run: _Run) -> str:
    """Of everything a fit depends on."""
    state = {f"model/{name}": tensor.cpu().numpy() for name, tensor in run.model.state_dict().items()}
    return tensors_hash({"source": run.x_s, "y": run.y, "target": run.x_t, **state}, asdict(run.config))


def _cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
