"""Settings of TPSNet, and the checks of its input that come before any long work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from adapters.offline.prompts import Repair
from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TpsConfig:
    """No setting of TPSNet is known: those of CLIP-ReID where marked, else ours (docs/methods/tpsnet.md)."""

    classes: int = 7
    """C, the number of clusters; UCDIR's scripts take the true number of classes."""
    prompt_epochs: int = 8
    """Stage 1. CLIP-ReID: 120."""
    prompt_rate: float = 1e-2
    """Of Adam, cosine. CLIP-ReID: 3.5e-4."""
    repair: Repair = "sinkhorn"
    tie: Literal["prompts", "centres", "none"] = "centres"
    """Which target cluster belongs to a source cluster: the one whose prompt is nearest (Hungarian),
    or the one that k-means makes of the source's centre, in features minus their domain's mean. Ours.
    None at all leaves 2 C prototypes: pseudo-labels alone."""
    returned: float = 0.6
    """Share of rows that must come back to their cluster for a tie by centres, or nothing is learnt. Ours."""
    text: bool = True
    """Prompts, and the loss against them."""
    phase: bool = True
    """Phase images beside pictures; whoever calls hands them in, or leaves them out."""
    epochs: int = 10
    """Stage 2. CLIP-ReID: 60."""
    rate: float = 1e-3
    """Of AdamW, cosine, for the new layers. Chosen on amazon <- dslr and caltech10 <- webcam."""
    tower_rate: float = 0.0
    """For the image tower; 0 keeps it frozen, and its features are computed once."""
    weight_decay: float = 1e-4
    """CLIP-ReID."""
    batch: int = 128
    """Half of each domain."""
    temperature: float = 0.07
    smoothing: float = 0.1
    """eps of the loss against the prompts. CLIP-ReID."""
    momentum: float = 0.9
    """m of the prototypes, once per epoch."""
    prototype_weight: float = 1.0
    """alpha."""
    text_weight: float = 1.0
    """beta."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_epochs", "prompt_rate", "epochs", "rate", "batch", "temperature"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} above 0 expected, got {getattr(self, name)}")
        for name in ("tower_rate", "weight_decay", "prototype_weight", "text_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name} of at least 0 expected, got {getattr(self, name)}")
        for name in ("smoothing", "momentum", "returned"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} in [0, 1) expected, got {getattr(self, name)}")
        if self.tie == "prompts" and not self.text:
            raise ConfigError("prompts expected for a tie by prompts: take text along, or tie by centres")
        if self.classes < 2:
            raise ConfigError(f"at least two classes expected, got {self.classes}")


def paper(**changes: Any) -> TpsConfig:
    """Everything that the abstract names: learnt prompts and phase images. These are the defaults."""
    return TpsConfig(**changes)


def plus(**changes: Any) -> TpsConfig:
    """What has gained in our measurements: the tie of clusters alone, without text and without phase."""
    return TpsConfig(**{"text": False, "phase": False, **changes})


def checked(features: Sequence[Tensor], phases: Sequence[Tensor] | None, config: TpsConfig) -> None:
    """Raises ConfigError for what cannot be trained on."""
    if len(features) != 2 or any(v.ndim != 2 for v in features):
        raise ConfigError("features [n, D] of two domains expected: one tensor for each")
    if features[0].shape[1] != features[1].shape[1]:
        raise ConfigError(
            f"both domains of one width expected, got {features[0].shape[1]} and {features[1].shape[1]}: "
            "encode both with the same encoder"
        )
    for name, v in zip(("source", "target"), features):
        if len(v) < config.classes:
            raise ConfigError(
                f"{name}: at least {config.classes} rows for as many classes expected, got {len(v)}"
            )
        bad = int((~v.isfinite()).any(1).sum())
        if bad:
            raise ConfigError(
                f"{name}: finite features expected, got NaN or infinity in {bad} of {len(v)} rows"
            )
    if phases is not None and [len(p) for p in phases] != [len(v) for v in features]:
        raise ConfigError(
            "a phase image for every row of features expected: take both from the same pictures"
        )
