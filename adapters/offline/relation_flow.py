"""Mass poured on the source of a relation graph, made to fit, and how high it comes on the targets.

    mass      Delta = degree on sources, 0 on targets; T = half the average degree; both made to fit
    scores    by the potentials of the flow that mass takes

Reference: COUPLE (IEEE TIP 2025), section III-B, eq. (2)-(5). What is reconstructed: docs/methods/couple.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from adapters.diffusion import SLACK, Flow, Graph, Reals, cap, components, flow_diffuse, scores


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
