"""Series: declared once, moved by what they count, bounded, and clean for promtool."""

import math
import shutil
import subprocess

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from core.commands import Command, Obeyed
from core.records import Coordinates, Judgement, Record, Refusal
from core.references import DriftReference
from core.types import AdaptationStep
from monitoring.drift import DriftMonitor
from monitoring.judged import JudgedQuality
from monitoring.metrics import Metrics
from monitoring.ranking import levels
from monitoring.series import SERIES


def judged():
    return JudgedQuality(
        "k", 1.0, 100,
        lambda version, kept, name: tuple(
            levels(np.array(row), np.array([name == "a", name == "b", False]))
            for row in ([2, 1, 3], [1, 2, 3], [1, 1, 3])
        ),
    )  # fmt: skip


def value(registry, name, **labels):
    return registry.get_sample_value(name, labels)


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry(), judged())


def test_a_batch_moves_every_series_it_should(metrics, outcome):
    step = AdaptationStep(
        True, losses={"rest": 0.5, "kl": 0.1}, diagnostics={
            "kept_share": 0.75, "entropy": 0.6, "uniformity": 0.2, "gap": 0.3, "conflict_degrees": 100.0,
            "realised_degrees": 90.0, "removed_energy": 0.1, "source_distance": 0.02, "temperature": 0.4,
        },
    )  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 256, (2, 3, 2)).astype(np.uint8)
    seen = outcome(
        [0, 1, 2], frozen_codes=codes[0], adapted_codes=codes[1], step=step,
        entropy=np.array([0.2, 0.4, 0.6], np.float32), seconds={"search": 0.02, "learn": 0.3},
    )  # fmt: skip
    metrics._judged.observe(seen)
    metrics.observe(seen)
    metrics._judged.judge(Judgement(Coordinates("l", 0, 0), seen.batch.queries[0].at, "a"))
    metrics.judge(Judgement(Coordinates("l", 0, 0), seen.batch.queries[0].at, "a"))
    registry, lane = metrics.registry, "0:image"
    assert value(registry, "qshift_queries_total", lane=lane) == 3
    assert value(registry, "qshift_answers_total") == 3
    assert value(registry, "qshift_batch_rows_sum") == 3
    assert value(registry, "qshift_stage_seconds_sum", stage="learn") == pytest.approx(0.3)
    assert value(registry, "qshift_updates_total", lane=lane) == 1
    assert value(registry, "qshift_loss", lane=lane, part="kl") == 0.1
    assert value(registry, "qshift_conflict_angle_degrees", lane=lane) == 100
    assert value(registry, "qshift_kept_share_ratio", lane=lane) == 0.75
    assert value(registry, "qshift_diagnostic", lane=lane, figure="temperature") == 0.4
    assert value(registry, "qshift_source_distance", lane=lane) == 0.02
    assert value(registry, "qshift_entropy", lane=lane, encoder="frozen") == pytest.approx(0.4)
    assert value(registry, "qshift_entropy", lane=lane, encoder="adapted") == 0.6
    flips = np.unpackbits(codes[0] ^ codes[1]).mean()
    assert value(registry, "qshift_flip_share_ratio", lane=lane) == pytest.approx(flips)
    # Item 0 is right: frozen finds it second, adapted first, served first or second.
    for answer, ap in (("frozen", 0.5), ("adapted", 1.0), ("served", 0.75)):
        assert value(registry, "qshift_quality_map_ratio", answer=answer, bound="value") == pytest.approx(ap)
    assert value(
        registry, "qshift_quality_difference_ratio", answer="served", bound="value", interval="faded"
    ) == pytest.approx(0.25)
    assert value(registry, "qshift_labels_requested_total") == 3
    assert value(registry, "qshift_labels_arrived_total") == 1
    assert value(registry, "qshift_labels_pending") == 2


def test_counters_follow_totals_without_counting_twice(metrics, outcome):
    for _ in range(3):
        metrics._judged.observe(outcome([0, 1]))
        metrics.observe(outcome([0, 1]))
    assert value(metrics.registry, "qshift_labels_requested_total") == 2
    assert value(metrics.registry, "qshift_answers_total") == 6


def test_repeated_answers_are_counted_apart(metrics, outcome):
    metrics.observe(outcome([0, 1], repeated=True))
    assert value(metrics.registry, "qshift_answers_total") == 2
    assert value(metrics.registry, "qshift_repeated_answers_total") == 2
    assert value(metrics.registry, "qshift_queries_total", lane="0:image") is None


def test_refused_updates_and_dead_letters(metrics, outcome):
    metrics.observe(outcome([0], step=AdaptationStep(False, "too-small", rolled_back=True)))
    metrics.refuse(Refusal(Record(Coordinates("q", 0, 1), b"x"), "image", "Refused", "no picture"))
    registry = metrics.registry
    assert value(registry, "qshift_refused_updates_total", lane="0:image", reason="too-small") == 1
    assert value(registry, "qshift_resets_total", lane="0:image") == 1
    assert value(registry, "qshift_dead_letters_total", stage="image") == 1


def test_drift_is_shown(outcome):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(256, 4)).astype(np.float32)
    numbers = np.arange(256, dtype=np.float32)
    reference = DriftReference(features, numbers, numbers, 64)
    drift = DriftMonitor({"image": reference}, window=64, null_windows=200)
    metrics = Metrics(CollectorRegistry(), drift=drift)
    seen = outcome(list(range(64)), features=np.full((64, 4), 3, np.float32))
    drift.observe(seen)
    metrics.observe(seen)
    panel = drift.panels()["0:image"]
    labels = {"lane": "0:image", "statistic": "mean_gap"}
    assert value(metrics.registry, "qshift_drift_value", **labels) == panel.values["mean_gap"]
    assert value(metrics.registry, "qshift_drift_threshold", **labels) == panel.thresholds["mean_gap"]
    assert value(metrics.registry, "qshift_drift_alarm", **labels) == 1


def test_lane_labels_are_bounded_and_tenants_hashed(outcome):
    metrics = Metrics(CollectorRegistry(), lanes=3)
    for tenant in range(50):
        metrics.observe(outcome([0], lane=f"0:image:secret-{tenant}", step=AdaptationStep(True)))
    text = generate_latest(metrics.registry).decode()
    lanes = {part.split('"')[1] for part in text.split("{") if part.startswith("lane=")}
    assert len(lanes) == 4 and "other" in lanes and "secret" not in text
    assert value(metrics.registry, "qshift_series_dropped_total") == 47
    assert value(metrics.registry, "qshift_queries_total", lane="other") == 47
    per_lane = sum('lane="other"' in line for line in text.splitlines())
    assert per_lane <= 60


def test_what_the_service_tells(metrics):
    now = [100.0]
    metrics._clock = lambda: now[0]
    registry = metrics.registry
    assert math.isnan(value(registry, "qshift_checkpoint_age_seconds"))
    metrics.saved(1234)
    now[0] = 107.0
    metrics.lag("qshift.queries/0", 5)
    metrics.index("v1", 10)
    metrics.index("v2", 11)
    metrics.watch("qshift_inflight_bytes", lambda: 77)
    metrics.recovered()
    metrics.rebalanced()
    metrics.restored(0.5)
    command = Command(Coordinates("qshift.control", 0, 0), "freeze", "ann")
    metrics.commanded(Obeyed(command, "0:image", 3, "refused", "why", "", False))
    assert value(registry, "qshift_commands_total", action="freeze", result="refused") == 1
    assert value(registry, "qshift_checkpoint_age_seconds") == 7
    assert value(registry, "qshift_checkpoint_bytes") == 1234
    assert value(registry, "qshift_lag_records", partition="qshift.queries/0") == 5
    assert value(registry, "qshift_index_info", version="v1") is None
    assert value(registry, "qshift_index_info", version="v2") == 1
    assert value(registry, "qshift_inflight_bytes") == 77
    assert value(registry, "qshift_rebalances_total") == value(registry, "qshift_recoveries_total") == 1


def test_names_follow_the_rules():
    names = [series.name for series in SERIES]
    assert len(set(names)) == len(names)
    for series in SERIES:
        assert series.name.startswith("qshift_") and series.help.endswith(".")
        assert series.name.endswith("_total") == (series.kind == "counter")
        assert bool(series.buckets) == (series.kind == "histogram")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_findings(metrics, outcome):
    seen = outcome([0, 1], step=AdaptationStep(True, losses={"rest": 1.0}), seconds={"search": 0.1})
    metrics.observe(seen)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True
    )
    findings = [line for line in (done.stdout + done.stderr).decode().splitlines() if "qshift_" in line]
    assert findings == []
