"""What stands between a batch and the parameters: refuse, clip, anchor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from adapters.online.decouple import Gradient, norm
from core.errors import QshiftError

Reason = Literal[
    "too-small",
    "no-constants",
    "nothing-sure",
    "non-finite-features",
    "non-finite-loss",
    "non-finite-gradient",
    "rolled-back",
]


class Unlearnable(QshiftError):
    """Nothing may be learned from this batch. Caught by the method that raised it, which undoes the batch."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


def finite(tensors: Iterable[Tensor]) -> bool:
    """True when no tensor holds NaN or an infinity."""
    parts = [tensor.detach().flatten() for tensor in tensors]
    return not parts or bool(torch.isfinite(torch.cat(parts)).all())


def require_finite(tensors: Iterable[Tensor], reason: Reason) -> None:
    """Raises Unlearnable with the reason unless everything is finite."""
    if not finite(tensors):
        raise Unlearnable(reason)


def clip(gradient: Gradient, limit: float | None) -> Gradient:
    """Scales a gradient down to a global norm of at most `limit`; None leaves it alone."""
    length = norm(gradient)
    if limit is None or length <= limit:
        return gradient
    return {name: tensor * (limit / length) for name, tensor in gradient.items()}


@torch.no_grad()
def anchor(theta: Mapping[str, Tensor], theta_s: Mapping[str, Tensor], alpha: float) -> None:
    """In place: theta <- alpha theta + (1 - alpha) theta_s; alpha = 1 touches nothing.

    A restoring force, which projection is not. Written so that tensors at their source stay there to the
    last bit.

    Reference: weight ensembling of ROID (WACV 2024), alpha = .99.
    """
    if alpha == 1:
        return
    for name, tensor in theta.items():
        tensor.add_(theta_s[name] - tensor, alpha=1 - alpha)
