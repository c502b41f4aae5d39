"""Settings of COUPLE, and the checks of its input that come before any long work."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from adapters.offline.couple_losses import LEAST_SHARE, Lam
from adapters.offline.relation_graph import SourceEdges
from core.errors import ConfigError

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CoupleConfig:
    """Defaults are those of `paper()`. Most constants of the paper are not known: docs/methods/couple.md."""

    neighbours: int = 10
    """k of the graph. Measured on digits; the authors' code of 2024 calls 3."""
    source_edges: SourceEdges = "topk"
    """Same-label pairs to join. The paper joins all; measured: too much mass for the capacity."""
    selection: Literal["flow", "both", "confidence", "all"] = "flow"
    """What trusts a target. Flow is the paper's; all pseudo-labels is its ablation V1; confidence is the
    highest label probability, for comparison. Both adds the ranks of the flow and of confidence times the
    share of a target's edges that agree with its label (ours)."""
    rho: float = 0.5
    """Share of targets to trust at the end. Authors' code; not known from the paper."""
    rho_start: float | None = None
    """Share at the first refresh, growing evenly to `rho`; None: fixed, as in the paper. Growing is ours."""
    beta: float | None = None
    """Load of the graph; None: (n_s + rho n_t) / n. Reconstructed."""
    slack: float = 0.05
    """Free share of a component's capacity. Reconstructed."""
    eps: float = 1e-3
    """Residual of the flow, in capacities. Measured."""
    sweeps: int = 5000
    label_eps: float = 1.0
    """Factor of edges between different labels or pseudo-labels; 1 is off, as in the paper. Ours."""
    quota: float | None = None
    """Largest share of a predicted class to trust. Ours, off."""
    scale: float = 10.0
    """Of the label logits. Measured; 8 in the code of PEACE."""
    margin: float = 1.0
    """Weight of the margin of label codes. Measured."""
    quantisation: float = 0.01
    """Weight of the quantisation term. Measured."""
    tau: float = 0.2
    """Temperature of the target loss. Measured; declared but unused in the authors' code."""
    target_loss: Literal["supcon", "ce"] = "supcon"
    """Reconstructed."""
    target_weight: float = 1.0
    """Published: L_dis is the sum."""
    label_codes: Literal["joint", "frozen"] = "joint"
    """Frozen: trained alone first, signed and held, for those who need a fixed contract. Reconstructed."""
    label_hidden: int = 512
    """Width of the label net. Code of PEACE."""
    mix_weight: float = 0.1
    """Weight of both mixup losses; 0 is off. Authors' code; 1 reads natural in the paper."""
    lam: Lam = "edge"
    """Source share in a mixture. Published: the weight of the edge."""
    lam_fixed: float = 0.8
    """For `lam="fixed"`. Authors' code."""
    walk_length: int = 3
    """Steps of a walk. Not known; ours."""
    walks: int = 400
    """Walks per refresh, at most n_t. Ours."""
    pairs: int = 64
    """Mixtures per step along cross edges, and as many along walks. Ours."""
    refresh: int | None = None
    """Epochs between graphs; None: 1 up to 20,000 nodes, 5 beyond. Reconstructed."""
    epochs: int = 60
    """Ours; 70 in the authors' code."""
    pretrain: int | None = None
    """Epochs on the source alone; None: a third. Published that it comes first, its length is ours."""
    batch: int = 128
    """Of either domain. Ours; 256 in the authors' code."""
    learning_rate: float = 1e-3
    """Of Adam (published) for head and label net. Ours; 1e-4 in the authors' code."""
    backbone_rate: float = 1e-4
    """Of Adam for the backbone. Authors' code."""
    weight_decay: float = 8e-6
    """Authors' code."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "neighbours", "sweeps", "eps", "scale", "tau", "label_hidden", "walk_length", "walks", "pairs",
            "epochs", "batch", "learning_rate",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} above 0 expected, got {getattr(self, name)}")
        for name in (
            "margin", "quantisation", "target_weight", "mix_weight", "backbone_rate", "weight_decay", "seed",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name} of at least 0 expected, got {getattr(self, name)}")
        for name in ("rho", "rho_start", "label_eps", "quota"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name} in (0, 1] expected, got {value}")
        if self.beta is not None and not 0 < self.beta < 1:
            raise ConfigError(
                f"beta in (0, 1) expected, got {self.beta}: at 1 nothing more fits into the graph"
            )
        if not 0 < self.slack < 1:
            raise ConfigError(f"slack in (0, 1) expected, got {self.slack}: potentials must be unique")
        if not LEAST_SHARE <= self.lam_fixed <= 1:
            raise ConfigError(f"lam_fixed in [{LEAST_SHARE}, 1] expected, got {self.lam_fixed}")
        if self.refresh is not None and self.refresh < 1:
            raise ConfigError(f"refresh of at least 1 epoch expected, got {self.refresh}")
        if not 0 <= self.first <= self.epochs:
            raise ConfigError(
                f"pretrain in 0..{self.epochs} expected, got {self.pretrain}: all epochs at most"
            )

    @property
    def first(self) -> int:
        """E0, the first epoch that sees the target."""
        return self.epochs // 3 if self.pretrain is None else self.pretrain

    def rho_at(self, epoch: int) -> float:
        """Share of targets trusted in an epoch."""
        if self.rho_start is None:
            return self.rho
        done = (epoch - self.first) / max(1, self.epochs - 1 - self.first)
        return self.rho_start + (self.rho - self.rho_start) * min(1.0, done)

    def renews(self, epoch: int, nodes: int) -> bool:
        """Whether the graph is built anew before this epoch."""
        every = self.refresh or (1 if nodes <= 20_000 else 5)
        return epoch >= self.first and (epoch - self.first) % every == 0


def paper(**changes: Any) -> CoupleConfig:
    """The method as published: a fixed share, weights that labels do not touch, both mixups."""
    return CoupleConfig(**changes)


def plus(**changes: Any) -> CoupleConfig:
    """With our additions.

    A trusted share that grows, edges between labels that count little, and trust by flow and by confidence
    that neighbours share.
    """
    ours = {"rho_start": 0.2, "rho": 0.9, "label_eps": 0.05, "selection": "both"}
    return CoupleConfig(**{**ours, **changes})


def rows(x: ArrayLike, name: str) -> Rows:
    """Features [n, D] or pictures [n, 3, H, W] as float32, all finite; not copied where they are."""
    found = np.asarray(x, np.float32)
    if found.ndim not in (2, 4) or not all(found.shape[1:]):
        raise ConfigError(
            f"{name}: features [n, D] or pictures [n, 3, H, W] expected, got shape {found.shape}"
        )
    if not len(found):
        raise ConfigError(f"{name}: at least one row expected, got none")
    bad = len(found) - int(np.isfinite(found).reshape(len(found), -1).all(1).sum())
    if bad:
        raise ConfigError(
            f"{name}: finite values expected, got NaN or infinity in {bad} of {len(found)} rows"
        )
    return found


def alike(source: Rows, target: Rows, has_backbone: bool) -> None:
    """Both domains must be of one kind, and pictures need a backbone."""
    if source.shape[1:] != target.shape[1:]:
        raise ConfigError(
            f"source and target rows of one shape expected, got {source.shape[1:]} and {target.shape[1:]}: "
            "make both with the same encoder or resize"
        )
    if source.ndim == 4 and not has_backbone:
        raise ConfigError(
            "a backbone expected for pictures, got none: pass backbone= or cached features [n, D]"
        )


def code_width(head: nn.Module, backbone: nn.Module | None, x: Rows) -> int:
    """L, by trying one row."""
    phi, f = copy.deepcopy(head).eval(), copy.deepcopy(backbone or nn.Identity()).eval()
    device = next(head.parameters(), torch.empty(0)).device
    try:
        with torch.no_grad():
            z = f(torch.from_numpy(x[:1].copy()).to(device))
            h = phi(z)
    except RuntimeError as error:
        raise ConfigError(
            f"head and backbone that take rows of shape {x.shape[1:]} expected: {error}"
        ) from error
    if z.ndim != 2 or h.ndim != 2:
        raise ConfigError(
            f"features [B, D] and codes [B, L] expected, got {tuple(z.shape)} and {tuple(h.shape)}"
        )
    return int(h.shape[1])
