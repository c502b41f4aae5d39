"""Style clusters: kinds of query, told apart on-line by early-layer statistics, before any label.

A picture's style is the mean and the log sd of each channel in front of early norms of the frozen
encoder, whitened by the clean calibration pictures, so that what varies with content counts little. Cluster 0
is the clean domain and never moves. A query belongs to its nearest centroid; enough queries that are far from
all of them and near each other found a cluster, unless it would lie close to another.

Whitening is what makes it work: with z-scores alone, noise and line art fall into one cluster
(docs/lab/log.md).

Ours; relative: ReservoirTTA (arXiv 2505.14511), for classification. docs/methods/clusters.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.places import places
from core.config import ClusterConfig
from core.references import Calibration

Styles = NDArray[np.float64]
INERTIA = 256  # a centroid never weighs more queries than this, so that it can follow
EPS = 1e-3
GRID = 28  # rows and columns of pixels that tell the style of one picture
ROUNDS = 3  # of finding the members of a new kind
SHRINK = 0.1  # of the clean covariance towards its diagonal
SHRINK_FEW = 0.5  # where there are few pictures
FEW = 2  # pictures for each number of a style below which they are few
APART = 0.9  # radii between a founded centroid and any other
LINEAR = 1.15  # radii up to which lengths count fully; beyond, their logarithm
PATIENCE = 64  # batches a cluster must have been unused before a new kind of query may take its place


@dataclass(frozen=True, slots=True)
class Table:
    """The clusters: ids, centroids [c, S], queries so far, last batch used."""

    ids: tuple[int, ...]
    centroids: Styles
    counts: NDArray[np.int64]
    used: NDArray[np.int64]

    def without(self, place: int) -> Table:
        kept = np.arange(len(self.ids)) != place
        ids = self.ids[:place] + self.ids[place + 1 :]
        return Table(ids, self.centroids[kept], self.counts[kept], self.used[kept])

    def founded(self, identity: int, centroid: Styles, now: int) -> Table:
        return Table(
            (*self.ids, identity),
            np.vstack((self.centroids, centroid)),
            np.append(self.counts, 0),
            np.append(self.used, now),
        )

    def distances(self, styles: Styles) -> NDArray[np.float64]:
        """[b, S] -> [b, c]."""
        gaps: NDArray[np.float64] = np.linalg.norm(styles[:, None] - self.centroids[None], axis=2)
        return gaps


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the rows of one batch go: cluster ids [b], and the table as it will be after the batch."""

    labels: NDArray[np.int64]
    table: Table
    retired: tuple[int, ...]


class StyleSpace:
    """Where styles live: whitened by clean pictures, which lie around 0 within `radius`. Shared by all lanes.

    Args:
        calibration: clean pictures; the statistics of the layers `config.layers` give the scale of the space.
        config: the layers, and the share of clean pictures within the radius.
    """

    def __init__(self, calibration: Calibration, config: ClusterConfig) -> None:
        parts = [_part(calibration.widths, layer) for layer in config.layers]
        mean, sd = (side.astype(np.float64) for side in (calibration.mean, calibration.sd))
        clean = np.concatenate([_style(mean[:, part], sd[:, part]) for part in parts], axis=1)
        self.width = clean.shape[1]
        # With few pictures for so many numbers, whitening fits its own pictures better than any others.
        few = len(clean) < FEW * self.width
        self._centre, self._whiten = _whitening(clean, SHRINK_FEW if few else SHRINK)
        lengths = _held_out_lengths(clean) if few else _lengths(clean, self._centre, self._whiten)
        self.radius = float(np.quantile(lengths, config.quantile))

    def styles(self, early: Sequence[Tensor]) -> Styles:
        """Inputs [b, C, H, W] of the layers -> styles [b, S]."""
        sides = []
        for inputs in early:
            pixels = places(inputs.detach(), GRID).float()
            mean = pixels.mean(1)
            sd = (pixels - mean[:, None]).square().mean(1).sqrt()
            sides.append(_style(mean.cpu().numpy().astype(np.float64), sd.cpu().numpy().astype(np.float64)))
        known = np.nan_to_num(np.concatenate(sides, axis=1), posinf=1e30, neginf=-1e30)
        found = (known - self._centre) @ self._whiten
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        full = LINEAR * self.radius
        # A severe shift spreads its queries along one direction; their logarithm keeps them together.
        kept = np.minimum(lengths, full + 2 * np.log1p(np.maximum(lengths - full, 0)))
        styles: Styles = found * kept / np.maximum(lengths, EPS)
        return styles


class StyleClusters:
    """The clusters of one lane.

    Args:
        space: where styles live.
        config: how many clusters, when one is founded.
    """

    def __init__(self, space: StyleSpace, config: ClusterConfig) -> None:
        self._config, self.space = config, space
        zero = np.zeros(1, np.int64)
        self._table = Table((0,), np.zeros((1, space.width)), zero, zero.copy())
        self._next, self._batches = 1, 0

    @property
    def radius(self) -> float:
        return self.space.radius

    @property
    def layers(self) -> tuple[int, ...]:
        return self._config.layers

    @property
    def ids(self) -> tuple[int, ...]:
        return self._table.ids

    def styles(self, early: Sequence[Tensor]) -> Styles:
        """Inputs [b, C, H, W] of the layers -> styles [b, S]."""
        return self.space.styles(early)

    def route(self, styles: Styles) -> Routing:
        """Assigns rows [b, S], founding clusters where enough rows are far from all. Changes nothing."""
        table, retired, fresh = self._table, [], self._next
        open_ = np.ones(len(styles), bool)
        while len(styles):
            far = np.flatnonzero((table.distances(styles).min(1) > self.radius) & open_)
            members = self._dense(styles[far])
            if members is None:
                break
            centroid = styles[far[members]].mean(0)
            if table.distances(centroid[None]).min() < APART * self.radius:
                open_[far[members]] = False  # the outskirts of a kind that is known
                continue
            if len(table.ids) >= self._config.most:
                place = self._stale(table)
                if place is None:
                    break
                retired.append(table.ids[place])
                table = table.without(place)
            table, fresh = table.founded(fresh, centroid, self._batches), fresh + 1
        if not len(styles):
            return Routing(np.zeros(0, np.int64), table, ())
        nearest = table.distances(styles).argmin(1)
        labels = np.array(table.ids, np.int64)[nearest]
        return Routing(labels, self._moved(table, styles, nearest), tuple(retired))

    def _dense(self, far: Styles) -> NDArray[np.int64] | None:
        """Rows of the densest kind among far ones, None when none has enough of them."""
        need = self._config.founding
        if len(far) < need:
            return None
        between = np.linalg.norm(far[:, None] - far[None], axis=2)
        seed = int(np.argmin(np.sort(between, axis=1)[:, need - 1]))
        members = np.argsort(between[seed], kind="stable")[:need]
        for turn in range(ROUNDS):
            inside = np.linalg.norm(far - far[members].mean(0), axis=1) <= self.radius
            if inside.sum() < need:
                if turn:
                    break
                return None  # rows that share no style are no kind
            members = np.flatnonzero(inside)
        return members

    def _stale(self, table: Table) -> int | None:
        """Place of the cluster that was not used for longest, None while all are in use."""
        if len(table.ids) < 2:
            return None
        place = 1 + int(np.argmin(table.used[1:]))
        return place if self._batches - table.used[place] >= PATIENCE else None

    def _moved(self, table: Table, styles: Styles, nearest: NDArray[np.int64]) -> Table:
        """Centroids follow their rows; the clean domain stays where the calibration put it."""
        centroids, counts, used = table.centroids.copy(), table.counts.copy(), table.used.copy()
        for place in sorted(set(nearest.tolist())):
            rows = styles[nearest == place]
            counts[place] += len(rows)
            used[place] = self._batches
            if place:
                share = len(rows) / min(int(counts[place]), INERTIA)
                centroids[place] += share * (rows.mean(0) - centroids[place])
        return Table(table.ids, centroids, counts, used)

    def commit(self, routing: Routing) -> dict[int, int]:
        """Takes a routing over; returns which clusters merged: from id -> into id."""
        self._table = routing.table
        self._next = max(self._next, *(identity + 1 for identity in routing.table.ids))
        self._batches += 1
        return self._merge()

    def _merge(self) -> dict[int, int]:
        """Clusters whose centroids have come within half a radius of each other are one kind."""
        merged: dict[int, int] = {}
        place = len(self._table.ids) - 1
        while place > 1:
            table = self._table
            gaps = np.linalg.norm(table.centroids[1:place] - table.centroids[place], axis=1)
            other = 1 + int(np.argmin(gaps))
            if gaps[other - 1] <= self.radius / 2:
                into, gone = (other, place) if table.counts[other] >= table.counts[place] else (place, other)
                merged[table.ids[gone]] = table.ids[into]
                counts, used = table.counts.copy(), table.used.copy()
                counts[into] += counts[gone]
                used[into] = max(used[into], used[gone])
                self._table = Table(table.ids, table.centroids, counts, used).without(gone)
            place -= 1
        return merged

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        table = self._table
        tensors = {name: getattr(table, name).copy() for name in ("centroids", "counts", "used")}
        return tensors, {"ids": list(table.ids), "next": self._next, "batches": self._batches}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self._table = Table(
            tuple(int(identity) for identity in meta["ids"]),
            np.array(tensors["centroids"], np.float64),
            np.array(tensors["counts"], np.int64),
            np.array(tensors["used"], np.int64),
        )
        self._next, self._batches = int(meta["next"]), int(meta["batches"])


def _style(mean: Styles, sd: Styles) -> Styles:
    return np.concatenate((mean, np.log(sd + EPS)), axis=1)


def _whitening(clean: Styles, shrink: float) -> tuple[Styles, Styles]:
    """Centre [S] and whitening matrix [S, S] of clean styles [n, S]."""
    covariance = np.cov(clean.T)
    diagonal = np.diag(np.diag(covariance) + EPS**2)
    factor = np.linalg.cholesky((1 - shrink) * covariance + shrink * diagonal)
    return clean.mean(0), np.linalg.inv(factor).T


def _lengths(styles: Styles, centre: Styles, whiten: Styles) -> Styles:
    lengths: Styles = np.linalg.norm((styles - centre) @ whiten, axis=1)
    return lengths


def _held_out_lengths(clean: Styles) -> Styles:
    """Lengths of clean styles by the whitening of the other half."""
    halves = clean[::2], clean[1::2]
    pairs = (halves, halves[::-1])
    return np.concatenate([_lengths(one, *_whitening(other, SHRINK_FEW)) for one, other in pairs])


def _part(widths: Sequence[int], layer: int) -> slice:
    start = sum(widths[:layer])
    return slice(start, start + widths[layer])
