"""Closed forms of prototype-based alignment and quantisation. Arrays in, arrays out; samples are rows.

Arrays are of NumPy or torch, on any device: the formulas stand here once, through the array API.

Two domains share C orthonormal prototypes o_j, the rows of O, and one projection P:

    d_ij = ||x_i P - o_j||^2      r_i = membership of target sample i      alpha_i = its reliability

Every step minimises its own part of the objective in `psca` exactly, or never raises it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from adapters.semantics import Floats, Labels

NEAREST = 1e-12
"""Floor of a squared distance: memberships divide by it."""
HALVINGS = 100
"""Bisection steps: the interval (0, 1] is exhausted in float64 long before."""


def one_hot(labels: Labels, classes: int, dtype: Any = None) -> Floats:
    """Labels [n] in 0..C-1 -> [n, C], float64 where no type is given."""
    xp = array_namespace(labels)
    found: Floats = xp.eye(classes, dtype=dtype or xp.float64, device=device(labels))[labels]
    return found


def membership(distances: Floats, named: Labels, weight: Floats, sigma: float = 2.0) -> Floats:
    """argmin over the simplex of sum_j r_j^sigma d_j - alpha log r_named, row by row.

    alpha = 0 is fuzzy c-means; r is one-hot exactly where alpha >= sigma d_named.

    Args:
        distances: d [n, C].
        named: [n] the class that alpha speaks for.
        weight: alpha [n] >= 0.
        sigma: > 1; 2 has a closed form, others are bisected.

    Returns:
        R [n, C] >= 0, rows summing to 1.

    Reference: PSCA, Eq. 4; the solution is ours.
    """
    xp = array_namespace(distances)
    d = xp.clip(distances, min=NEAREST)
    rows = xp.arange(len(d), device=device(d))
    own = d[rows, named]
    if sigma == 2:
        others = (1 / d).sum(1) - 1 / own
        u = 1 + others * own
        inner = xp.clip((1 + xp.sqrt(1 + 2 * weight * others * u)) / (2 * u), max=1)
        inner = xp.where(weight >= 2 * own, xp.ones_like(inner), inner)
        share = 1 / d
    else:
        inner = _bisected(d, own, named, weight, sigma)
        share = d ** (-1 / (sigma - 1))
    share[rows, named] = 0
    r: Floats = (1 - inner)[:, None] * share / xp.sum(share, axis=1, keepdims=True)
    r[rows, named] = inner
    return r


def _bisected(d: Floats, own: Floats, named: Labels, weight: Floats, sigma: float) -> Floats:
    """r of the named class: its own condition gives the multiplier, which gives all others; find sum 1."""
    xp = array_namespace(d)
    power = 1 / (sigma - 1)
    others = ((sigma * d) ** -power).sum(1) - (sigma * own) ** -power
    low, high = xp.zeros_like(own), xp.ones_like(own)
    least = xp.finfo(own.dtype).smallest_normal
    for _ in range(HALVINGS):
        r = (low + high) / 2
        multiplier = sigma * own * r ** (sigma - 1) - weight / xp.clip(r, min=least)
        over = r + xp.clip(multiplier, min=0) ** power * others > 1
        low, high = xp.where(over, low, r), xp.where(over, r, high)
    found: Floats = xp.where(weight >= sigma * own, xp.ones_like(high), high)
    return found


# Projection: one step of an iteratively reweighted ridge.


def row_weights(projection: Floats, eps: float = 1e-6) -> Floats:
    """Diagonal [D] of G: 1 / (2 sqrt(||p_i||^2 + eps)), the tangent of the row-sparse norm."""
    found: Floats = 0.5 / array_namespace(projection).sqrt((projection**2).sum(1) + eps)
    return found


def project(
    x: Floats, weights: Floats, prototypes: Floats, gap: Floats, rows: Floats, align: float, sparse: float
) -> Floats:
    """argmin_P of sum_ij w_ij ||x_i P - o_j||^2 + align ||gap P||^2 + sparse sum_i rows_i ||p_i||^2.

    Primal for D <= n, dual otherwise; both give the same P.

    Args:
        x: X [n, D].
        weights: W [n, C] >= 0, a positive sum in each row.
        prototypes: O [C, q].
        gap: v [D], the weighted difference of the domain means.
        rows: diagonal [D] of G, positive.
        align: lambda1 >= 0.
        sparse: lambda2 > 0.

    Returns:
        P [D, q].
    """
    solve = project_dual if x.shape[1] > x.shape[0] else project_primal
    return solve(x, weights, prototypes, gap, rows, align, sparse)


def project_primal(
    x: Floats, weights: Floats, prototypes: Floats, gap: Floats, rows: Floats, align: float, sparse: float
) -> Floats:
    """P = (X' Omega X + align v v' + sparse G)^-1 X' W O, a system of size D."""
    xp = array_namespace(x)
    system = x.T @ (x * weights.sum(1)[:, None]) + align * gap[:, None] * gap + sparse * xp.diag(rows)
    found: Floats = xp.linalg.solve(system, x.T @ weights @ prototypes)
    return found


def project_dual(
    x: Floats, weights: Floats, prototypes: Floats, gap: Floats, rows: Floats, align: float, sparse: float
) -> Floats:
    """The same P by a system of size n + 1: G^-1 Z' (Z G^-1 Z' + sparse I)^-1 Y, Z = [Omega^1/2 X; v]."""
    xp = array_namespace(x)
    root = xp.sqrt(weights.sum(1))[:, None]
    z = xp.concat((x * root, align**0.5 * gap[None]))
    y = xp.concat((weights @ prototypes / root, xp.zeros_like(prototypes[:1])))
    scaled = z / rows
    system = scaled @ z.T + sparse * xp.eye(len(z), dtype=x.dtype, device=device(x))
    found: Floats = scaled.T @ xp.linalg.solve(system, y)
    return found


# Orthonormal frames.


def polar(matrix: Floats) -> Floats:
    """The orthonormal factor U V' of a thin SVD: argmax of Tr(W' matrix) over orthonormal W (Procrustes)."""
    u, _, v = array_namespace(matrix).linalg.svd(matrix, full_matrices=False)
    found: Floats = u @ v
    return found


def prototypes(moments: Floats, old: Floats) -> Floats:
    """O [C, q] of orthonormal rows from moments W' X P; the old one where rank below C leaves it open."""
    xp = array_namespace(moments)
    s = xp.linalg.svdvals(moments)
    if s[-1] <= s[0] * len(old) * xp.finfo(moments.dtype).eps:
        return old
    return polar(moments)


def power_iteration(gram: Floats, moments: Floats, frame: Floats, steps: int) -> Floats:
    """Lowers Tr(W' A W) - 2 Tr(W' N) over orthonormal W [m, L], never raising it.

    W <- polar((mu I - A) W + N), mu the largest eigenvalue of A. For L = m the first term is constant and
    `polar(N)` is already the answer.

    Args:
        gram: A [m, m], symmetric, positive semidefinite.
        moments: N [m, L].
        frame: W [m, L] to start from.
        steps: how often.
    """
    if frame.shape[0] == frame.shape[1]:
        return polar(moments)
    xp = array_namespace(gram)
    lifted = xp.linalg.eigvalsh(gram)[-1] * xp.eye(len(gram), dtype=gram.dtype, device=device(gram)) - gram
    for _ in range(steps):
        frame = polar(lifted @ frame + moments)
    return frame


def leading_frame(features: Floats, bits: int, draw: np.random.Generator) -> Floats:
    """The span of the leading `bits` principal directions of features [n, m], turned at random: [m, L].

    A random frame would spend bits on directions in which the features have nothing. Which vectors an
    eigensolver gives for equal eigenvalues, and for those that are rounding, depends on its library and on
    the processor: nothing here does. Drawn vectors are projected onto spans, which have no such freedom, and
    where a group of equal eigenvalues is cut by L the draws decide which part of its span is taken.

    Returns:
        Orthonormal columns.
    """
    xp = array_namespace(features)
    width = features.shape[1]
    # Drawn on the processor: equal everywhere.
    drawn = xp.asarray(draw.standard_normal((2, width, bits)), dtype=features.dtype, device=device(features))
    values, directions = xp.linalg.eigh(features.T @ features)
    last = values[width - bits]
    slack = _tolerance(features) * xp.abs(values[-1])
    sure, tied = directions[:, values > last + slack], directions[:, xp.abs(values - last) <= slack]
    span = sure @ sure.T
    missing = bits - int(sure.shape[1])
    if missing:
        taken = polar(tied @ (tied.T @ drawn[1][:, :missing]))
        span = span + taken @ taken.T
    return polar(span @ drawn[0])


def _tolerance(features: Floats) -> float:
    """Share of the largest value below which a difference is rounding."""
    eps: float = array_namespace(features).finfo(features.dtype).eps
    return math.sqrt(eps) / 10


def ridge(x: Floats, codes: Floats, strength: float) -> Floats:
    """(X' X + strength I)^-1 X' H [D, L]: the linear hash of features [n, D] learned from codes [n, L].

    A bit that is the same for all rows, or says nothing that features do, has X'h = 0 but for rounding: its
    column is 0, and the bit 1 for everybody, rather than one that depends on the processor.
    """
    xp = array_namespace(x)
    moments = x.T @ codes
    told = xp.sqrt((moments**2).sum(0)) > _tolerance(x) * xp.sqrt((x**2).sum() * len(x))
    codes = codes * xp.astype(told, codes.dtype)
    diagonal = strength * xp.eye(min(x.shape), dtype=x.dtype, device=device(x))
    found: Floats
    if x.shape[1] > x.shape[0]:
        found = x.T @ xp.linalg.solve(x @ x.T + diagonal, codes)
    else:
        found = xp.linalg.solve(x.T @ x + diagonal, moments * xp.astype(told, codes.dtype))
    return found
