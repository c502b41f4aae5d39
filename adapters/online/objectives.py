"""The terms of the on-line objectives: pure, gradient flows through the queries only.

`mask` [B] marks real rows; a padding row is removed as a row and as a column. Every square root has a
small constant under it: where rows coincide or the gap is zero its direction would be undefined.

Reference: TCR (ICLR 2025); `loss_gen`, `loss_pairs`, `bidirectional` and `weighted` belong to the REST-style
method. docs/methods/tcr.md, docs/methods/rest.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-12
SURE_MARGIN = 1e-3  # TCR code: keeps the weight finite when the ceiling is 0


@dataclass(frozen=True, slots=True)
class Gauges:
    """How far a batch has drifted: mean distance to its centre, gap, mean entropy, share of sure rows."""

    uniformity: float
    gap: float
    entropy: float
    kept_share: float


def spread(q: Tensor, mask: Tensor) -> Tensor:
    """||q_i - mean(q)|| of the real rows of [B, D], the mean not re-normalised."""
    rows = q[mask]
    return ((rows - rows.mean(0)).square().sum(1) + EPS).sqrt()


def gap(q: Tensor, gp: Tensor, mask: Tensor) -> Tensor:
    """Delta_T = ||mean(q) - mean(g')||, a scalar, for unit queries and neighbours [B, D]."""
    return ((q[mask].mean(0) - gp[mask].mean(0)).square().sum() + EPS).sqrt()


def refined(q: Tensor, gp: Tensor, tau: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the batch's own neighbours and its entropy in nats.

    Args:
        q: unit queries [B, D].
        gp: their nearest gallery items [B, D]; equal neighbours stay equal columns.
        tau: temperature.
        mask: real rows [B].

    Returns:
        p [B, B] and E [B]; zero where the row or the column is padding.

    Reference: TCR, query prediction refinement.
    """
    log_p = (q[mask] @ gp[mask].T / tau).log_softmax(1)
    real = mask.nonzero().flatten()
    p, entropy = q.new_zeros(len(q), len(q)), q.new_zeros(len(q))
    p[real[:, None], real[None, :]] = log_p.exp()
    entropy[real] = -(log_p.exp() * log_p).sum(1)
    return p, entropy


def loss_uni(q: Tensor, mask: Tensor, t: float) -> Tensor:
    """Uniformity: mean of exp(-t ||q_i - mean(q)||). t multiplies, as in TCR's code (the paper divides)."""
    return (-t * spread(q, mask)).exp().mean()


def loss_emg(q: Tensor, gp: Tensor, mask: Tensor, delta_s: float) -> Tensor:
    """Gap: (Delta_T - Delta_S)^2. Pulls to the source's gap, not to zero."""
    return (gap(q, gp, mask) - delta_s).square()


def sure(entropy: Tensor, e_m: float, mask: Tensor) -> Tensor:
    """Real rows [B] whose entropy is not above the ceiling E_m."""
    return mask & (entropy <= e_m)


def loss_rem(entropy: Tensor, e_m: float, mask: Tensor) -> Tensor | None:
    """Robust entropy: mean of w_i E_i over rows with E_i <= E_m, w_i = max(0, 1 - E_i / (E_m + .001)).

    The weight carries no gradient. None when no row passes: the mean of nothing is NaN and would poison
    the parameters.
    """
    kept = entropy[sure(entropy, e_m, mask)]
    if len(kept) == 0:
        return None
    weight = (1 - kept.detach() / (e_m + SURE_MARGIN)).clamp_min(0)
    return (weight * kept).mean()


def weighted(values: Tensor, weights: Tensor, mask: Tensor) -> Tensor | None:
    """Weighted mean of values [B] over the real rows; None when all their weights [B] are zero.

    The weights carry no gradient.
    """
    kept, share = values[mask], weights[mask].detach()
    total = share.sum()
    return None if float(total) == 0 else (share * kept).sum() / total


def bidirectional(q: Tensor, gp: Tensor, tau: float, mask: Tensor) -> Tensor:
    """Per row [B] the KL of query i's choice among the neighbours from its neighbour's among the queries.

    KL(p_i || c_i) with p = softmax(q G'^T / tau) by rows and c the transpose of the softmax by columns: both
    are distributions over the pairs of the batch, and equal neighbours stay equal columns. Zero for padding.

    Reference: a low-confidence reconstruction of query-gallery consistency; docs/methods/rest.md.
    """
    logits = q[mask] @ gp[mask].T / tau
    query, item = logits.log_softmax(1), logits.T.log_softmax(1)
    out = q.new_zeros(len(q))
    out[mask] = (query.exp() * (query - item)).sum(1)
    return out


def loss_pairs(q: Tensor, targets: Tensor, tau: float) -> Tensor:
    """Symmetric InfoNCE of known pairs (D2): queries and unit items [M, D], row by row belonging together."""
    logits = q @ targets.T / tau
    return -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2


def loss_gen(q: Tensor, q_src: Tensor, gp_src: Tensor, tau: float, mask: Tensor) -> Tensor:
    """General knowledge (D1): mean KL(p_source || p_adapted).

    Args:
        q: adapted unit queries [B, D].
        q_src: the same queries by the frozen encoder [B, D].
        gp_src: their nearest gallery items in the *source* ranking [B, D]: the columns of both softmaxes.
        tau: temperature.
        mask: real rows [B].
    """
    columns = gp_src[mask].T / tau
    source = (q_src[mask].detach() @ columns).log_softmax(1)
    adapted = (q[mask] @ columns).log_softmax(1)
    return (source.exp() * (source - adapted)).sum(1).mean()


@torch.no_grad()
def gauges(q: Tensor, gp: Tensor, entropy: Tensor, e_m: float, mask: Tensor) -> Gauges:
    """The drift gauges of a batch with at least one real row."""
    kept = sure(entropy, e_m, mask).sum() / mask.sum()
    return Gauges(
        float(spread(q, mask).mean()), float(gap(q, gp, mask)), float(entropy[mask].mean()), float(kept)
    )
