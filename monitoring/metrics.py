"""Outcomes -> Prometheus series. The table of series is in `monitoring.series`; the registry is injected."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from importlib import metadata

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from core.commands import Obeyed
from core.records import Judgement, Refusal
from core.types import Floats, Outcome
from monitoring.bits import BitHealth, BitWindow
from monitoring.drift import DriftMonitor, Panel
from monitoring.estimates import Estimate
from monitoring.expected import ExpectedMonitor
from monitoring.judged import JudgedQuality
from monitoring.live import Live
from monitoring.series import SERIES

OTHER = "other"
DIAGNOSTICS = {
    "conflict_degrees": "qshift_conflict_angle_degrees",
    "realised_degrees": "qshift_realised_angle_degrees",
    "removed_energy": "qshift_removed_energy_ratio",
    "kept_share": "qshift_kept_share_ratio",
    "source_distance": "qshift_source_distance",
    "uniformity": "qshift_uniformity",
    "gap": "qshift_gap",
}
"""Figures of a method that have a series of their own; others are labelled by their name."""
ABSENT = {"removed_energy": 0.0, "source_distance": 0.0}
"""What a method without a figure has; of the others it is not a number."""


class Metrics:
    """Observer: keeps every declared series up to date.

    Give it the `judged`, `drift` and `expected` of the run, and list it after them: it reads what they found.

    Args:
        registry: where the series are registered; a fresh one per service.
        method: adaptation method, for the build series.
        lanes: so many lanes have their own label, later ones share `other`.
        semantics: unit features [B, D] of pictures -> values of the series `qshift_semantic_*`, by name.
        clock: seconds, for the age of the newest checkpoint.
        abstained: answers of a batch that name nothing.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        judged: JudgedQuality | None = None,
        drift: DriftMonitor | None = None,
        method: str = "",
        lanes: int = 64,
        clock: Callable[[], float] = time.monotonic,
        semantics: Callable[[Floats], Mapping[str, float]] | None = None,
        expected: ExpectedMonitor | None = None,
        abstained: Callable[[Outcome], int] = lambda _: 0,
    ) -> None:
        self.registry = registry
        self._judged, self._drift, self._most, self._clock = judged, drift, lanes, clock
        self._semantics, self._expected, self._abstained = semantics, expected, abstained
        # One "_created" series beside every counter would double what a scrape carries.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for series in SERIES:
            if series.kind == "counter":
                self._counters[series.name] = Counter(
                    series.name, series.help, series.labels, registry=registry
                )
            elif series.kind == "gauge":
                self._gauges[series.name] = Gauge(series.name, series.help, series.labels, registry=registry)
            else:
                self._histograms[series.name] = Histogram(
                    series.name, series.help, series.labels, registry=registry, buckets=series.buckets
                )
        ProcessCollector(registry=registry)
        self._labels: dict[str, str] = {}
        self._bits: dict[str, BitWindow] = {}
        self._totals: dict[tuple[str, ...], int] = {}
        self._last_checkpoint = math.nan
        self._index = ""
        self._gauges["qshift_checkpoint_age_seconds"].set_function(
            lambda: self._clock() - self._last_checkpoint
        )
        self._gauges["qshift_build_info"].labels(_version(), method).set(1)

    # -- Observer ---------------------------------------------------------------------------------------

    def observe(self, outcome: Outcome) -> None:
        """Counts a batch and shows what it says about adaptation, codes, drift and quality."""
        count = len(outcome.batch)
        self._counters["qshift_answers_total"].inc(count)
        for stage, seconds in outcome.seconds.items():
            self._histograms["qshift_stage_seconds"].labels(stage).observe(seconds)
        if outcome.repeated:
            self._counters["qshift_repeated_answers_total"].inc(count)
            return
        lane = self.lane_label(outcome.batch.lane)
        self._counters["qshift_queries_total"].labels(lane).inc(count)
        self._counters["qshift_batches_total"].labels(lane).inc()
        self._counters["qshift_quiet_batches_total"].labels(lane).inc(outcome.quiet)
        self._counters["qshift_abstained_answers_total"].labels(lane).inc(self._abstained(outcome))
        self._histograms["qshift_batch_rows"].observe(count)
        self._adaptation(lane, outcome)
        self._meaning(lane, outcome)
        frozen, adapted = (twin.codes[outcome.paired] for twin in (outcome.frozen, outcome.adapted))
        health = self._bits.setdefault(lane, BitWindow()).add(adapted, frozen)
        if health is not None:
            self._codes(lane, health)
        if self._drift is not None:
            panel = self._drift.panels().get(outcome.batch.lane)
            if panel is not None:
                self._panel(lane, panel)
        self._to_expect(lane, outcome.batch.lane)
        self._quality()

    def judge(self, judgement: Judgement) -> None:
        """Shows what a label changed."""
        self._quality()

    def refuse(self, refusal: Refusal) -> None:
        self._counters["qshift_dead_letters_total"].labels(refusal.stage).inc()

    # -- What only the service knows --------------------------------------------------------------------

    def lag(self, partition: str, records: int) -> None:
        self._gauges["qshift_lag_records"].labels(partition).set(records)

    def saved(self, size_bytes: int) -> None:
        """A checkpoint has become durable."""
        self._last_checkpoint = self._clock()
        self._gauges["qshift_checkpoint_bytes"].set(size_bytes)
        self._counters["qshift_checkpoints_total"].inc()

    def restored(self, seconds: float) -> None:
        self._gauges["qshift_restore_seconds"].set(seconds)

    def recovered(self) -> None:
        self._counters["qshift_recoveries_total"].inc()

    def rebalanced(self) -> None:
        self._counters["qshift_rebalances_total"].inc()

    def commanded(self, obeyed: Obeyed) -> None:
        """A lane has obeyed a command or refused it."""
        self._counters["qshift_commands_total"].labels(obeyed.command.action, obeyed.result).inc()

    def index(self, version: str, items: int) -> None:
        """The gallery that is searched from now on."""
        gauge = self._gauges["qshift_index_info"]
        if self._index and self._index != version:
            gauge.remove(self._index)
        self._index = version
        gauge.labels(version).set(1)
        self._gauges["qshift_index_items"].set(items)

    def gallery_away(self) -> None:
        """Counts an outage of the server that searches the gallery."""
        self._counters["qshift_gallery_outages_total"].inc()

    def observer_failed(self, name: str) -> None:
        """Counts an error of an observer, by its kind."""
        self._counters["qshift_observer_errors_total"].labels(name).inc()

    def unobserved(self, kind: str) -> None:
        """Counts what observers did not see. The counter's own lock is held for an addition only."""
        self._counters["qshift_unobserved_total"].labels(kind).inc()

    def refused(self, reason: str, times: int) -> None:
        """Counts clients of the HTTP side that were refused."""
        self._counters["qshift_http_refused_total"].labels(reason).inc(times)

    def watch(self, name: str, read: Callable[[], float]) -> None:
        """Reads a gauge without labels at every scrape, e.g. qshift_inflight_bytes."""
        self._gauges[name].set_function(read)

    # -- Parts ------------------------------------------------------------------------------------------

    def lane_label(self, lane: str) -> str:
        """Bounded lane label: tenants are hashed, and lanes beyond the cap share one label."""
        if lane not in self._labels and len(self._labels) < self._most:
            parts = lane.split(":", 2)  # partition, modality and, where tenants are kept apart, the tenant
            hashed = [hashlib.sha256(part.encode()).hexdigest()[:8] for part in parts[2:]]
            self._labels[lane] = ":".join([*parts[:2], *hashed])
        label = self._labels.get(lane, OTHER)
        if label == OTHER:
            self._counters["qshift_series_dropped_total"].inc()
        return label

    def _meaning(self, lane: str, outcome: Outcome) -> None:
        if self._semantics is None or outcome.batch.modality != "image" or not len(outcome.batch):
            return
        for encoder, twin in (("frozen", outcome.frozen), ("adapted", outcome.adapted)):
            for name, value in self._semantics(twin.features[outcome.paired]).items():
                self._set(name, value, lane, encoder)

    def _adaptation(self, lane: str, outcome: Outcome) -> None:
        if len(outcome.frozen_entropy):
            self._set("qshift_entropy", float(np.mean(outcome.frozen_entropy)), lane, "frozen")
        step = outcome.step
        if step is None:
            return
        if step.updated:
            self._counters["qshift_updates_total"].labels(lane).inc()
        else:
            # A quiet batch had nothing to teach: that is no refusal, and no reason to wake anybody.
            self._counters["qshift_refused_updates_total"].labels(lane, step.reason or "none").inc(
                not outcome.quiet
            )
        if step.rolled_back:
            self._counters["qshift_resets_total"].labels(lane).inc()
        for part, loss in step.losses.items():
            self._set("qshift_loss", loss, lane, part)
        for name, series in DIAGNOSTICS.items():
            self._set(series, step.diagnostics.get(name, ABSENT.get(name, math.nan)), lane)
        self._set("qshift_entropy", step.diagnostics.get("entropy", math.nan), lane, "adapted")
        for name in step.diagnostics.keys() - DIAGNOSTICS.keys() - {"entropy"}:
            self._set("qshift_diagnostic", step.diagnostics[name], lane, name)

    def _codes(self, lane: str, health: BitHealth) -> None:
        self._set("qshift_bit_balance_ratio", health.balance, lane)
        self._set("qshift_bit_entropy_ratio", health.entropy_bits / max(1, health.bits), lane)
        self._set("qshift_bit_effective_ratio", health.effective_bits / max(1, health.bits), lane)
        self._set("qshift_bit_dead_ratio", health.dead_bits / max(1, health.bits), lane)
        self._set("qshift_flip_share_ratio", health.flip_rate, lane)

    def _panel(self, lane: str, panel: Panel) -> None:
        for name, value in panel.values.items():
            self._set("qshift_drift_value", value, lane, name)
            self._set("qshift_drift_threshold", panel.thresholds[name], lane, name)
            self._set("qshift_drift_alarm", float(panel.alarms[name]), lane, name)

    def _to_expect(self, label: str, lane: str) -> None:
        found = None if self._expected is None else self._expected.of_lane(lane)
        if found is not None:
            self._set("qshift_expected_map", found.frozen, label, "frozen")
            self._set("qshift_expected_map", found.adapted, label, "adapted")

    def _quality(self) -> None:
        if self._judged is None:
            return
        self._estimates(self._judged.live())
        labels = self._judged.labels()
        for name in ("requested", "arrived", "corrected", "expired"):
            self._advance(f"qshift_labels_{name}_total", getattr(labels, name))
        self._ignored(labels.ignored)
        self._set("qshift_labels_pending", labels.pending)
        self._set("qshift_labels_early", labels.early)

    def _estimates(self, live: Live) -> None:
        for answer, estimate in live.quality.items():
            for bound, value in _bounds(estimate).items():
                self._set("qshift_quality_map_ratio", value, answer, bound)
        for answer, estimate in live.gain.items():
            for bound, value in _bounds(estimate).items():
                self._set("qshift_quality_difference_ratio", value, answer, bound, "faded")
            for bound, value in zip(("low", "high"), live.anytime[answer]):
                self._set("qshift_quality_difference_ratio", value, answer, bound, "anytime")
        self._set("qshift_quality_effective_labels", live.quality["frozen"].n_eff)
        self._set("qshift_quality_verdict", {"helps": 1.0, "harms": -1.0}.get(live.verdict, 0.0))
        self._set("qshift_harm_evidence_ratio", live.harm_evidence)
        self._advance("qshift_harm_alarms_total", live.harm_alarms)
        self._set("qshift_quality_block", live.block)
        self._set("qshift_quality_steady", float(live.steady))

    def _ignored(self, ignored: Mapping[str, int]) -> None:
        for reason, count in ignored.items():
            self._advance("qshift_labels_ignored_total", count, reason)

    def _set(self, name: str, value: float, *labels: str) -> None:
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(value)

    def _advance(self, name: str, total: int, *labels: str) -> None:
        """Brings a counter to a total that is counted elsewhere."""
        key = (name, *labels)
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(max(0, total - self._totals.get(key, 0)))
        self._totals[key] = total


def _bounds(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _version() -> str:
    try:
        return metadata.version("qshift")
    except metadata.PackageNotFoundError:
        return "unknown"
