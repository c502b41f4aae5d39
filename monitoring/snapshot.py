"""The parts of what the page gets, as JSON can carry them: quality in points, seconds as milliseconds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from monitoring.drift import STATISTICS
from monitoring.estimates import Estimate
from monitoring.expected import ExpectedMap
from monitoring.judged import Labels
from monitoring.live import Live
from monitoring.quality import ANSWERS, Quality


def headline(live: Live, labels: Labels) -> dict[str, Any]:
    """What adaptation gains, in a word and in numbers, and how many labels say so."""
    gain = live.gain["served"]
    low, high = live.anytime["served"]
    return {
        "gain": 100 * gain.value,
        "low": 100 * gain.low,
        "high": 100 * gain.high,
        "n_eff": gain.n_eff,
        "verdict": live.verdict,
        "anytime_low": 100 * low,
        "anytime_high": 100 * high,
        "block": live.block,
        "block_labels": live.block_labels,
        "steady": live.steady,
        "requested": labels.requested,
        "arrived": labels.arrived,
        "pending": labels.pending,
        "expired": labels.expired,
        "ignored": sum(labels.ignored.values()),
    }


def expected_points(found: ExpectedMap | None) -> dict[str, float]:
    """mAP to expect of both twins, without labels; empty where nothing is known."""
    return {} if found is None else {"frozen": 100 * found.frozen, "adapted": 100 * found.adapted}


def quality_point(x: int, live: Live) -> dict[str, float]:
    """The present estimates, as a point of the series; x counts queries."""
    point: dict[str, float] = {"x": x}
    for name in ANSWERS:
        point.update(_bounds(name, live.quality[name]))
    point.update(_bounds("gain", live.gain["served"]))
    return point


def _bounds(name: str, estimate: Estimate) -> dict[str, float]:
    return {
        name: 100 * estimate.value,
        f"{name}_low": 100 * estimate.low,
        f"{name}_high": 100 * estimate.high,
    }


def quality_columns(points: Collection[dict[str, float]]) -> dict[str, list[float]]:
    """The series, a column per name."""
    names = ["x", *(f"{name}{end}" for name in (*ANSWERS, "gain") for end in ("", "_low", "_high"))]
    return {name: [point[name] for point in points] for name in names}


def phase_row(text: str, first: int, end: int | None, q: Quality) -> dict[str, Any]:
    """A row of the phase table."""
    numbers = {
        "n": q.n, "frozen": q.map_frozen, "adapted": q.map_adapted, "served": q.map_served,
        "diff": q.diff, "low": q.low, "high": q.high,
    }  # fmt: skip
    return {"text": text, "first": first, "end": end, **numbers}


def drift_columns(points: Collection[tuple[int, str, dict[str, float]]]) -> dict[str, Any]:
    """Drift over its thresholds, of (x, lane, statistics)."""
    return {
        "x": [x for x, _, _ in points],
        "lane": [lane for _, lane, _ in points],
        "statistics": {name: [scaled[name] for _, _, scaled in points] for name in STATISTICS},
    }


def latency(batches: Collection[Mapping[str, float]]) -> dict[str, Any]:
    """Median and 95th percentile of each stage, and of the whole, of seconds by stage."""
    stages = list(dict.fromkeys(stage for seconds in batches for stage in seconds))
    columns = [[1e3 * s[stage] for s in batches if stage in s] for stage in stages]
    totals = [1e3 * sum(s.values()) for s in batches]
    both = [_percentiles(column) for column in columns]
    whole = _percentiles(totals) if totals else (math.nan, math.nan)
    return {
        "stages": stages,
        "p50": [p50 for p50, _ in both],
        "p95": [p95 for _, p95 in both],
        "total": {"p50": whole[0], "p95": whole[1]},
        "batches": len(batches),
    }


def _percentiles(values: list[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(values, (50, 95))
    return float(p50), float(p95)


def clean(value: Any) -> Any:
    """Numbers to three decimals, NaN and infinity to None: what JSON can carry."""
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: clean(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(entry) for entry in value]
    return value
