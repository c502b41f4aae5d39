"""What a PSCA fit leaves behind: both stages, the out-of-sample codes, and gauges that need no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adapters.offline.prototypes import membership
from adapters.offline.psca_config import PscaConfig, host, matrix
from adapters.semantics import Agreement, Centres, Floats, Semantics, unit_rows
from core.errors import ConfigError

Signs = NDArray[np.int8]
Values = tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """Stage 1."""

    projection: Floats
    """P [D, q]."""
    prototypes: Floats
    """O [C, q], orthonormal rows."""
    membership: Floats
    """R [n_t, C]."""
    scores: Floats
    """pi [n_t, C] after the last round."""
    centres: Centres
    progress: float
    """Rounds done / most rounds."""
    trace: tuple[Values, ...]
    """Per round: objective before it, after R, after P, after O, reliability held still within the round."""

    def hosted(self) -> Alignment:
        """The same in NumPy, on the processor."""
        told = Centres(*(host(v) for v in (self.centres.mean, self.centres.source, self.centres.target)))
        p, o, r, pi = (host(v) for v in (self.projection, self.prototypes, self.membership, self.scores))
        return Alignment(p, o, r, pi, told, self.progress, self.trace)


@dataclass(frozen=True, slots=True, eq=False)
class Quantisation:
    """Stage 2."""

    source: Floats
    """W_s [2q, L]."""
    target: Floats
    """W_t [2q, L]."""
    source_codes: Signs
    """H_s [n_s, L]. They hold the source's *labels*: comparable only with other learned codes."""
    target_codes: Signs
    """H_t [n_t, L]."""
    trace: Values
    """Objective at the start and after every round."""

    def hosted(self) -> Quantisation:
        """The same in NumPy, on the processor."""
        w_s, w_t, h_s, h_t = map(host, (self.source, self.target, self.source_codes, self.target_codes))
        return Quantisation(w_s, w_t, h_s, h_t, self.trace)


@dataclass(frozen=True, slots=True, eq=False)
class PscaMap:
    """A fitted PSCA. Methods take raw features [B, D], as `fit` did."""

    config: PscaConfig
    classes: NDArray[Any]
    """[C] labels as they were given; every other class number here is an index into it."""
    mean: Floats
    """[D] of unit training rows, both domains."""
    source_mean: Floats
    """[q] projected."""
    alignment: Alignment
    quantisation: Quantisation
    hash: Floats
    """Phi [D, L]."""
    unnamed: tuple[int, ...]
    """Classes that no target sample is pseudo-labelled with: missing in the target, or missed by the fit."""
    trained: Agreement
    """Of the target it was fitted to: what later batches are compared with."""

    def features(self, x: ArrayLike | Tensor) -> Floats:
        """Rows of length 1, minus the stored mean."""
        rows = matrix(host(x), "features", self.config.dtype)
        if rows.shape[1] != len(self.mean):
            raise ConfigError(f"features of width {len(self.mean)} expected, got {rows.shape[1]}")
        return np.asarray(unit_rows(rows) - self.mean)

    def relaxed(self, x: ArrayLike | Tensor) -> Floats:
        """x Phi [B, L]; a bit is 1 where it is >= 0."""
        return np.asarray(self.features(x) @ self.hash)

    def bits(self, x: ArrayLike | Tensor) -> NDArray[np.bool_]:
        """Out-of-sample codes [B, L]."""
        return np.asarray(self.relaxed(x) >= 0)

    def relaxed_by_membership(self, x: ArrayLike | Tensor) -> Floats:
        """[r(x) O ; x P] W_t [B, L]: another out-of-sample code, ours, made as training codes are."""
        projected, r = self._placed(self.features(x))
        rebuilt = np.concatenate((r @ self.alignment.prototypes, projected), axis=1)
        return np.asarray(rebuilt @ self.quantisation.target)

    def pseudo_labels(self, x: ArrayLike | Tensor) -> NDArray[Any]:
        """[B] in the source's labels: the class of the largest membership."""
        return np.asarray(self.classes[self._placed(self.features(x))[1].argmax(1)])

    @property
    def semantics(self) -> Semantics:
        """What later features are compared with, in the service too."""
        stage, config = self.alignment, self.config
        share = stage.progress if config.combine == "blend" else None
        return Semantics(
            self.mean, stage.projection, stage.prototypes, self.source_mean, stage.centres,
            config.temperature, config.squared, share, config.reliability_eps, config.reliability_cap,
        )  # fmt: skip

    def gauges(self, x: ArrayLike | Tensor) -> Agreement:
        """Of raw features [B, D], B at least 1."""
        rows = self.features(x)
        if not len(rows):
            raise ConfigError("gauges of at least one row expected, got none")
        return self.semantics.of_rows(rows)

    def _placed(self, x: Floats) -> tuple[Floats, Floats]:
        """Projection and membership of normalised rows."""
        projected, d, told = self.semantics.placed(x)
        return projected, membership(d, told.named, self.config.trust(told), self.config.sigma)
