"""One graph over a labelled source and an unlabelled target, and which targets to trust by it.

    edges     source - target   mutual k nearest across the domains
              target - target   mutual k nearest
              source - source   same label: mutual k nearest of that label, all pairs, or none
    weights   cosine in [FLOOR, 1]; times label_eps where the labels of both ends differ
    mass      Delta = degree on sources, 0 on targets; T = half the average degree; both made to fit
    trust     the targets of the highest potential of the flow that mass takes

Nodes 0 .. n_s-1 are the source, n_s .. n-1 the target.

Reference: COUPLE (IEEE TIP 2025), sections III-B and III-D, eq. (2)-(11), (18)-(19). What is reconstructed:
docs/methods/couple.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import rankdata
from torch import Tensor

from adapters.diffusion import (
    FLOOR,
    SLACK,
    Flow,
    Graph,
    Indices,
    Reals,
    cap,
    components,
    flow_diffuse,
    scores,
)

Mask = NDArray[np.bool_]
SourceEdges = Literal["topk", "all", "none"]
Found = tuple[Indices, Indices, Reals]
"""Edges [M]: one end, the other, cosine."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Undirected edges [M], each once; what a neighbour search finds, before labels weigh it."""

    first: Indices
    second: Indices
    cosines: Reals
    sources: int
    """n_s."""
    nodes: int
    """n."""

    def graph(self, labels: Indices | None = None, label_eps: float = 1.0) -> Graph:
        """With weights; edges between different `labels` [n] weigh `label_eps` of their own."""
        weights = self.cosines.clip(FLOOR, 1).astype(np.float64)
        if labels is not None:
            weights = np.where(labels[self.first] == labels[self.second], weights, label_eps * weights)
        return Graph.of_edges(self.first, self.second, weights, self.nodes)


@dataclass(frozen=True, slots=True)
class SparseGraph(Graph):
    """A graph and its edges as a sparse matrix: most places of a table for two domains are unused."""

    matrix: csr_array
    """W [n, n]."""

    @classmethod
    def of(cls, graph: Graph) -> SparseGraph:
        used = graph.weights > 0
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(used.sum(1))))
        edges = graph.weights[used], graph.neighbours[used], starts
        return cls(graph.neighbours, graph.weights, csr_array(edges, shape=(len(graph), len(graph))))

    def pulled(self, x: Reals) -> Reals:
        """W x: [n] -> [n]."""
        out: Reals = self.matrix @ x
        return out


@dataclass(frozen=True, slots=True)
class Pairs:
    """Edges [P] between a source and a target to mix along, with their weights."""

    source: Indices
    """[P] in 0 .. n_s-1."""
    target: Indices
    """[P] in 0 .. n_t-1."""
    weights: Reals

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, slots=True)
class Diffusion:
    """A flow from the source, and what was done to make it fit."""

    scores: Reals
    """[n_t] in [0, 2]; 0 was never reached."""
    flow: Flow
    capacity: float
    """T."""
    load: float
    """beta0: mass over capacity before it was made to fit; 1 and above has no solution."""
    components: int
    capped: int
    """Components with more mass than they can hold."""
    dry: int
    """Components without mass."""


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """How well a selection separates right pseudo-labels Y+ from wrong ones Y-; needs target labels."""

    accuracy: float
    """|Y+| / n_t."""
    precision: float
    """|Sel n Y+| / |Sel|."""
    a1: float
    """|Sel n Y+| / |Y+|."""
    a0: float
    """|not Sel n Y-| / |Y-|."""
    f1: float
    """2 |Sel n Y+| / (|Sel| + |Y+|)."""
    gamma: float
    """Weight of edges from Y+ into Y+ over that from Y+ into Y-, among targets."""


def relation_edges(
    source: Tensor, labels: Indices, target: Tensor, k: int, source_edges: SourceEdges = "topk"
) -> Edges:
    """Searches all neighbours: this is where the time goes, and it depends on the number of threads.

    Args:
        source: [n_s, D] float32, any lengths; zero rows are similar to nothing.
        labels: [n_s] >= 0.
        target: [n_t, D] float32.
        k: neighbours that a node asks for on either side; it ends with at most 2k where sources have top-k.
        source_edges: which same-label pairs of sources are joined. All of them is the paper's wording; it
            takes n_s^2 / C edges and leaves too little capacity for the mass.
    """
    z_s, z_t = (torch.nn.functional.normalize(rows, dim=1) for rows in (source, target))
    n_s, n = len(z_s), len(z_s) + len(z_t)
    out, cosines = nearest_rows(z_s, z_t, k)
    back, _ = nearest_rows(z_t, z_s, k)
    i, j, w = mutual_pairs(out, cosines, back)
    found = [(i, j + n_s, w)]
    i, j, w = _inside(z_t, k)
    found.append((i + n_s, j + n_s, w))
    for label in np.unique(labels) if source_edges != "none" else ():
        own = np.flatnonzero(labels == label)
        i, j, w = _inside(z_s[own], k) if source_edges == "topk" else _everyone(z_s[own])
        found.append((own[i], own[j], w))
    first, second, weight = (np.concatenate(part) for part in zip(*found))
    return Edges(first, second, weight, n_s, n)


def nearest_rows(
    query: Tensor, base: Tensor, k: int, *, skip_self: bool = False, block: int = 1024
) -> tuple[Indices, Reals]:
    """Places [Q, k] of the k largest inner products, in no order, and those products.

    Places hold -1 where base has fewer rows. `skip_self` leaves row i of base out for query i, by its place:
    dropping the first hit instead would fail with duplicates.
    """
    width = max(0, min(k, len(base) - skip_self))
    near, cosines = np.full((len(query), k), -1, np.int64), np.zeros((len(query), k), np.float32)
    for start in range(0, len(query) if width else 0, block):
        similar = query[start : start + block] @ base.T
        if skip_self:
            similar.diagonal(start).fill_(-torch.inf)
        value, place = similar.topk(width, dim=1, sorted=False)
        near[start : start + block, :width], cosines[start : start + block, :width] = place, value
    return near, cosines


def mutual_pairs(lists: Indices, cosines: Reals, back: Indices) -> Found:
    """Edges i - j with j among lists[i] and i among back[j], from blocked searches.

    Args:
        lists: [n, k] what each node of one side chose on the other, -1 for nothing.
        cosines: [n, k] of those choices.
        back: [m, k] what each node of the other side chose on this one.
    """
    first, place = np.nonzero(lists >= 0)
    second = lists[first, place]
    kept = (back[second] == first[:, None]).any(1)
    return first[kept], second[kept], cosines[first, place][kept]


def _inside(rows: Tensor, k: int) -> Found:
    """Mutual neighbours within one set, each edge once."""
    lists, cosines = nearest_rows(rows, rows, k, skip_self=True)
    first, second, weight = mutual_pairs(lists, cosines, lists)
    once = first < second
    return first[once], second[once], weight[once]


def _everyone(rows: Tensor) -> Found:
    """All pairs of one set."""
    first, second = np.triu_indices(len(rows), 1)
    return first, second, (rows @ rows.T).numpy()[first, second]


def masses(graph: Graph, sources: int, rho: float, beta: float | None = None) -> tuple[Reals, float, float]:
    """Delta [n], T, and beta0 = sum Delta / sum T as the paper's constants give it.

    The paper's Delta is the degree of a source and T half the average degree. Together they can pass the
    capacity, where no solution exists, so Delta is scaled to a load of `beta`.

    Args:
        graph: of n nodes.
        sources: n_s.
        rho: share of targets that there should be room for.
        beta: load in (0, 1); None takes (n_s + rho n_t) / n.

    Reference: COUPLE, eq. (2); the scaling is reconstructed.
    """
    degree = graph.degree.astype(np.float64)
    capacity = degree.sum() / (2 * len(graph)) or 1.0  # without edges nothing flows, whatever it holds
    delta = np.where(np.arange(len(graph)) < sources, degree, 0.0)
    load = delta.sum() / (capacity * len(graph))
    wanted = (sources + rho * (len(graph) - sources)) / len(graph) if beta is None else beta
    return delta * (wanted / load if load else 0.0), float(capacity), float(load)


def diffuse(
    graph: Graph,
    sources: int,
    rho: float,
    *,
    beta: float | None = None,
    slack: float = SLACK,
    eps: float = 1e-3,
    sweeps: int = 5000,
) -> Diffusion:
    """Pours mass on the sources and scores the targets; arguments as in `masses`, `cap`, `flow_diffuse`."""
    delta, capacity, load = masses(graph, sources, rho, beta)
    labels = components(graph)
    held = np.bincount(labels, weights=delta, minlength=len(labels))
    size = np.bincount(labels, minlength=len(labels))
    delta = cap(delta, labels, capacity, slack)
    flow = flow_diffuse(SparseGraph.of(graph), delta, capacity, sweeps=sweeps, eps=eps)
    highest = float(flow.potentials[sources:].max(initial=0))
    return Diffusion(
        scores(flow, capacity, highest)[sources:],
        flow,
        capacity,
        load,
        components=int((size > 0).sum()),
        capped=int((held > (1 - slack) * capacity * size).sum()),
        dry=int(((held == 0) & (size > 0)).sum()),
    )


def agreement(edges: Edges, labels: Indices) -> Reals:
    """[n_t] share of a target's edge weight that goes to nodes of its own label; 0 without edges. Ours."""
    ends = np.concatenate((edges.first, edges.second))
    others = np.concatenate((edges.second, edges.first))
    weights = np.tile(edges.cosines.clip(FLOOR, 1), 2)
    whole = np.bincount(ends, weights, edges.nodes)
    same = np.bincount(ends, weights * (labels[ends] == labels[others]), edges.nodes)
    share: Reals = np.divide(same, whole, out=np.zeros_like(whole), where=whole > 0)
    return share[edges.sources :]


def ranked_together(flow: Reals, belief: Reals) -> Reals:
    """[n_t] sum of both ranks; 0 stays 0 for what the flow did not reach. Ours."""
    ranks: Reals = (rankdata(flow) + rankdata(belief)) * (flow > 0)
    return ranks


def select(score: Reals, rho: float, pseudo: Indices | None = None, quota: float | None = None) -> Mask:
    """[n_t] the top share rho by score, fewer where fewer were reached; equal scores in order of index.

    Args:
        score: [n_t] >= 0; a score of 0 is never chosen.
        rho: share of all targets.
        pseudo: [n_t] predicted classes; needed with a quota.
        quota: largest share of a predicted class that can be chosen, None for no limit.

    Reference: COUPLE, eq. (5); ranking by potential is reconstructed, the quota is ours.
    """
    order = np.argsort(-score, kind="stable")
    order = order[score[order] > 0]
    if pseudo is not None and quota is not None:
        named = pseudo[order]
        place = np.empty(len(order), np.int64)
        for label in np.unique(named):
            place[named == label] = np.arange((named == label).sum())
        order = order[place < share(quota, np.bincount(pseudo))[named]]
    chosen = np.zeros(len(score), bool)
    chosen[order[: int(share(rho, np.int64(len(score))))]] = True
    return chosen


def share(part: float, count: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    """floor(part * count), not one too few where the product is an integer but its float is just below."""
    return np.asarray(np.floor(part * count + 1e-9), np.int64)


def cross_pairs(graph: Graph, sources: int, chosen: Mask) -> Pairs:
    """Edges from sources into chosen targets."""
    trusted = np.concatenate((np.zeros(sources, bool), chosen))
    first, place = np.nonzero((graph.weights[:sources] > 0) & trusted[graph.neighbours[:sources]])
    return Pairs(first, graph.neighbours[first, place] - sources, graph.weights[first, place])


def walk_pairs(
    graph: Graph, sources: int, starts: Indices, length: int, walks: int, draw: np.random.Generator
) -> Pairs:
    """Neighbours on random walks that are of different domains; a pair counts as often as it is walked.

    Args:
        graph: nodes of it without edges end a walk.
        sources: n_s.
        starts: nodes to start from, drawn with replacement.
        length: steps of a walk.
        walks: number of walks.
        draw: chooses starts and steps; a step from i goes to j with chance w_ij / s_i.

    Reference: COUPLE, eq. (18)-(19); keeping only the pairs that straddle the domains is reconstructed.
    """
    at = draw.choice(starts, walks) if len(starts) else np.zeros(0, np.int64)
    reach = np.cumsum(graph.weights, axis=1)
    steps: list[tuple[Indices, Indices]] = []
    for _ in range(length if reach.shape[1] else 0):
        sure = reach[at, -1] > 0
        at = at[sure]
        place = (reach[at] > (draw.random(len(at)) * reach[at, -1])[:, None]).argmax(1)
        steps.append((at, place))
        at = graph.neighbours[at, place]
    if not steps:
        nowhere = np.zeros(0, np.int64)
        return Pairs(nowhere, nowhere, np.zeros(0))
    first, place = (np.concatenate(part) for part in zip(*steps))
    second = graph.neighbours[first, place]
    apart = (first < sources) != (second < sources)
    low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
    return Pairs(low, high - sources, graph.weights[first, place][apart])


def selection_report(graph: Graph, sources: int, chosen: Mask, correct: Mask) -> SelectionReport:
    """Judges a selection [n_t] by whether pseudo-labels are `correct` [n_t]; NaN where nothing was counted.

    Reference: COUPLE, eq. (6)-(11). gamma is taken as a ratio of sums over Y+, for a mean of ratios is
    infinite as soon as one node has no edge into Y-.
    """
    right = np.concatenate((np.zeros(sources, bool), correct))
    wrong = np.concatenate((np.zeros(sources, bool), ~correct))
    good, bad = (
        float((graph.weights[right] * ends[graph.neighbours[right]]).sum()) for ends in (right, wrong)
    )
    hit = int((chosen & correct).sum())

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else float("inf") if part else float("nan")

    return SelectionReport(
        accuracy=ratio(int(correct.sum()), len(correct)),
        precision=ratio(hit, int(chosen.sum())),
        a1=ratio(hit, int(correct.sum())),
        a0=ratio(int((~chosen & ~correct).sum()), int((~correct).sum())),
        f1=ratio(2 * hit, int(chosen.sum() + correct.sum())),
        gamma=ratio(good, bad),
    )
