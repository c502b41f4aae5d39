"""One graph over a labelled source and an unlabelled target.

    edges     source - target   mutual k nearest across the domains
              target - target   mutual k nearest
              source - source   same label: mutual k nearest of that label, all pairs, or none
    weights   cosine in [FLOOR, 1]; times label_eps where the labels of both ends differ

Nodes 0 .. n_s-1 are the source, n_s .. n-1 the target. What mass does on it: `relation_flow`; which targets
are trusted: `relation_selection`; which pairs are mixed: `relation_pairs`.

Reference: COUPLE (IEEE TIP 2025), sections III-B and III-D. What is reconstructed: docs/methods/couple.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from adapters.diffusion import FLOOR, Graph, Indices, Reals

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
