"""How far each query of a stream may be trusted: does mass poured on clean queries flow to it?

Nodes are clean source queries (anchors) and the last queries of the lane. Mutual nearest neighbours are
joined; mass poured on the anchors overflows along the edges. A query that it reaches lies in a region which
is connected with what the encoder knows; one that stays dry is far from everything known.

Only features of the frozen encoder are compared. So nothing in the window grows stale when the lane learns,
and the weights are no opinion of the model that they weigh.

Ours; COUPLE (IEEE TIP 2025) names streams as future work. docs/methods/flow.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.diffusion import Flow, Graph, Reals, cap, components, flow_diffuse, mutual, nearest, scores
from core.errors import ArtifactError, ConfigError

GRID = 2.0**20  # features are rounded to multiples of 1 / GRID, see `exact`
CAPACITY = 1.0
EPS = 1e-3  # of the capacity
FORGETTING = 0.9  # of the running scale, per chunk


@dataclass(frozen=True, slots=True)
class Report:
    """Share of rows unreached and mean weight of the last call; sweeps and residual of the last solution."""

    unreached: float
    mean: float
    sweeps: int
    residual: float


@dataclass(frozen=True, slots=True)
class Window:
    """The last W queries of a lane. Arrays are replaced, never written to.

    Args:
        features: [W, D] on the grid, zero in slots that are free.
        ids: of the queries in the slots, None in those that are free.
        taken: queries ever taken in; the next one gets slot taken % W.
        potentials: [A + W] of the last solution, anchors first.
        scale: highest potential of a query, of now or decayed from before.
        similarity: [W, A + W] cosines to anchors and window, -inf to itself and to free slots.
    """

    features: Reals
    ids: tuple[str | None, ...]
    taken: int
    potentials: Reals
    scale: float
    similarity: Reals

    def slots(self) -> dict[str, int]:
        return {name: slot for slot, name in enumerate(self.ids) if name is not None}


def exact(features: NDArray[Any]) -> Reals:
    """[.., D] rounded to the grid, as float64.

    Products of such numbers are multiples of 2^-40 and sums of unit rows stay below 2, so that cosines are
    exact in float64, in any order of summation: cosines kept and cosines made anew after a restart are the
    same bytes, whatever the shape of the product was.
    """
    rounded: Reals = np.rint(features.astype(np.float64) * GRID) / GRID
    return rounded


class FlowReliability:
    """Reliability weights of one lane.

    Args:
        anchors: [A, D] unit features of clean source queries by the frozen encoder, finite.
        window: W, queries remembered.
        neighbours: k nearest among the anchors and k nearest in the window; a node has at most 2k edges.
        beta: mass poured in, as a share of the capacity of all nodes there are.
        sweeps: limit of the solver per chunk of W new queries; it continues from the last solution.

    Raises:
        ConfigError: one of these cannot be used.
    """

    def __init__(
        self,
        anchors: NDArray[np.float32],
        window: int = 512,
        neighbours: int = 10,
        beta: float = 0.75,
        sweeps: int = 60,
    ) -> None:
        if anchors.ndim != 2 or not len(anchors) or not np.isfinite(anchors).all():
            raise ConfigError(
                f"expected finite anchors [A >= 1, D], got an array of shape {anchors.shape}: "
                "take unit features of clean source queries"
            )
        if min(window, neighbours) < 1 or sweeps < 0 or not 0 < beta < 1:
            raise ConfigError(
                "expected window and neighbours of at least 1, sweeps of at least 0 and 0 < beta < 1, "
                f"got {window}, {neighbours}, {sweeps} and {beta}: correct the one that is outside"
            )
        self._anchors = exact(anchors)
        self._size, self._k, self._beta, self._sweeps = window, neighbours, beta, sweeps
        among = self._anchors @ self._anchors.T
        np.fill_diagonal(among, -np.inf)
        self._home = nearest(among, neighbours)
        self._home_weights = mutual(self._home, self._home, among)
        count, width = anchors.shape
        self._window = self._filled(
            np.zeros((window, width)), (None,) * window, 0, np.zeros(count + window), 0.0
        )
        self._pending: Window | None = None
        self.report = Report(float("nan"), float("nan"), 0, 0.0)

    @torch.no_grad()
    def weights(self, source: Tensor, ids: tuple[str, ...], mask: Tensor) -> Tensor:
        """Weights [B] in [0, 1]; changes nothing until `commit`.

        A query counts once: one that is in the window already keeps the weight it has there. Rows of padding
        and rows that are not finite or zero weigh 0 and never enter.

        Args:
            source: [B, D] features by the frozen encoder.
            ids: of the real rows, in row order.
            mask: [B], True for real rows.

        Raises:
            ConfigError: ids or width do not fit.
        """
        rows = source.detach()[mask].float().cpu().numpy()
        if len(ids) != len(rows) or rows.shape[1] != self._anchors.shape[1]:
            raise ConfigError(
                f"expected {len(rows)} ids and features of width {self._anchors.shape[1]}, "
                f"got {len(ids)} and {rows.shape[1]}: pass ids of real rows and anchors of the same encoder"
            )
        sound = np.isfinite(rows).all(1) & rows.any(1)
        first: dict[str, int] = {}
        for row in np.flatnonzero(sound).tolist():
            first.setdefault(ids[row], row)
        found = self._found(rows, first)
        known = np.array([found[name] if ok else 0 for name, ok in zip(ids, sound, strict=True)], np.float32)
        if len(known):
            shares = float((known == 0).mean()), float(known.mean())
            self.report = replace(self.report, unreached=shares[0], mean=shares[1])
        out = torch.zeros(len(mask), dtype=torch.float32, device=source.device)
        out[mask] = torch.from_numpy(known).to(source.device)
        return out

    def _found(self, rows: NDArray[np.float32], first: Mapping[str, int]) -> dict[str, float]:
        """Weights by id of the rows that ids name; the window with them in it waits for `commit`."""
        state, held, found = self._window, self._window.slots(), dict[str, float]()
        repeated = [name for name in first if name in held]
        if repeated:
            flow = self._judged(state, 0)
            found |= zip(repeated, self._weigh(state, flow, [held[name] for name in repeated]), strict=True)
        fresh = [name for name in first if name not in held]
        for begin in range(0, len(fresh), self._size):
            names = fresh[begin : begin + self._size]
            state, slots = self._inserted(state, exact(rows[[first[name] for name in names]]), names)
            state, flow = self._settled(state)
            found |= zip(names, self._weigh(state, flow, slots), strict=True)
            self.report = replace(self.report, sweeps=flow.sweeps, residual=flow.residual)
        self._pending = state
        return found

    def commit(self) -> None:
        """Takes the rows last seen by `weights` into the window; a second time changes nothing."""
        if self._pending is not None:
            self._window, self._pending = self._pending, None

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The window and its potentials; edges and mass follow from them."""
        window = self._window
        tensors: dict[str, NDArray[Any]] = {
            "features": window.features.astype(np.float32),  # lossless on the grid
            "potentials": window.potentials.copy(),
        }
        return tensors, {"ids": list(window.ids), "taken": window.taken, "scale": window.scale}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Continues byte for byte. Raises ArtifactError for a window or anchors of another size."""
        shapes = np.shape(tensors["features"]), np.shape(tensors["potentials"]), len(meta["ids"])
        expected = self._window.features.shape, self._window.potentials.shape, self._size
        if shapes != expected:
            raise ArtifactError(
                f"expected a window of features, potentials and ids {expected}, got {shapes}: "
                "use the anchors and the window it was saved with, or reset the lane"
            )
        ids = tuple(None if name is None else str(name) for name in meta["ids"])
        features, potentials = (tensors[name].astype(np.float64) for name in ("features", "potentials"))
        self._window = self._filled(features, ids, int(meta["taken"]), potentials, float(meta["scale"]))
        self._pending = None

    def _filled(
        self, features: Reals, ids: tuple[str | None, ...], taken: int, potentials: Reals, scale: float
    ) -> Window:
        """A window with its similarities made anew."""
        similarity = np.hstack((features @ self._anchors.T, features @ features.T))
        empty = Window(features, ids, taken, potentials, scale, similarity)
        return self._blinded(empty)

    def _blinded(self, window: Window) -> Window:
        """Free slots and the node itself are no neighbours. Writes to the similarity just made."""
        free = np.array([name is None for name in window.ids])
        count = len(self._anchors)
        window.similarity[free] = -np.inf
        window.similarity[:, count:][:, free] = -np.inf
        np.fill_diagonal(window.similarity[:, count:], -np.inf)
        return window

    def _inserted(self, window: Window, rows: Reals, names: list[str]) -> tuple[Window, list[int]]:
        """Puts rows [b, D] into the oldest slots: their edges go, their potentials start at 0."""
        count = len(self._anchors)
        slots = [(window.taken + place) % self._size for place in range(len(names))]
        features, potentials = window.features.copy(), window.potentials.copy()
        similarity, ids = window.similarity.copy(), list(window.ids)
        features[slots] = rows
        potentials[[count + slot for slot in slots]] = 0
        for slot, name in zip(slots, names, strict=True):
            ids[slot] = name
        inside = rows @ features.T
        similarity[slots] = np.hstack((rows @ self._anchors.T, inside))
        similarity[:, [count + slot for slot in slots]] = inside.T
        taken = window.taken + len(names)
        moved = Window(features, tuple(ids), taken, potentials, window.scale, similarity)
        return self._blinded(moved), slots

    def _graph(self, window: Window) -> Graph:
        """Mutual k nearest: among anchors, among queries, and between the two. Queries follow the anchors."""
        count, k = len(self._anchors), self._k
        cross, inside = window.similarity[:, :count], window.similarity[:, count:]
        # Free slots see nothing but -inf, so they name nobody and nobody names them.
        out, back, own = nearest(cross, k), nearest(cross.T, k), nearest(inside, k)
        weights = np.block(
            [
                [self._home_weights, mutual(back, out, cross.T)],
                [mutual(out, back, cross), mutual(own, own, inside)],
            ]
        )
        lists = np.block([[self._home, back + count], [out, own + count]])
        return Graph(np.where(weights > 0, lists, np.arange(len(lists))[:, None]), weights)

    def _settled(self, window: Window) -> tuple[Window, Flow]:
        """Continues from the potentials there are, and moves the running scale."""
        flow = self._judged(window, self._sweeps)
        highest = float(flow.potentials[len(self._anchors) :].max())
        scale = max(highest, FORGETTING * window.scale)
        return replace(window, potentials=flow.potentials, scale=scale), flow

    def _judged(self, window: Window, sweeps: int) -> Flow:
        """Pours beta of the capacity on the anchors by their degree and lets it flow."""
        graph, count = self._graph(window), len(self._anchors)
        degree = graph.degree[:count].astype(np.float64)
        there = count + min(window.taken, self._size)
        delta: Reals = np.zeros(len(graph))
        delta[:count] = self._beta * there * CAPACITY * degree / max(1.0, float(degree.sum()))
        # Anchors that no query touches fill up as soon as their share of the mass exceeds their number.
        delta = cap(delta, components(graph), CAPACITY)
        return flow_diffuse(graph, delta, CAPACITY, sweeps=sweeps, eps=EPS, start=window.potentials)

    def _weigh(self, window: Window, flow: Flow, slots: list[int]) -> list[float]:
        queries = [len(self._anchors) + slot for slot in slots]
        weights: list[float] = (scores(flow, CAPACITY, window.scale)[queries] / 2).tolist()
        return weights
