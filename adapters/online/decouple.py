"""Gradient decoupling: the part of an update that fights the reference is removed.

A step along -g raises the reference loss to first order exactly when <g, r> < 0, that is when the angle of
g and r exceeds 90 degrees. The rule is one-sided, like ProGrad's; docs/methods/rest.md. Pure functions on
gradients by name; inner products are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Gradient = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Angles:
    """Angle of g and r over all tensors (NaN without a reference), and 1 - |g'|^2 / |g|^2."""

    degrees: float
    removed_energy: float


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """<a, b> over the tensors that both name."""
    return math.fsum(float((a[name].double() * b[name].double()).sum()) for name in a if name in b)


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all tensors."""
    return math.sqrt(inner(a, a))


def degrees(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Angle of a and b in degrees, NaN when either is zero."""
    scale = norm(a) * norm(b)
    if not 0 < scale < math.inf:
        return math.nan
    return math.degrees(math.acos(max(-1.0, min(1.0, inner(a, b) / scale))))


def project(
    g: Gradient,
    r: Gradient,
    lam: float = 1.0,
    granularity: Literal["global", "tensor"] = "global",
    eps: float = 1e-12,
    eps_rel: float = 1e-4,
) -> tuple[Gradient, Angles]:
    """Removes from g what points against r; without a conflict g is returned bit-identical.

    Args:
        g: gradient of the objective.
        r: gradient of the reference loss; names missing here count as zero.
        lam: share of the conflicting part that is removed, in (0, 1].
        granularity: one decision for all tensors, or one each.
        eps: norm of r below which there is no reference.
        eps_rel: the same relative to the norm of g. At the source parameters r is rounding noise with a
            random direction, and only this keeps it from steering the first step.

    Returns:
        g' with the names of g, and the angles before removal.
    """
    parts = [list(g)] if granularity == "global" else [[name] for name in g]
    out: Gradient = {}
    for names in parts:
        out |= _one_sided({name: g[name] for name in names}, r, lam, eps, eps_rel)
    energy = inner(g, g)
    removed = 1 - inner(out, out) / energy if energy > 0 else 0.0
    return out, Angles(degrees(g, r) if norm(r) > _threshold(g, eps, eps_rel) else math.nan, removed)


def _threshold(g: Gradient, eps: float, eps_rel: float) -> float:
    return max(eps, eps_rel * norm(g))


def _one_sided(g: Gradient, r: Gradient, lam: float, eps: float, eps_rel: float) -> Gradient:
    along = {name: r[name] for name in g if name in r}
    length = norm(along)
    if length <= _threshold(g, eps, eps_rel):
        return g
    product = inner(g, along)
    if product >= 0:
        return g
    share = lam * product / length**2
    return {name: tensor - share * along[name] if name in along else tensor for name, tensor in g.items()}
