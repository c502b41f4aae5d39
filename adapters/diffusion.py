"""Flow diffusion with the 2-norm: mass poured on some nodes of a graph spills over its edges until it fits.

A node holds at most a capacity T and passes the rest to its neighbours in proportion to the weights of its
edges. Where mass comes to rest says which nodes are near the sources; how high the potential of a full node
is says how near. The flow of least energy has the potentials

    min_{x >= 0}  1/2 x' Lap x + x' (T - Delta)        Lap = diag(s) - W,  s_i = sum_j w_ij
    at rest       m = Delta - Lap x

and is optimal when x >= 0, m <= T and x_i (T - m_i) = 0: only full nodes have a potential.

Reference: COUPLE (IEEE TIP 2025), section III-B, eq. (2)-(5). The place of the weights and the dual are
reconstructed. Symbols, constants and what is reconstructed: docs/methods/flow.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from core.errors import ConfigError

Reals = NDArray[np.floating]
Indices = NDArray[np.int64]
FLOOR = 1e-3  # weight of the loosest edge: cosines below it would cut the graph, negative ones break it
SLACK = 0.05  # share of a component's capacity that stays free, so that its potentials are unique


@dataclass(frozen=True, slots=True)
class Graph:
    """A symmetric weighted graph as a padded table.

    Args:
        neighbours: [n, K]; unused places name their own row.
        weights: [n, K] > 0, 0 in unused places; float32 or float64 is the precision of the flow.
    """

    neighbours: Indices
    weights: Reals

    @classmethod
    def of_edges(cls, first: Indices, second: Indices, weights: Reals, nodes: int) -> Graph:
        """From undirected edges [M], each given once and none from a node to itself."""
        rows, columns = np.concatenate((first, second)), np.concatenate((second, first))
        order = np.argsort(rows * nodes + columns)
        rows, columns = rows[order], columns[order]
        degree = np.bincount(rows, minlength=nodes)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(degree) - degree, degree)
        width = int(degree.max(initial=0))
        neighbours = np.repeat(np.arange(nodes, dtype=np.int64)[:, None], width, axis=1)
        table = np.zeros((nodes, width), weights.dtype)
        neighbours[rows, place] = columns
        table[rows, place] = np.concatenate((weights, weights))[order]
        return cls(neighbours, table)

    def __len__(self) -> int:
        return len(self.neighbours)

    @property
    def degree(self) -> Indices:
        """[n] number of neighbours."""
        count: Indices = (self.weights > 0).sum(1)
        return count

    def pulled(self, x: Reals) -> Reals:
        """W x: [n] -> [n]."""
        out: Reals = np.einsum("nk,nk->n", self.weights, x[self.neighbours])
        return out


@dataclass(frozen=True, slots=True)
class Flow:
    """Potentials x [n], mass at rest m [n], the largest violation of optimality, and sweeps taken."""

    potentials: Reals
    mass: Reals
    residual: float
    sweeps: int


def nearest(similarity: Reals, neighbours: int) -> Indices:
    """Columns of the largest similarities of each row: [n, m] -> [n, neighbours], in no order.

    Places hold -1 where there is nothing more: entries of -inf are never near. Ties are broken in the same
    way every time.
    """
    rows, width = similarity.shape
    if neighbours >= width:
        found = np.broadcast_to(np.arange(width), (rows, width))
    else:
        found = similarity.argpartition(width - neighbours, axis=1)[:, width - neighbours :]
    near = np.full((rows, neighbours), -1, np.int64)
    near[:, : found.shape[1]] = np.where(np.take_along_axis(similarity, found, 1) > -np.inf, found, -1)
    return near


def mutual(lists: Indices, back: Indices, similarity: Reals) -> Reals:
    """Weights [n, k] of the edges i - lists[i, c]: the cosine in [FLOOR, 1], 0 where it is not returned.

    Args:
        lists: [n, k] what each node of one side chose on the other, -1 for nothing.
        back: [m, k'] what each node of the other side chose on this one.
        similarity: [n, m] cosines.
    """
    own = np.arange(len(lists))[:, None, None]
    returned = (back[lists] == own).any(2) & (lists >= 0)
    cosines = np.take_along_axis(similarity, np.maximum(lists, 0), 1).clip(FLOOR, 1)
    weights: Reals = np.where(returned, cosines, 0).astype(similarity.dtype)
    return weights


def components(graph: Graph) -> Indices:
    """[n] the smallest node of each node's connected component."""
    n, width = graph.neighbours.shape
    starts = np.arange(0, n * width + 1, width) if width else np.zeros(n + 1, np.int64)
    edges = np.ones(n * width, np.int8), graph.neighbours.reshape(-1), starts
    _, labels = connected_components(csr_array(edges, shape=(n, n)), directed=False)
    _, smallest, place = np.unique(labels, return_index=True, return_inverse=True)
    found: Indices = smallest[place]
    return found


def cap(delta: Reals, labels: Indices, capacity: float, slack: float = SLACK) -> Reals:
    """Scales mass [n] down in the components that it does not fit into; the others keep theirs.

    Only where the mass of every component is below its capacity has the problem a solution. What is taken
    away is lost: another component could not be reached by it either.
    """
    room = (1 - slack) * capacity * np.bincount(labels, minlength=len(labels))
    held = np.bincount(labels, weights=delta, minlength=len(labels))
    share = np.divide(room, held, out=np.ones_like(room), where=held > room)
    capped: Reals = delta * share[labels].astype(delta.dtype)
    return capped


def flow_diffuse(
    graph: Graph,
    delta: Reals,
    capacity: float,
    *,
    sweeps: int = 5000,
    eps: float = 1e-3,
    start: Reals | None = None,
) -> Flow:
    """Synchronous push: all nodes at once balance their mass against their neighbours.

    One sweep is x_i <- max(0, x_i + (m_i - T) / s_i). From zero, potentials only rise (one-sided push); from
    any other start they also fall (two-sided), which is what a warm start needs. m follows from x anew in
    every sweep, so that m = Delta - Lap x cannot drift.

    Args:
        graph: float32 or float64; n nodes. Nodes without edges keep their mass.
        delta: [n] >= 0 mass poured in. A component that it does not fit into never comes to rest: `cap`.
        capacity: T > 0, the same for all nodes.
        sweeps: limit of work, never of time, so that a replay does the same. 0 judges the start.
        eps: stops when no condition is violated by more than eps * T.
        start: [n] potentials to start from, >= 0; zero when None.

    Returns:
        Potentials, mass, the largest violation max(m - T, and |m - T| where x > 0), sweeps taken. A limit
        reached shows as a residual above eps * T.

    Raises:
        ConfigError: the capacity is not positive.
    """
    if not capacity > 0:
        raise ConfigError(f"expected a capacity above 0, got {capacity}: every node must hold some mass")
    strength = graph.weights.sum(1)
    step = np.divide(1, strength, out=np.zeros_like(strength), where=strength > 0)
    x = np.zeros_like(strength) if start is None else np.where(strength > 0, start, 0).astype(strength.dtype)
    for done in range(sweeps + 1):
        mass = delta + graph.pulled(x) - strength * x
        excess = mass - capacity
        residual = float(np.where(x > 0, np.abs(excess), excess).max(initial=0))
        if residual <= eps * capacity or done == sweeps:
            break
        x = np.maximum(0, x + excess * step)
    return Flow(x, mass, residual, done)


def scores(flow: Flow, capacity: float, scale: float) -> Reals:
    """[n] in [0, 2]: m / T of nodes that are not full, 1 + x / scale of full ones. 0 was never reached.

    Mass alone cannot rank: all full nodes hold T.

    Args:
        flow: solved, or as far as it came.
        capacity: T.
        scale: potential that counts as the highest; 0 where no node is full.
    """
    part = np.clip(flow.mass / capacity, 0, 1)
    full = 1 + np.minimum(flow.potentials, scale) / max(scale, np.finfo(np.float64).tiny)
    ranked: Reals = np.where(flow.potentials > 0, full, part)
    return ranked
