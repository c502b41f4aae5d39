"""Which targets COUPLE trusts, and the pairs to mix: by a graph over both domains as they are encoded now."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from adapters.diffusion import Graph, Indices, Reals
from adapters.offline.couple_config import CoupleConfig
from adapters.offline.couple_losses import label_logits, mix_shares
from adapters.offline.couple_model import Coder, Data
from adapters.offline.couple_results import Report, Trust
from adapters.offline.relation_flow import Diffusion, diffuse
from adapters.offline.relation_graph import Edges, relation_edges
from adapters.offline.relation_pairs import Pairs, cross_pairs, walk_pairs
from adapters.offline.relation_selection import Mask, agreement, ranked_together, select


class Relations:
    """Edges are searched anew in every renewal where features move, and once where they do not."""

    def __init__(self, data: Data, coder: Coder, config: CoupleConfig) -> None:
        self.data, self.coder, self.config = data, coder, config
        self._fixed: Edges | None = None

    @torch.no_grad()
    def trusted(self, epoch: int) -> tuple[Trust, Report, Graph]:
        """Graph, flow, selection and pairs by the parameters of now."""
        config, n_s, rho = self.config, len(self.data.source), self.config.rho_at(epoch)
        edges, pseudo, sure = self.predicted()
        named = np.concatenate((self.data.y, pseudo))
        graph = edges.graph(named, config.label_eps)
        found = diffuse(
            graph, n_s, rho, beta=config.beta, slack=config.slack, eps=config.eps, sweeps=config.sweeps
        )
        score = self._scores(found, sure, edges, named)
        every = np.ones(len(pseudo), bool)
        chosen = every if config.selection == "all" else select(score, rho, pseudo, config.quota)
        intra, inter = self._pairs(graph, chosen, epoch)
        report = Report(
            epoch, rho, len(edges.first), found.load, found.components, found.capped, found.dry,
            float((found.scores > 0).mean()), float((found.flow.potentials[n_s:] > 0).mean()),
            int(chosen.sum()), found.flow.sweeps, found.flow.residual / found.capacity,
        )  # fmt: skip
        return Trust(pseudo, score, chosen, intra, inter), report, graph

    def predicted(self) -> tuple[Edges, Indices, Reals]:
        """Edges of the graph, pseudo-labels [n_t] and their probabilities [n_t]."""
        self.coder.model.eval()
        z_t = self.coder.encoded(self.data.target)
        h_t = self.coder.coded(z_t)
        chance = label_logits(h_t, self.coder.codes(), self.config.scale).softmax(1)
        sure, pseudo = (v.cpu().numpy() for v in chance.max(1))
        edges = self._fixed or relation_edges(
            self.coder.encoded(self.data.source), self.data.y, z_t,
            self.config.neighbours, self.config.source_edges,
        )  # fmt: skip
        if self.coder.model.backbone is None:
            self._fixed = edges  # cached features do not move
        return edges, pseudo, sure

    def _scores(self, found: Diffusion, sure: Reals, edges: Edges, named: Indices) -> Reals:
        """[n_t] what targets are ranked by."""
        match self.config.selection:
            case "flow":
                return found.scores
            case "both":
                return ranked_together(found.scores, sure * agreement(edges, named))
            case _:
                return sure

    def _pairs(self, graph: Graph, chosen: Mask, epoch: int) -> tuple[Pairs, Pairs]:
        """Along edges and along walks; their weights are the source's share."""
        config, n_s = self.config, len(self.data.source)
        draw = np.random.default_rng((config.seed, epoch, 1))
        starts = np.concatenate((np.arange(n_s), n_s + np.flatnonzero(chosen)))
        walks = walk_pairs(graph, n_s, starts, config.walk_length, min(config.walks, len(chosen)), draw)
        intra, inter = (
            replace(pairs, weights=mix_shares(pairs.weights, config.lam, config.lam_fixed))
            for pairs in (cross_pairs(graph, n_s, chosen), walks)
        )
        return intra, inter
