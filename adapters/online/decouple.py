"""Gradient decoupling: the part of an update that fights the reference is removed.

Two kinds of reference. A gradient r: a step along -g raises the reference loss to first order exactly when
<g, r> < 0, that is when the angle of g and r exceeds 90 degrees; the rule is one-sided, like ProGrad's. A
subspace: whatever lies inside it is removed, as in GPM and OGD. The same rules act on an optimizer's step.

Pure functions on gradients by name; inner products are summed in float64. docs/methods/rest.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Size, Tensor

from core.errors import ConfigError

Gradient = dict[str, Tensor]
Granularity = Literal["global", "tensor"]
EPS = 1e-12  # norm of r below which there is no reference
EPS_REL = 1e-4  # the same relative to g: at the source parameters r is rounding noise
RANK_TOLERANCE = 1e-6  # relative singular value below which a direction is rounding noise
ORTHONORMAL = 1e-3  # how far a basis from a file may be from orthonormal


@dataclass(frozen=True, slots=True)
class Angles:
    """Angle of g and r over all tensors (NaN without a reference), and 1 - |g'|^2 / |g|^2."""

    degrees: float
    removed_energy: float


class Reference(Protocol):
    """What general knowledge has to say about a direction of descent."""

    def degrees(self, direction: Gradient) -> float:
        """Angle of a direction and the reference, NaN where there is none."""

    def remove(self, direction: Gradient) -> tuple[Gradient, float]:
        """The direction without what it must not have, and the share of its energy that went."""


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """<a, b> over the tensors that both name."""
    names = [name for name in a if name in b]
    if not names:
        return 0.0
    left = _flat(a, names)
    return float(left @ (left if a is b else _flat(b, names)))


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
    granularity: Granularity = "global",
    eps: float = EPS,
    eps_rel: float = EPS_REL,
) -> tuple[Gradient, Angles]:
    """Removes from g what points against r; without a conflict g is returned bit-identical.

    Args:
        g: gradient of the objective.
        r: gradient of the reference loss; names missing here count as zero.
        lam: share of the conflicting part that is removed, in (0, 1].
        granularity: one decision for all tensors, or one each.
        eps: norm of r below which there is no reference.
        eps_rel: the same relative to the norm of g. At the source parameters r is rounding noise with a
            random direction, and only this keeps it from steering the first step. 0 for an r in other units
            than g.

    Returns:
        g' with the names of g, and the angles before removal.
    """
    reference = Against.of(g, r, lam, granularity, eps, eps_rel)
    out, removed = reference.remove(g)
    return out, Angles(reference.degrees(g), removed)


@dataclass(frozen=True, slots=True)
class Against:
    """A reference gradient r; `binding` are the tensors of it that are more than rounding noise."""

    r: Gradient
    binding: Gradient
    strength: float
    granularity: Granularity

    @classmethod
    def of(
        cls,
        g: Gradient,
        r: Gradient,
        strength: float = 1.0,
        granularity: Granularity = "global",
        eps: float = EPS,
        eps_rel: float = EPS_REL,
    ) -> Against:
        """Measures r at g once; what binds the gradient then binds the step as well. As for `project`."""
        binding: Gradient = {}
        for names in _parts(g, granularity):
            binding |= _significant({name: g[name] for name in names}, r, eps, eps_rel)
        shown = r if norm(r) > max(eps, eps_rel * norm(g)) else {}
        return cls(shown, binding, strength, granularity)

    def degrees(self, direction: Gradient) -> float:
        return degrees(direction, self.r)

    def remove(self, direction: Gradient) -> tuple[Gradient, float]:
        out: Gradient = {}
        for names in _parts(direction, self.granularity):
            out |= self._one_sided({name: direction[name] for name in names})
        return out, removed_energy(direction, out)

    def _one_sided(self, part: Gradient) -> Gradient:
        along = {name: self.binding[name] for name in part if name in self.binding}
        product = inner(part, along)
        if product >= 0:
            return part
        share = self.strength * product / inner(along, along)
        return {
            name: tensor - share * along[name] if name in along else tensor for name, tensor in part.items()
        }


@dataclass(frozen=True, slots=True)
class Subspace:
    """Directions that a step must not have: per decision the names it covers and a float64 basis [R, p]."""

    parts: tuple[tuple[tuple[str, ...], Tensor], ...]
    shapes: Mapping[str, Size]
    strength: float

    @classmethod
    def of(
        cls,
        directions: Tensor,
        tensors: Mapping[str, Tensor],
        strength: float = 1.0,
        granularity: Granularity = "global",
    ) -> Subspace:
        """Checks a basis and cuts it into tensors.

        Args:
            directions: [R, P] orthonormal, over all tensors flattened side by side in their order.
            tensors: what is adapted.
            strength: share that is removed, in (0, 1].
            granularity: "tensor" spans each tensor's own slice of the directions. A tensor with no more than
                R elements then keeps nothing.

        Raises:
            ConfigError: another width, or not orthonormal.
        """
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        width = sum(shape.numel() for shape in shapes.values())
        if directions.ndim != 2 or len(directions) == 0 or directions.shape[1] != width:
            raise ConfigError(
                f"expected source directions [R, {width}] over {len(shapes)} tensors, got "
                f"{tuple(directions.shape)}: collect them again for this base model"
            )
        basis = directions.detach().to(next(iter(tensors.values())).device).double()
        error = float((basis @ basis.T - torch.eye(len(basis)).to(basis)).abs().max())
        if not error < ORTHONORMAL:
            raise ConfigError(
                f"expected orthonormal source directions, got a deviation of {error:.3g}: "
                "pass what `leading_directions` returned"
            )
        if granularity == "global":
            return cls(((tuple(shapes), basis),), shapes, strength)
        slices: tuple[Tensor, ...] = torch.split(basis, [shape.numel() for shape in shapes.values()], dim=1)
        cut = (((name,), _row_space(part, RANK_TOLERANCE)) for name, part in zip(shapes, slices))
        return cls(tuple(cut), shapes, strength)

    def inside(self, direction: Gradient) -> Gradient:
        """The component in the subspace, by the names of the direction; names missing count as zero."""
        out: Gradient = {}
        for names, basis in self.parts:
            pieces = [
                direction[name].double().flatten()
                if name in direction
                else basis.new_zeros(self.shapes[name].numel())
                for name in names
            ]
            component = (basis @ torch.cat(pieces)) @ basis
            split: tuple[Tensor, ...] = torch.split(component, [len(piece) for piece in pieces])
            out |= {name: piece.view(self.shapes[name]) for name, piece in zip(names, split)}
        return {name: out[name].to(tensor) for name, tensor in direction.items()}

    def degrees(self, direction: Gradient) -> float:
        """Angle to the subspace: 0 inside it, 90 outside it, so that there is no conflict above 90."""
        length = norm(direction)
        if not 0 < length < math.inf:
            return math.nan
        return math.degrees(math.acos(min(1.0, norm(self.inside(direction)) / length)))

    def remove(self, direction: Gradient) -> tuple[Gradient, float]:
        inside = self.inside(direction)
        out = {name: tensor - self.strength * inside[name] for name, tensor in direction.items()}
        return out, removed_energy(direction, out)


def leading_directions(gradients: Tensor, rank: int) -> Tensor:
    """The right singular vectors of the largest singular values: what source gradients mostly move.

    Args:
        gradients: [n, P], one source gradient a row.
        rank: how many, at most; fewer where the gradients span less.

    Returns:
        [R, P] orthonormal, float64, R <= min(rank, n, P).

    Raises:
        ConfigError: nothing but zeros, or values that are not finite.

    Reference: gradient projection memory (GPM, ICLR 2021), on whole gradients instead of layer inputs.
    """
    if gradients.ndim != 2 or not bool(torch.isfinite(gradients).all()) or not bool(gradients.any()):
        raise ConfigError(
            f"expected finite source gradients [n, P] that are not all zero, got {tuple(gradients.shape)}: "
            "collect them on source pairs of which none is alone in its draw"
        )
    return _row_space(gradients.double(), RANK_TOLERANCE)[:rank]


def removed_energy(before: Gradient, after: Gradient) -> float:
    """1 - |after|^2 / |before|^2, 0 for nothing."""
    energy = inner(before, before)
    return 1 - inner(after, after) / energy if energy > 0 else 0.0


def _flat(a: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """One float64 vector: a product per tensor would cost more than the arithmetic."""
    return torch.cat([a[name].detach().flatten() for name in names]).double()


def _parts(g: Iterable[str], granularity: Granularity) -> list[list[str]]:
    return [list(g)] if granularity == "global" else [[name] for name in g]


def _significant(g: Gradient, r: Gradient, eps: float, eps_rel: float) -> Gradient:
    along = {name: r[name] for name in g if name in r}
    return along if norm(along) > max(eps, eps_rel * norm(g)) else {}


def _row_space(rows: Tensor, tolerance: float) -> Tensor:
    """Orthonormal basis of the row space, by falling singular value."""
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    kept: Tensor = basis[values > tolerance * values.max().clamp_min(tolerance)]
    return kept
