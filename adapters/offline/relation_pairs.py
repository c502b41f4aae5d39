"""Pairs of a source and a target to mix: along edges, and along random walks.

Reference: COUPLE (IEEE TIP 2025), section III-D, eq. (18)-(19); docs/methods/couple.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapters.diffusion import Graph, Indices, Reals
from adapters.offline.relation_selection import Mask


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
