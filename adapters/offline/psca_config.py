"""Settings of PSCA, and the checks of its input that come before any long work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray

from adapters.semantics import Centres, Floats, Labels, Reliability, reliability
from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PscaConfig:
    """Defaults: sigma and ridge are published, all others chosen or reconstructed (docs/methods/psca.md)."""

    bits: int = 64
    width: int | None = None
    """q, columns of the projection; None: max(C, ceil(L/2)). Needs q >= C and 2q >= L."""
    align: float = 10.0
    """lambda1, pull between the domain means."""
    sparse: float = 1.0
    """lambda2, row sparsity of the projection."""
    together: float = 100.0
    """lambda3, pull between the two quantisers."""
    ridge: float = 0.1
    """beta of the hash."""
    sigma: float = 2.0
    weights: Literal["joint", "literal"] = "joint"
    """Target weights in the projection step: r^sigma, which makes one objective, or r as printed."""
    membership: Literal["soft", "hard", "fcm"] = "soft"
    """Hard trusts every pseudo-label wholly, fcm (fuzzy c-means) none."""
    squared: bool = True
    """Squared distances in the scores' softmax."""
    combine: Literal["max", "blend"] = "max"
    """Blend moves from class means to clusters as rounds go by."""
    temperature: float = 1.0
    reliability_scale: float = 1.0
    reliability_eps: float = 1e-8
    reliability_cap: float = np.inf
    sparse_eps: float = 1e-6
    unit_gap: bool = True
    """Scale the weights of the mean difference to length 1; else `align` is about n times weaker."""
    rounds: int = 10
    tolerance: float = 1e-5
    code_rounds: int = 50
    code_tolerance: float = 1e-6
    inner_steps: int = 20
    dtype: Literal["float64", "float32"] = "float64"
    device: str | None = None
    """Of torch, such as "cuda"; None computes where the features are: arrays in NumPy, tensors in torch."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("bits", "sparse", "ridge", "temperature", "reliability_eps", "sparse_eps", "rounds")
        for name in (*positive, "code_rounds", "inner_steps", "reliability_cap"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} above 0 expected, got {getattr(self, name)}")
        for name in ("align", "together", "reliability_scale", "tolerance", "code_tolerance"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name} of at least 0 expected, got {getattr(self, name)}")
        if not self.sigma > 1:
            raise ConfigError(f"sigma above 1 expected, got {self.sigma}: at 1 memberships are not soft")
        if self.device is not None:
            try:
                torch.ones(1, dtype=getattr(torch, self.dtype), device=self.device).item()
            except (RuntimeError, AssertionError, TypeError) as error:  # as different devices say it
                raise ConfigError(
                    f"device {self.device!r} cannot be used ({str(error).splitlines()[0]}): leave it out"
                ) from error

    def scores(self, found: Centres, z: Floats, progress: float) -> Floats:
        """pi of projected samples; `progress` in 0..1 matters to `blend` only."""
        share = progress if self.combine == "blend" else None
        return found.scores(z, self.temperature, self.squared, share)

    def reliability(self, scores: Floats, distances: Floats) -> Reliability:
        return reliability(scores, distances, self.reliability_eps, self.reliability_cap)

    def trust(self, told: Reliability) -> Floats:
        """alpha as the membership step takes it."""
        if self.membership == "soft":
            return self.reliability_scale * told.weight
        xp = array_namespace(told.weight)
        full: Floats = xp.full_like(told.weight, np.inf if self.membership == "hard" else 0.0)
        return full


def paper(**changes: Any) -> PscaConfig:
    """As printed: the projection step takes Eq. 6's weights r."""
    return PscaConfig(**{"weights": "literal", **changes})


def plus(**changes: Any) -> PscaConfig:
    """One objective for all steps: r^sigma, where Eq. 6 prints r. These are the defaults."""
    return PscaConfig(**changes)


def matrix(x: ArrayLike | torch.Tensor, name: str, dtype: str, device: str | None = None) -> Floats:
    """Features [n, D] as numbers, all finite: an array, or a tensor where a device is named."""
    rows: Any
    if device is None:
        rows = np.asarray(x, dtype)
    else:
        given = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x, dtype))
        rows = given.detach().to(device, getattr(torch, dtype))
    if rows.ndim != 2 or not rows.shape[1]:
        raise ConfigError(f"{name}: a matrix [n, D] expected, got shape {rows.shape}")
    bad = int((~array_namespace(rows).isfinite(rows)).any(1).sum())
    if bad:
        raise ConfigError(
            f"{name}: finite features expected, got NaN or infinity in {bad} of {len(rows)} rows"
        )
    checked: Floats = rows
    return checked


def host(x: Any) -> NDArray[Any]:
    """An array in the memory of the processor."""
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def indexed(labels: ArrayLike, expected: int) -> tuple[NDArray[Any], Labels]:
    """Distinct labels [C], and [n_s] indices into them."""
    given = np.asarray(labels)
    if given.shape != (expected,):
        raise ConfigError(f"one label for each of {expected} source rows expected, got shape {given.shape}")
    if given.dtype.kind not in "iu" or (given < 0).any():
        raise ConfigError("integer labels >= 0 expected for every source row: leave unlabelled rows out")
    classes, y = np.unique(given, return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(f"at least two source classes expected, got only {classes[0]}")
    return classes, y.astype(np.int64)


def checked_width(source: Floats, target: Floats, classes: int, config: PscaConfig) -> int:
    """The width q to use."""
    if source.shape[1] != target.shape[1]:
        raise ConfigError(
            f"source and target of one width expected, got {source.shape[1]} and {target.shape[1]}: "
            "encode both with the same encoder"
        )
    if not len(target):
        raise ConfigError("target rows expected, got none: there is nothing to adapt to")
    samples = len(source) + len(target)
    if samples < config.bits:
        raise ConfigError(
            f"at least as many samples as bits expected, got {samples} for {config.bits} bits: "
            "add samples or take fewer bits"
        )
    least = max(classes, -(-config.bits // 2))
    width = least if config.width is None else config.width
    if width < least:
        raise ConfigError(
            f"width of at least {least} expected for {classes} classes and {config.bits} bits, got {width}: "
            "leave it out or raise it"
        )
    return width
