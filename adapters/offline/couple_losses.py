"""Losses of COUPLE on relaxed codes: what a source, a trusted target and a mixture of both should look like.

    logits   scale * cos(h, e_c)
    source   CE + margin * (1/C) sum_{c != c'} relu(cos(e_c, e_c'))^2 + quantisation * mean (|h| - 1)^2
    target   pulled to same-label sources of the batch (supcon), or CE with its pseudo-label
    mixture  CE with the soft label lam y_i + (1 - lam) yhat_j

All take only the cosine or the direction of h, so a head may end in tanh or in a row of length 1. A mean over
nothing is 0 with a gradient of 0.

Reference: COUPLE (IEEE TIP 2025), eq. (12)-(25). Most forms are reconstructed: docs/methods/couple.md.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.diffusion import Reals

FROZEN_STEPS = 200  # of the label net alone, as in the code of PEACE
Lam = Literal["edge", "fixed", "rank"]
LEAST_SHARE = 0.5
"""Least share of the source in a mixture: sources are what is known."""


def label_net(classes: int, hidden: int, bits: int) -> nn.Sequential:
    """psi: one-hot [., C] -> relaxed label codes [., L]."""
    return nn.Sequential(nn.Linear(classes, hidden), nn.ReLU(), nn.Linear(hidden, bits), nn.Tanh())


def label_codes(net: nn.Module, like: Tensor, classes: int) -> Tensor:
    """e [C, L] of all classes, in the precision and on the device of `like`."""
    codes: Tensor = net(torch.eye(classes, dtype=like.dtype, device=like.device))
    return codes


class FixedCodes(nn.Module):
    """Label codes of -1 and +1 that do not learn."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, one_hot: Tensor) -> Tensor:
        return one_hot @ self.get_buffer("codes")


def settled(net: nn.Module, classes: int) -> Tensor:
    """Signs of label codes that were trained alone, apart from each other and away from 0."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(FROZEN_STEPS):
        codes = label_codes(net, torch.empty(0), classes)
        optimizer.zero_grad()
        (label_margin(codes) + 0.01 * quantisation(codes)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return torch.where(label_codes(net, torch.empty(0), classes) >= 0, 1.0, -1.0)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """[A, L], [B, L] -> [A, B]; rows of zeros are similar to nothing."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def label_logits(h: Tensor, codes: Tensor, scale: float) -> Tensor:
    """[B, L], [C, L] -> [B, C]."""
    return scale * cosines(h, codes)


def label_margin(codes: Tensor) -> Tensor:
    """(1/C) sum over pairs of classes of relu(cos)^2: no two label codes should agree in most bits.

    At most 2L vectors of width L can reach 0.
    """
    between = cosines(codes, codes).relu().square()
    return (between.sum() - between.diagonal().sum()) / len(codes)


def quantisation(h: Tensor) -> Tensor:
    """mean (|h| - 1)^2 of rows brought to length sqrt(L): 0 where all values of a row are equally far from 0.

    The length of a row says nothing about its bits, and heads that end in a row of length 1 have no other.
    """
    return _mean((F.normalize(h, dim=1).abs() * h.shape[1] ** 0.5 - 1).square(), h)


def source_loss(
    h: Tensor, y: Tensor, codes: Tensor, *, scale: float, margin: float, quantised: float
) -> Tensor:
    """L_s of relaxed codes h [B, L] with classes y [B] and label codes [C, L].

    Reference: COUPLE, eq. (14).
    """
    named = _mean(F.cross_entropy(label_logits(h, codes, scale), y, reduction="none"), h)
    return named + margin * label_margin(codes) + quantised * quantisation(h)


def target_supcon(h_t: Tensor, pseudo: Tensor, h_s: Tensor, y_s: Tensor, tau: float) -> Tensor:
    """L_t: mean over targets j of -1/|Pi(j)| sum_{i in Pi(j)} log softmax_i(cos(h_j, h_i) / tau).

    Pi(j) are the sources of the batch with the pseudo-label of j; targets without any are left out.

    Reference: COUPLE, eq. (16); the form is reconstructed.
    """
    if not len(h_s):
        return h_t.sum() * 0
    chance = F.log_softmax(cosines(h_t, h_s) / tau, dim=1)
    same = pseudo[:, None] == y_s
    counts = same.sum(1)
    each = -torch.where(same, chance, 0).sum(1) / counts.clamp(min=1)
    return _mean(each[counts > 0], h_t)


def target_ce(h_t: Tensor, pseudo: Tensor, codes: Tensor, scale: float) -> Tensor:
    """The other L_t: cross-entropy with the pseudo-label."""
    return _mean(F.cross_entropy(label_logits(h_t, codes, scale), pseudo, reduction="none"), h_t)


def mixed(first: Tensor, second: Tensor, lam: Tensor) -> Tensor:
    """lam first + (1 - lam) second, of pictures or features [P, ...] with lam [P].

    Reference: COUPLE, eq. (20) and (23).
    """
    part = lam.reshape(-1, *(1 for _ in first.shape[1:]))
    return part * first + (1 - part) * second


def mix_loss(h: Tensor, first: Tensor, second: Tensor, lam: Tensor, codes: Tensor, scale: float) -> Tensor:
    """Cross-entropy of mixtures h [P, L] with soft labels: lam on the class `first`, the rest on `second`.

    Reference: COUPLE, eq. (21), (22), (24).
    """
    chance = label_logits(h, codes, scale).log_softmax(1)
    own, other = (chance.gather(1, y[:, None])[:, 0] for y in (first, second))
    return _mean(-(lam * own + (1 - lam) * other), h)


def mix_shares(weights: Reals, rule: Lam, fixed: float) -> Reals:
    """lam [P] in [LEAST_SHARE, 1], the source's share in a mixture along edges of these weights.

    `edge` takes the weight itself, `fixed` one number, `rank` spreads the ranks of the weights evenly over
    the range: cosines of neighbours are all near 1, and with them mixtures are almost the source.

    Reference: COUPLE, eq. (20); `fixed` is that of the authors' code, `rank` is ours.
    """
    if rule == "edge":
        return weights.clip(LEAST_SHARE, 1)
    if rule == "fixed":
        return np.full(len(weights), max(fixed, LEAST_SHARE))
    place = np.unique(weights, return_inverse=True)[1]
    return np.asarray(LEAST_SHARE + (1 - LEAST_SHARE) * place / max(1, place.max(initial=0)))


def _mean(values: Tensor, h: Tensor) -> Tensor:
    """Mean, or a zero that still hangs on h: an optimiser then sees gradients of 0 and not none."""
    return values.mean() if values.numel() else h.sum() * 0
