"""Drift: a window of queries against a reference, on the frozen encoder.

On the adapted encoder the alarm would chase its own tail. Two members of the panel see a moved mean or
prior (mean gap, modality gap), two see noise and foreign queries (entropy, nearest distance).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.records import Judgement, Refusal
from core.references import DriftReference
from core.types import Floats, Modality, Outcome

STATISTICS = ("mean_gap", "entropy_ks", "nearest_ks", "modality_gap")
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Panel:
    """The statistics of a lane's newest window; NaN while the window is not full.

    `thresholds` are NaN where none can be had, `alarms` say which values are above.
    """

    lane: str
    rows: int
    values: Mapping[str, float]
    thresholds: Mapping[str, float]

    @property
    def alarms(self) -> dict[str, bool]:
        return {name: value > self.thresholds[name] for name, value in self.values.items()}

    @property
    def drift_detected(self) -> bool:
        return any(self.alarms.values())


def ks(windows: Values, reference: Values) -> Values:
    """Two-sample Kolmogorov-Smirnov distance of each window [R, W] to a sorted reference [n] -> [R]."""
    ordered = np.sort(windows, axis=1)
    n, width = len(reference), ordered.shape[1]
    at = np.searchsorted(reference, ordered, side="right") / n
    before = np.searchsorted(reference, ordered, side="left") / n
    steps = np.arange(width + 1) / width
    above = (steps[1:] - at).max(axis=1)
    below = (before - steps[:-1]).max(axis=1)
    return np.asarray(np.maximum(above, below), dtype=np.float64)


class Reference:
    """A reference with thresholds for windows of W rows.

    Null windows are bootstrapped from the reference in blocks of whole batches, because the entropies of a
    batch depend on each other. The threshold of a statistic lies where one panel of 10,000 null windows
    has one false alarm; that far out it is extrapolated from the exceedances of the largest null values
    by an exponential tail, which errs on the quiet side.

    Args:
        source: clean source queries.
        gallery_mean: [D] mean of the gallery's features, for the modality gap; None leaves it out.
        window: rows W.
        run_length: windows between false alarms of the whole panel.
        null_windows: how many to draw.
    """

    TAIL = 0.005

    def __init__(
        self,
        source: DriftReference,
        gallery_mean: Floats | None,
        window: int,
        run_length: int,
        null_windows: int,
        seed: int,
    ) -> None:
        self.batch = source.batch
        self._features = np.asarray(source.features, dtype=np.float64)
        self._mean = self._features.mean(0)
        self._gallery = None if gallery_mean is None else np.asarray(gallery_mean, dtype=np.float64)
        self._entropy = np.sort(np.asarray(source.entropy, dtype=np.float64))
        self._nearest = np.sort(np.asarray(source.nearest, dtype=np.float64))
        self.thresholds = self._fit(source, window, run_length, null_windows, np.random.default_rng(seed))

    def statistics(self, means: Values, entropy: Values, nearest: Values) -> dict[str, Values]:
        """Statistics [R] of windows: mean features [R, D], entropies and nearest distances [R, W].

        The modality gap is the distance of the mean query to the mean gallery item; its change counts.
        """
        none = np.full(len(means), np.nan)
        return {
            "mean_gap": np.linalg.norm(means - self._mean, axis=1),
            "entropy_ks": ks(entropy, self._entropy) if entropy.shape[1] else none,
            "nearest_ks": ks(nearest, self._nearest) if nearest.shape[1] else none,
            "modality_gap": none
            if self._gallery is None
            else np.abs(self._gap(means) - self._gap(self._mean)),
        }

    def _gap(self, means: Values) -> Values:
        assert self._gallery is not None
        return np.asarray(np.linalg.norm(means - self._gallery, axis=-1))

    def _fit(
        self, source: DriftReference, window: int, run_length: int, count: int, generator: np.random.Generator
    ) -> dict[str, float]:
        n = len(self._features)
        block = max(1, min(self.batch, window, n))
        # Whole blocks and a rest, so that null windows have exactly as many rows as real ones.
        lengths = np.array([block] * (window // block) + [window % block] * (window % block > 0))
        # Sums of blocks from differences of a running sum over the reference, which wraps around.
        around = np.concatenate((np.arange(n), np.arange(block)))
        running = np.concatenate(
            (np.zeros((1, self._features.shape[1])), np.cumsum(self._features[around], 0))
        )
        entropy, nearest = np.asarray(source.entropy, np.float64), np.asarray(source.nearest, np.float64)
        drawn: dict[str, list[Values]] = {name: [] for name in STATISTICS}
        for start in range(0, count, 1000):
            starts = generator.integers(0, n, (min(1000, count - start), len(lengths)))
            means = (running[starts + lengths] - running[starts]).sum(1) / window
            rows = ((starts[..., None] + np.arange(block)) % n).reshape(len(starts), -1)[:, :window]
            for name, values in self.statistics(means, entropy[rows], nearest[rows]).items():
                drawn[name].append(values)
        allowed = 1.0 / (run_length * len(STATISTICS))
        fresh = float(np.sqrt(1.0 + window / n))
        return {name: self._threshold(np.concatenate(v), allowed, fresh) for name, v in drawn.items()}

    def _threshold(self, values: Values, allowed: float, fresh: float) -> float:
        if np.isnan(values).any():
            return float("nan")
        # The windows come from the reference itself: real ones also carry the reference's own error.
        values = values * fresh
        start = float(np.quantile(values, 1.0 - self.TAIL))
        excess = values[values > start] - start
        scale = float(excess.mean()) if len(excess) else 0.0
        return start + scale * max(0.0, float(np.log(self.TAIL / allowed)))


class _Window:
    """The latest rows of one lane."""

    def __init__(self, rows: int) -> None:
        self.features: deque[Floats] = deque(maxlen=rows)
        self.entropy: deque[float] = deque(maxlen=rows)
        self.nearest: deque[float] = deque(maxlen=rows)


class DriftMonitor:
    """Observer: one window per lane, judged after every batch.

    Args:
        references: per modality, from the base model; lanes of other modalities are not watched.
        gallery_mean: [D] mean of the gallery's features; None leaves out the modality gap.
        window: rows W.
        run_length: windows between two false alarms of a lane's panel.
        lanes: at most so many are watched; the one that was silent longest is dropped.
    """

    def __init__(
        self,
        references: Mapping[Modality, DriftReference],
        gallery_mean: Floats | None = None,
        window: int = 128,
        run_length: int = 10_000,
        null_windows: int = 20_000,
        lanes: int = 256,
        seed: int = 0,
    ) -> None:
        self._window, self._most = window, lanes
        self._references = {
            modality: Reference(source, gallery_mean, window, run_length, null_windows, seed)
            for modality, source in references.items()
            if len(source.features)
        }
        self._lock = threading.Lock()
        self._windows: dict[str, _Window] = {}
        self._panels: dict[str, Panel] = {}

    def observe(self, outcome: Outcome) -> None:
        """Moves the window of the batch's lane on. Batches answered again after a restart are left out."""
        batch = outcome.batch
        reference = self._references.get(batch.modality)
        if reference is None or outcome.repeated or not len(batch):
            return
        window = self._windows.pop(batch.lane, None) or _Window(self._window)
        self._windows[batch.lane] = window  # moved to the end: the first is the longest silent
        asked = outcome.paired
        window.features.extend(row for row in outcome.frozen.features[asked] if np.isfinite(row).all())
        # The refined entropy is taken within a batch and grows with its size: others do not compare.
        if len(batch) == reference.batch:
            window.entropy.extend(float(e) for e in outcome.frozen_entropy if np.isfinite(e))
        hits = outcome.frozen.hits
        if hits.keys.shape[1]:
            near = hits.distances[asked & (hits.keys[:, 0] >= 0), 0]
            window.nearest.extend(float(d) for d in near)
        panel = self._panel(batch.lane, window, reference)
        with self._lock:
            self._panels.pop(batch.lane, None)
            self._panels[batch.lane] = panel
            while len(self._windows) > self._most:
                oldest = next(iter(self._windows))
                del self._windows[oldest]
                self._panels.pop(oldest, None)

    def judge(self, judgement: Judgement) -> None:
        """Drift needs no labels."""

    def refuse(self, refusal: Refusal) -> None:
        """A refused query has no features."""

    def panels(self) -> dict[str, Panel]:
        """The newest panel of each lane, longest silent first."""
        with self._lock:
            return dict(self._panels)

    def _panel(self, lane: str, window: _Window, reference: Reference) -> Panel:
        def full(values: deque[float]) -> Values:
            return np.array([values if len(values) == self._window else []], dtype=np.float64)

        rows = len(window.features)
        values = dict.fromkeys(STATISTICS, float("nan"))
        if rows == self._window:
            means = np.stack(window.features).astype(np.float64).mean(axis=0, keepdims=True)
            found = reference.statistics(means, full(window.entropy), full(window.nearest))
            values = {name: float(value[0]) for name, value in found.items()}
        return Panel(lane, rows, values, reference.thresholds)
