"""The drift panel: SciPy as oracle, false alarms and power as in the design."""

import math

import numpy as np
import pytest
from scipy import stats

from core.references import DriftReference
from monitoring.drift import STATISTICS, DriftMonitor, ks

WIDTH, BATCH = 16, 64


def clean(rows, generator, shift=0.0, noise=0.0):
    """Queries of eight classes around unit prototypes; noise moves entropy and nearest distance."""
    prototypes = np.random.default_rng(99).normal(size=(8, WIDTH))
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    features = prototypes[generator.integers(0, 8, rows)] + generator.normal(0, 0.15, (rows, WIDTH))
    features[:, 0] += shift
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    entropy = generator.gamma(4.0, 0.3 * (1 + noise), rows)
    nearest = generator.binomial(64, 0.12 * (1 + noise), rows)
    return features.astype(np.float32), entropy.astype(np.float32), nearest.astype(np.float32)


def reference(rows=2048, seed=0):
    return DriftReference(*clean(rows, np.random.default_rng(seed)), batch=BATCH)


def monitor(**more):
    return DriftMonitor({"image": reference()}, **{"null_windows": 4000, **more})


@pytest.fixture
def batch(outcome):
    def make(generator, rows=BATCH, lane="0:image", repeated=False, **shift):
        features, entropy, nearest = clean(rows, generator, **shift)
        return outcome(
            list(range(rows)), lane=lane, features=features, entropy=entropy, repeated=repeated,
            keys=np.zeros((rows, 1), np.int64), distances=nearest.astype(np.int32)[:, None],
        )  # fmt: skip

    return make


def run(drift, batch, count, generator, **shift):
    panels = []
    for _ in range(count):
        drift.observe(batch(generator, **shift))
        panels.append(drift.panels()["0:image"])
    return panels


def test_ks_equals_scipy_with_and_without_ties():
    generator = np.random.default_rng(0)
    for _ in range(50):
        window, base = generator.normal(size=(3, 40)), np.sort(generator.normal(0.2, 1, 90))
        ties, tied_base = generator.integers(0, 6, (3, 40)), np.sort(generator.integers(0, 7, 90))
        for rows, sample in ((window, base), (ties, tied_base)):
            found = ks(rows.astype(float), sample.astype(float))
            want = [stats.ks_2samp(row, sample).statistic for row in rows]
            assert found == pytest.approx(want, abs=1e-12)


def test_values_equal_a_direct_computation(batch):
    source, generator = reference(), np.random.default_rng(1)
    centre = np.full(WIDTH, 0.1, np.float32)
    drift = DriftMonitor({"image": source}, centre, window=128, null_windows=500)
    seen = [batch(generator, shift=0.1) for _ in range(3)]
    for outcome in seen:
        drift.observe(outcome)
    rows = np.concatenate([o.frozen.features for o in seen[1:]]).astype(float)
    panel = drift.panels()["0:image"]
    assert panel.values["mean_gap"] == pytest.approx(
        np.linalg.norm(rows.mean(0) - source.features.mean(0, dtype=np.float64)), abs=1e-7
    )
    gap, source_gap = (np.linalg.norm(f.mean(0, dtype=np.float64) - centre) for f in (rows, source.features))
    assert panel.values["modality_gap"] == pytest.approx(abs(gap - source_gap), abs=1e-7)
    for name, values, base in (
        ("entropy_ks", [o.frozen_entropy for o in seen[1:]], source.entropy),
        ("nearest_ks", [o.frozen.hits.distances[:, 0] for o in seen[1:]], source.nearest),
    ):
        want = stats.ks_2samp(np.concatenate(values).astype(float), base).statistic
        assert panel.values[name] == pytest.approx(want, abs=1e-12)


def test_clean_queries_raise_no_alarm_and_shifts_do(batch):
    # (shift, members that must see it)
    for shift, seen_by in (({}, ()), ({"shift": 0.25}, ("mean_gap",)), ({"noise": 0.5}, STATISTICS[1:3])):
        panels = run(monitor(), batch, 40, np.random.default_rng(2), **shift)[1:]
        for name in STATISTICS:
            share = np.mean([panel.alarms[name] for panel in panels])
            if name in seen_by:
                assert share >= 0.95, (shift, name)
            elif not shift:
                assert share == 0.0, name


@pytest.mark.slow
def test_false_alarms_come_as_often_as_promised(batch):
    # A promise that can be counted in a short run: one panel in 100 windows that do not overlap.
    generator, alarms, windows = np.random.default_rng(3), 0, 0
    for seed in range(6):
        drift = DriftMonitor({"image": reference(4096, seed)}, run_length=100, null_windows=20_000)
        panels = run(drift, batch, 1000, generator)[1::2]
        alarms += sum(panel.drift_detected for panel in panels)
        windows += len(panels)
    # Three members split the budget of four: 0.75 % nominal.
    assert 0.5 * 0.0075 < alarms / windows < 1.5 * 0.0075


def test_nothing_is_said_before_the_window_is_full(batch):
    drift, generator = monitor(), np.random.default_rng(4)
    panel = run(drift, batch, 1, generator)[0]
    assert panel.rows == BATCH and not panel.drift_detected
    assert all(math.isnan(value) for value in panel.values.values())


def test_entropies_of_other_batch_sizes_do_not_count(batch):
    drift, generator = monitor(), np.random.default_rng(5)
    for _ in range(8):
        drift.observe(batch(generator, rows=32))
    values = drift.panels()["0:image"].values
    assert math.isnan(values["entropy_ks"]) and values["mean_gap"] > 0


def test_what_is_not_watched(batch, outcome):
    drift, generator = monitor(), np.random.default_rng(6)
    drift.observe(batch(generator, lane="0:text"))
    drift.observe(batch(generator, repeated=True))
    drift.observe(outcome([]))
    assert drift.panels() == {}
    broken = batch(generator)
    broken.frozen.features[3] = np.nan
    drift.observe(broken)
    assert drift.panels()["0:image"].rows == BATCH - 1


def test_lanes_are_bounded_and_the_same_seed_gives_the_same_thresholds(batch):
    drift, generator = monitor(lanes=3), np.random.default_rng(7)
    for tenant in range(9):
        drift.observe(batch(generator, lane=f"0:image:{tenant}"))
    assert sorted(drift.panels()) == ["0:image:6", "0:image:7", "0:image:8"]
    one, two = (m.panels()["0:image:8"].thresholds for m in (drift, drift))
    again = monitor()
    again.observe(batch(generator))
    assert repr(again.panels()["0:image"].thresholds) == repr(one) == repr(two)
    assert math.isnan(one["modality_gap"])
