"""Content matching: what the clean domain's channel statistics are for pictures like those of a batch.

Statistics of a batch mix its content with its shift. Comparing with clean pictures of the same content keeps
a class mix from being taken for a shift. The target moves towards matched pictures only as far as the
batch's content departs from the calibration mix, because shifted queries gather at a few hubs.

Ours; method and figures in docs/methods/alignment.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from adapters.lloyd import lloyd
from core.config import AlignSettings
from core.references import Calibration
from core.types import Floats

CLUSTERS = 16


class CleanDomain:
    """Calibration pictures as tensors.

    Args:
        calibration: features [n, D], channel mean and sd [n, W] per picture.
        config: neighbours, temperature, and the variation between which matching sets in.
    """

    def __init__(self, calibration: Calibration, config: AlignSettings, device: str = "cpu") -> None:
        if calibration.mean.shape[1] != sum(calibration.widths):
            raise ValueError(
                f"calibration has {calibration.mean.shape[1]} channels, layers {calibration.widths}"
            )
        self._config = config
        means = torch.from_numpy(np.ascontiguousarray(calibration.mean)).to(device, torch.float32)
        sds = torch.from_numpy(np.ascontiguousarray(calibration.sd)).to(device, torch.float32)
        self._moments = torch.stack((means, means.square() + sds.square()), dim=1)  # [n, 2, W]
        features = np.asarray(calibration.features, dtype=np.float32)
        centre = features.mean(0)
        centred = _unit(features - centre)
        self._clean = torch.from_numpy(centred).to(device)
        self._centre = torch.from_numpy(centre).to(device)
        clusters = kmeans(centred, min(CLUSTERS, len(centred)))
        self._clusters = torch.from_numpy(clusters).to(device)
        self._mix = torch.bincount(self._clusters, minlength=CLUSTERS).float() / len(centred)
        ends = np.cumsum(calibration.widths)
        self.layers = [slice(int(end - width), int(end)) for end, width in zip(ends, calibration.widths)]
        self.prior = self._moments.mean(0)

    def weights(self, features: Tensor) -> Tensor:
        """Weights [n] over the calibration pictures for the features [b, D] of real rows; sums to 1."""
        matched = self._matched(features.float())
        return matched if matched is not None else torch.full_like(self._clean[:, 0], 1 / len(self._clean))

    def targets(self, groups: Sequence[Tensor]) -> Tensor:
        """Features [b, D] of G groups -> mean and mean square [G, 2, W] of clean pictures like them."""
        found = self.prior.expand(len(groups), *self.prior.shape).clone()
        for place, features in enumerate(groups):
            weights = self._matched(features.float())
            if weights is not None:  # to read all moments takes a tenth of a forward
                found[place] = torch.einsum("n,nmw->mw", weights, self._moments)
        return found

    def _matched(self, rows: Tensor) -> Tensor | None:
        """The weights; None where all pictures count alike."""
        if not self._config.matched or len(rows) == 0:
            return None
        centred = normalize(rows - self._centre, dim=1)
        near = (centred @ self._clean.T).topk(min(self._config.neighbours, len(self._clean)), dim=1)
        share = (near.values / self._config.temperature).softmax(1)
        weights = torch.zeros_like(self._clean[:, 0])
        weights = weights.index_add_(0, near.indices.flatten(), share.flatten()) / len(rows)
        mass = torch.zeros_like(self._mix).index_add_(0, self._clusters, weights)
        # Sampling noise of the mix falls with the root of the rows; the thresholds are for 64.
        variation = float(0.5 * (mass - self._mix).abs().sum()) * min(1.0, (len(rows) / 64) ** 0.5)
        low, high = self._config.shrink
        trust = min(1.0, max(0.0, (variation - low) / max(high - low, 1e-9)))
        if trust == 0:
            return None
        matched: Tensor = trust * weights + (1 - trust) / len(weights)
        return matched


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def kmeans(rows: Floats, count: int, rounds: int = 20) -> NDArray[np.int64]:
    """Lloyd's algorithm on unit rows, seeded; returns the cluster of every row."""

    def means(labels: NDArray[np.int64], centres: Floats) -> Floats:
        moved = centres.copy()
        for cluster in range(count):
            members = rows[labels == cluster]
            if len(members):
                moved[cluster] = _unit(members.mean(0, keepdims=True))[0]
        return moved

    start = rows[np.random.default_rng(0).choice(len(rows), count, replace=False)]
    return lloyd(start, lambda centres: np.argmax(rows @ centres.T, axis=1), means, rounds - 1)[0]
