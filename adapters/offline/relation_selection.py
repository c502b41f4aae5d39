"""Which targets are trusted, by what the flow or the pseudo-labels say of them, and how good a choice was.

Reference: COUPLE (IEEE TIP 2025), section III-B, eq. (5)-(11). What is reconstructed: docs/methods/couple.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from adapters.diffusion import FLOOR, Graph, Indices, Reals
from adapters.offline.relation_graph import Edges

Mask = NDArray[np.bool_]


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
