"""Closed forms of prototype-based alignment and quantisation. Arrays in, arrays out; samples are rows.

Two domains share C orthonormal prototypes o_j, the rows of O, and one projection P:

    d_ij = ||x_i P - o_j||^2      r_i = membership of target sample i      alpha_i = its reliability

Every step minimises its own part of the objective in `psca` exactly, or never raises it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adapters.semantics import Floats, Labels

NEAREST = 1e-12
"""Floor of a squared distance: memberships divide by it."""
HALVINGS = 100
"""Bisection steps: the interval (0, 1] is exhausted in float64 long before."""


def one_hot(labels: Labels, classes: int, dtype: Any = np.float64) -> Floats:
    """Labels [n] in 0..C-1 -> [n, C]."""
    return np.asarray(np.eye(classes, dtype=dtype)[labels])


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
    d = np.maximum(distances, NEAREST)
    rows = np.arange(len(d))
    own = d[rows, named]
    if sigma == 2:
        others = (1 / d).sum(1) - 1 / own
        u = 1 + others * own
        inner = np.minimum((1 + np.sqrt(1 + 2 * weight * others * u)) / (2 * u), 1)
        inner = np.where(weight >= 2 * own, 1, inner)
        share = 1 / d
    else:
        inner = _bisected(d, own, named, weight, sigma)
        share = d ** (-1 / (sigma - 1))
    share[rows, named] = 0
    r = (1 - inner)[:, None] * share / share.sum(1, keepdims=True)
    r[rows, named] = inner
    return np.asarray(r)


def _bisected(d: Floats, own: Floats, named: Labels, weight: Floats, sigma: float) -> Floats:
    """r of the named class: its own condition gives the multiplier, which gives all others; find sum 1."""
    power = 1 / (sigma - 1)
    others = ((sigma * d) ** -power).sum(1) - (sigma * own) ** -power
    low, high = np.zeros_like(own), np.ones_like(own)
    for _ in range(HALVINGS):
        r = (low + high) / 2
        multiplier = sigma * own * r ** (sigma - 1) - weight / np.maximum(r, np.finfo(r.dtype).tiny)
        over = r + np.maximum(multiplier, 0) ** power * others > 1
        low, high = np.where(over, low, r), np.where(over, r, high)
    return np.where(weight >= sigma * own, 1, high)


# Projection: one step of an iteratively reweighted ridge.


def row_weights(projection: Floats, eps: float = 1e-6) -> Floats:
    """Diagonal [D] of G: 1 / (2 sqrt(||p_i||^2 + eps)), the tangent of the row-sparse norm."""
    return np.asarray(0.5 / np.sqrt((projection**2).sum(1) + eps))


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
    system = x.T @ (x * weights.sum(1)[:, None]) + align * np.outer(gap, gap) + sparse * np.diag(rows)
    return np.asarray(np.linalg.solve(system, x.T @ weights @ prototypes))


def project_dual(
    x: Floats, weights: Floats, prototypes: Floats, gap: Floats, rows: Floats, align: float, sparse: float
) -> Floats:
    """The same P by a system of size n + 1: G^-1 Z' (Z G^-1 Z' + sparse I)^-1 Y, Z = [Omega^1/2 X; v]."""
    root = np.sqrt(weights.sum(1))[:, None]
    z = np.concatenate((x * root, np.sqrt(align) * gap[None]))
    y = np.concatenate((weights @ prototypes / root, np.zeros((1, prototypes.shape[1]), x.dtype)))
    scaled = z / rows
    system = scaled @ z.T + sparse * np.eye(len(z), dtype=x.dtype)
    return np.asarray(scaled.T @ np.linalg.solve(system, y))


# Orthonormal frames.


def polar(matrix: Floats) -> Floats:
    """The orthonormal factor U V' of a thin SVD: argmax of Tr(W' matrix) over orthonormal W (Procrustes)."""
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u @ v)


def prototypes(moments: Floats, old: Floats) -> Floats:
    """O [C, q] of orthonormal rows from moments W' X P; the old one where rank below C leaves it open."""
    s = np.linalg.svd(moments, compute_uv=False)
    if s[-1] <= s[0] * len(old) * np.finfo(moments.dtype).eps:
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
    lifted = np.linalg.eigvalsh(gram)[-1] * np.eye(len(gram), dtype=gram.dtype) - gram
    for _ in range(steps):
        frame = polar(lifted @ frame + moments)
    return frame


def leading_frame(features: Floats, bits: int, draw: np.random.Generator) -> Floats:
    """The leading `bits` principal directions of features [n, m], turned at random: [m, L], orthonormal.

    A random frame would spend bits on directions in which the features have nothing.
    """
    directions = np.linalg.eigh(features.T @ features)[1][:, ::-1][:, :bits]
    # A direction has no sign of its own; without one, codes would depend on the linear algebra library.
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(bits)])
    turn = np.linalg.qr(draw.standard_normal((bits, bits)))[0]
    return np.asarray(directions @ turn.astype(features.dtype))


def ridge(x: Floats, codes: Floats, strength: float) -> Floats:
    """(X' X + strength I)^-1 X' H [D, L]: the linear hash of features [n, D] learned from codes [n, L]."""
    if x.shape[1] > x.shape[0]:
        outer = x @ x.T + strength * np.eye(len(x), dtype=x.dtype)
        return np.asarray(x.T @ np.linalg.solve(outer, codes))
    gram = x.T @ x + strength * np.eye(x.shape[1], dtype=x.dtype)
    return np.asarray(np.linalg.solve(gram, x.T @ codes))
