"""Style clusters: kinds of query, told apart on-line by early-layer statistics, before any label.

A picture's style is the mean and the log sd of each channel in front of an early BatchNorm of the frozen
encoder, as z-scores against clean calibration pictures. Cluster 0 is the clean domain and never moves; a
query belongs to its nearest centroid, and enough queries far from all of them found a new cluster.

Ours; relative: ReservoirTTA (arXiv 2505.14511), for classification. docs/methods/clusters.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.config import ClusterConfig
from core.types import Calibration

Styles = NDArray[np.float64]
CLIP = 8.0  # a single wild channel must not decide alone
INERTIA = 256  # a centroid never weighs more queries than this, so that it can follow
EPS = 1e-3
PATIENCE = 64  # batches a cluster must have been unused before a new kind of query may take its place


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the rows of one batch go: cluster ids [b], and the table as it will be after the batch."""

    labels: NDArray[np.int64]
    ids: tuple[int, ...]
    centroids: Styles
    counts: NDArray[np.int64]
    used: NDArray[np.int64]
    retired: tuple[int, ...]


class StyleClusters:
    """The clusters of one lane.

    Args:
        calibration: clean pictures; the statistics of layer `config.layer` give the scale of the space.
        config: how many clusters, when one is founded.
    """

    def __init__(self, calibration: Calibration, config: ClusterConfig) -> None:
        self._config = config
        start = sum(calibration.widths[: config.layer])
        part = slice(start, start + calibration.widths[config.layer])
        clean = _style(
            calibration.mean[:, part].astype(np.float64), calibration.sd[:, part].astype(np.float64)
        )
        self._centre, self._spread = clean.mean(0), clean.std(0) + EPS
        self.radius = float(np.quantile(np.linalg.norm(self._scaled(clean), axis=1), config.quantile))
        self._ids: tuple[int, ...] = (0,)
        self._centroids = np.zeros((1, clean.shape[1]))
        self._counts, self._used = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._next, self._batches = 1, 0

    @property
    def layer(self) -> int:
        return self._config.layer

    @property
    def ids(self) -> tuple[int, ...]:
        return self._ids

    def styles(self, early: Tensor) -> Styles:
        """Inputs [b, C, H, W] of the layer -> styles [b, 2C]."""
        pixels = early.detach().float().flatten(2)
        sd, mean = pixels.std(2, correction=0), pixels.mean(2)
        return self._scaled(
            _style(mean.cpu().numpy().astype(np.float64), sd.cpu().numpy().astype(np.float64))
        )

    def route(self, styles: Styles) -> Routing:
        """Assigns rows [b, 2C], founding clusters where enough rows are far from all. Changes nothing."""
        ids, centroids = list(self._ids), self._centroids.copy()
        counts, used, retired = self._counts.copy(), self._used.copy(), []
        fresh = self._next
        while True:
            distances = np.linalg.norm(styles[:, None] - centroids[None], axis=2)
            far = np.flatnonzero(distances.min(1) > self.radius) if len(styles) else np.zeros(0, np.int64)
            if len(far) < self._config.founding:
                break
            if len(ids) >= self._config.most:
                oldest = 1 + int(np.argmin(used[1:])) if len(ids) > 1 else 0
                if oldest == 0 or self._batches - used[oldest] < PATIENCE:
                    break
                retired.append(ids.pop(oldest))
                centroids = np.delete(centroids, oldest, 0)
                counts, used = np.delete(counts, oldest), np.delete(used, oldest)
            rows = styles[far]
            between = np.linalg.norm(rows[:, None] - rows[None], axis=2)
            medoid = int(np.argmin(between.sum(1)))
            if int((between[medoid] <= self.radius).sum()) < self._config.founding:
                # The far rows share no style: a cluster of one's own for each would learn nothing.
                lonely = np.argsort(between, axis=1)[:, self._config.founding - 1]
                reach = between[np.arange(len(rows)), lonely]
                medoid = int(np.argmin(reach))
                if reach[medoid] > self.radius:
                    break
            ids.append(fresh)
            fresh += 1
            centroids = np.vstack((centroids, rows[medoid]))
            counts, used = np.append(counts, 0), np.append(used, self._batches)
        nearest = distances.argmin(1) if len(styles) else np.zeros(0, np.int64)
        for place in range(len(ids)):
            rows = styles[nearest == place]
            if not len(rows):
                continue
            used[place] = self._batches
            counts[place] += len(rows)
            if place:  # the clean domain stays where the calibration put it
                share = len(rows) / min(counts[place], INERTIA)
                centroids[place] += min(1.0, share) * (rows.mean(0) - centroids[place])
        labels = np.array(ids, np.int64)[nearest]
        return Routing(labels, tuple(ids), centroids, counts, used, tuple(retired))

    def commit(self, routing: Routing) -> dict[int, int]:
        """Takes a routing over; returns which clusters merged: from id -> into id."""
        self._next = max(self._next, *(i + 1 for i in routing.ids))
        self._ids, self._centroids = routing.ids, routing.centroids
        self._counts, self._used = routing.counts, routing.used
        self._batches += 1
        return self._merge()

    def _merge(self) -> dict[int, int]:
        merged: dict[int, int] = {}
        for one in range(len(self._ids) - 1, 1, -1):
            if one >= len(self._ids):
                continue
            gaps = np.linalg.norm(self._centroids[1:one] - self._centroids[one], axis=1)
            other = 1 + int(np.argmin(gaps))
            if gaps[other - 1] > self.radius / 2:
                continue
            into, gone = (other, one) if self._counts[other] >= self._counts[one] else (one, other)
            merged[self._ids[gone]] = self._ids[into]
            self._counts[into] += self._counts[gone]
            self._used[into] = max(self._used[into], self._used[gone])
            kept = [place for place in range(len(self._ids)) if place != gone]
            self._ids = tuple(self._ids[place] for place in kept)
            self._centroids = self._centroids[kept]
            self._counts, self._used = self._counts[kept], self._used[kept]
        return merged

    def _scaled(self, style: Styles) -> Styles:
        scaled: Styles = np.clip((style - self._centre) / self._spread, -CLIP, CLIP)
        return scaled

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        tensors = {
            "centroids": self._centroids.copy(),
            "counts": self._counts.copy(),
            "used": self._used.copy(),
        }
        return tensors, {"ids": list(self._ids), "next": self._next, "batches": self._batches}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self._centroids = np.array(tensors["centroids"], np.float64)
        self._counts = np.array(tensors["counts"], np.int64)
        self._used = np.array(tensors["used"], np.int64)
        self._ids = tuple(int(i) for i in meta["ids"])
        self._next, self._batches = int(meta["next"]), int(meta["batches"])


def _style(mean: Styles, sd: Styles) -> Styles:
    return np.concatenate((mean, np.log(sd + EPS)), axis=1)
