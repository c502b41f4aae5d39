"""Statistics alignment (BN-rel), content-matched: the stream's channel statistics move to the clean domain's.

In front of every BatchNorm the input is moved by a fraction k from the running statistics of the stream
(m_s, s_s) towards statistics of clean-domain pictures of the same content (m_c, s_c), then normalised with
the source statistics as ever:

    x' = (x - m_s) / s_s * ((1 - k) s_s + k s_c) + (1 - k) m_s + k m_c

It is a forward-only stage under any method. Never towards the weights' own (ImageNet) statistics: the clean
domain is itself shifted against them. Content matching keeps it from mistaking a class mix for a shift: the
clean target is weighted towards calibration pictures that look like the queries, but only as far as the
batch's content departs from the calibration mix, because shifted queries gather at a few hubs.

Ours; method and figures in docs/methods/alignment.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.config import AlignConfig
from core.types import Calibration, Floats

if TYPE_CHECKING:
    from core.protocols import Move

EPS = 1e-5
CLUSTERS = 16
LARGE = 16  # pixels a side from which every second row and column is enough


class _Pass:
    """Statistics of one batch; the first encode measures them, later encodes of the batch re-use them."""

    def __init__(self, owner: ContentAlignment, mask: Tensor, target: Tensor) -> None:
        self._owner = owner
        self._rows = mask.to(torch.float32)
        self._count = float(self._rows.sum())
        self.decay, self.weight = owner.weights(self._count)
        self.target = target
        total = self.decay * owner.total + self.weight
        self.clean = (self.decay * owner.target + self.weight * target) / total
        self.stream = torch.empty_like(target)
        self._moves: dict[int, tuple[Tensor, Tensor]] = {}
        self.total = total

    def tap(self, layer: int, inputs: Tensor) -> Move:
        if layer not in self._moves:
            self._moves[layer] = self._measure(layer, inputs.detach())
        return self._moves[layer]

    def _measure(self, layer: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        owner, part = self._owner, self._owner.layers[layer]
        if inputs.ndim == 4 and min(inputs.shape[2:]) >= LARGE:
            inputs = inputs[:, :, ::2, ::2]  # a quarter of so many pixels says the same, four times as fast
        flat = inputs.float().flatten(2) if inputs.ndim > 2 else inputs.float()[..., None]
        pixels = flat.shape[2]
        mean = torch.einsum("b,bc->c", self._rows, flat.mean(2)) / self._count
        squares = torch.linalg.vector_norm(flat, dim=2).square() / pixels
        square = torch.einsum("b,bc->c", self._rows, squares) / self._count
        moments = torch.stack((mean, square))
        self.stream[:, part] = moments
        running = (self.decay * owner.stream[:, part] + self.weight * moments) / self.total
        m_s, s_s = _mean_sd(running)
        m_c, s_c = _mean_sd(self.clean[:, part])
        k = owner.strength
        scale = ((1 - k) * s_s + k * s_c) / s_s
        return scale, (1 - k) * m_s + k * m_c - scale * m_s


class ContentAlignment:
    """Owns the running moments of one lane.

    Args:
        calibration: clean-domain pictures: features [n, D], channel mean and sd [n, W] per picture.
        config: strength k, forgetting per full batch, matching.
        batch: rows of a full batch, the unit of forgetting.
    """

    def __init__(
        self, calibration: Calibration, config: AlignConfig, batch: int, device: str = "cpu"
    ) -> None:
        if calibration.mean.shape[1] != sum(calibration.widths):
            raise ValueError(
                f"calibration has {calibration.mean.shape[1]} channels, layers {calibration.widths}"
            )
        self.strength = config.strength
        self._config, self._batch = config, batch
        means = torch.from_numpy(np.ascontiguousarray(calibration.mean)).to(device, torch.float32)
        sds = torch.from_numpy(np.ascontiguousarray(calibration.sd)).to(device, torch.float32)
        self._moments = torch.stack((means, means.square() + sds.square()), dim=1)  # [n, 2, W]
        features = np.asarray(calibration.features, dtype=np.float32)
        self._centre = features.mean(0)
        centred = _unit(features - self._centre)
        self._clean = torch.from_numpy(centred).to(device)
        self._centre_t = torch.from_numpy(self._centre).to(device)
        clusters = _kmeans(centred, min(CLUSTERS, len(centred)))
        self._clusters = torch.from_numpy(clusters).to(device)
        self._mix = torch.bincount(self._clusters, minlength=CLUSTERS).float() / len(centred)
        ends = np.cumsum(calibration.widths)
        self.layers = [slice(int(end - width), int(end)) for end, width in zip(ends, calibration.widths)]
        prior = self._moments.mean(0)
        # Both start at the clean mean with the weight of one batch, so the first batch moves half-way.
        self.stream, self.target, self.total = prior.clone(), prior.clone(), 1.0

    def weights(self, rows: float) -> tuple[float, float]:
        """Decay and weight of a batch of so many rows; a full batch decays by `forgetting`."""
        share = rows / self._batch
        return float(self._config.forgetting**share), share

    def matching(self, source: Tensor, mask: Tensor) -> Tensor:
        """Weights [n] over the calibration pictures for queries [B, D]; sums to 1."""
        uniform = torch.full((len(self._clean),), 1 / len(self._clean), device=self._clean.device)
        rows = source[mask].float()
        if not self._config.matched or len(rows) == 0:
            return uniform
        centred = torch.nn.functional.normalize(rows - self._centre_t, dim=1)
        near = (centred @ self._clean.T).topk(min(self._config.neighbours, len(self._clean)), dim=1)
        share = (near.values / self._config.temperature).softmax(1)
        weights = torch.zeros_like(uniform).index_add_(0, near.indices.flatten(), share.flatten()) / len(rows)
        mass = torch.zeros_like(self._mix).index_add_(0, self._clusters, weights)
        # Sampling noise of the mix falls with the root of the rows; the thresholds are for 64.
        variation = float(0.5 * (mass - self._mix).abs().sum()) * min(1.0, (len(rows) / 64) ** 0.5)
        low, high = self._config.shrink
        trust = min(1.0, max(0.0, (variation - low) / max(high - low, 1e-9)))
        matched: Tensor = trust * weights + (1 - trust) * uniform
        return matched

    def begin(self, source: Tensor, mask: Tensor) -> _Pass:
        weights = self.matching(source.detach(), mask)
        return _Pass(self, mask, torch.einsum("n,nmw->mw", weights, self._moments))

    def commit(self, done: object) -> bool:
        if not isinstance(done, _Pass):
            raise TypeError(f"expected what begin() returned, got {type(done).__name__}")
        stream = (done.decay * self.stream + done.weight * done.stream) / done.total
        if not bool(torch.isfinite(stream).all()):
            return False
        # Stored as averages with their weight; the weight saturates, which makes it an exponential mean.
        self.stream, self.target, self.total = stream, done.clean, done.total
        return True

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        tensors = {"stream": self.stream.cpu().numpy().copy(), "target": self.target.cpu().numpy().copy()}
        return tensors, {"total": self.total}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        device = self.stream.device
        self.stream = torch.from_numpy(np.array(tensors["stream"], dtype=np.float32)).to(device)
        self.target = torch.from_numpy(np.array(tensors["target"], dtype=np.float32)).to(device)
        self.total = float(meta["total"])


def _mean_sd(moments: Tensor) -> tuple[Tensor, Tensor]:
    """[2, C] of mean and mean square -> mean and sd."""
    variance = (moments[1] - moments[0].square()).clamp_min(0)
    return moments[0], (variance + EPS).sqrt()


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _kmeans(rows: Floats, count: int, rounds: int = 20) -> NDArray[np.int64]:
    """Lloyd's algorithm on unit rows, seeded; returns the cluster of every row."""
    generator = np.random.default_rng(0)
    centres = rows[generator.choice(len(rows), count, replace=False)]
    assigned = np.zeros(len(rows), dtype=np.int64)
    for _ in range(rounds):
        assigned = np.argmax(rows @ centres.T, axis=1)
        for cluster in range(count):
            members = rows[assigned == cluster]
            if len(members):
                centres[cluster] = _unit(members.mean(0, keepdims=True))[0]
    return assigned
