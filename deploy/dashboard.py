"""Writes the Grafana dashboard: `python deploy/dashboard.py`. The same source always gives the same bytes.

A test compares the committed JSON with `render()` and every metric name with `monitoring.series`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "grafana" / "dashboards" / "qshift.json"
SOURCE = {"type": "prometheus", "uid": "qshift-prometheus"}
WINDOW = "5m"
"""Of every rate."""

Panel = dict[str, Any]
Query = tuple[str, str]
"""PromQL and the legend of its lines."""


def panel(title: str, description: str, unit: str, *queries: Query, kind: str = "timeseries") -> Panel:
    """A panel without its place; `unit` is one of Grafana's unit names."""
    targets = [
        {"datasource": SOURCE, "expr": expr, "legendFormat": legend, "refId": chr(ord("A") + i)}
        for i, (expr, legend) in enumerate(queries)
    ]
    found: Panel = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": targets,
    }
    if kind == "timeseries":
        found["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return found


def band(found: Panel, low: str, high: str) -> Panel:
    """Shades between the two bounds, both drawn without a line of their own."""
    found["fieldConfig"]["overrides"] += [
        _override(low, **{"custom.lineWidth": 0}),
        _override(high, **{"custom.lineWidth": 0, "custom.fillBelowTo": low, "custom.fillOpacity": 18}),
    ]
    return found


def zero_line(found: Panel) -> Panel:
    """Colours what lies below 0 as bad."""
    found["fieldConfig"]["defaults"]["thresholds"] = {
        "mode": "absolute",
        "steps": [{"color": "red", "value": None}, {"color": "green", "value": 0}],
    }
    found["fieldConfig"]["defaults"]["custom"] = {"thresholdsStyle": {"mode": "area"}}
    return found


def dashed(found: Panel, pattern: str) -> Panel:
    """Draws the lines whose legend matches as dashes: thresholds, not measurements."""
    found["fieldConfig"]["overrides"].append(
        {
            "matcher": {"id": "byRegexp", "options": pattern},
            "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}}],
        }
    )
    return found


def quality() -> list[Panel]:
    answers = ("frozen", "adapted", "served")
    return [
        *(
            band(
                panel(
                    f"mAP of the {answer} answer",
                    "Faded mAP from sampled labels, with its 95 % interval for one look at it.",
                    "percentunit",
                    *(
                        (f'qshift_quality_map_ratio{{answer="{answer}",bound="{bound}"}}', bound)
                        for bound in ("low", "value", "high")
                    ),
                ),
                "low",
                "high",
            )
            for answer in answers
        ),
        *(
            zero_line(
                band(
                    panel(
                        f"{answer} - frozen",
                        f"mAP of the {answer} answer minus that of the frozen twin on the same queries. "
                        "The band is the anytime interval of the present block: it may be read at any time. "
                        "Wholly below 0 is harm.",
                        "percentunit",
                        (_difference(answer, "low", "anytime"), "low"),
                        (_difference(answer, "value", "faded"), "value"),
                        (_difference(answer, "high", "anytime"), "high"),
                    ),
                    "low",
                    "high",
                )
            )
            for answer in ("adapted", "served")
        ),
        panel(
            "Labels",
            "Labels asked for, arrived, expired and ignored per second. Quality is only as fresh as these.",
            "cps",
            *(
                (f"sum(rate(qshift_labels_{name}_total[{WINDOW}]))", name)
                for name in ("requested", "arrived", "expired", "ignored")
            ),
        ),
        panel(
            "Labels the estimates rest on",
            "What the faded estimates are worth in labels, and sampled queries that wait for theirs.",
            "short",
            ("qshift_quality_effective_labels", "effective"),
            ("qshift_labels_pending", "pending"),
        ),
        panel(
            "One regime",
            "1 while a constant difference fits the present block; 0: the stream has changed and the anytime "
            "interval of this block describes no single difference.",
            "bool_yes_no",
            ("qshift_quality_steady", "steady"),
            kind="stat",
        ),
    ]


def drift() -> list[Panel]:
    names = {
        "mean_gap": "Moved mean of the features of the frozen encoder.",
        "entropy_ks": "Changed distribution of the entropy of the answers.",
        "nearest_ks": "Changed distribution of the distance to the nearest item.",
        "modality_gap": "Distance of the queries to the mean of the gallery.",
    }
    return [
        dashed(
            panel(
                f"Drift: {name}",
                f"{meaning} Dashed: the alarm threshold, drawn from clean source queries.",
                "short",
                (f'qshift_drift_value{{statistic="{name}"}}', "{{lane}}"),
                (f'qshift_drift_threshold{{statistic="{name}"}}', "threshold {{lane}}"),
            ),
            "threshold.*",
        )
        for name, meaning in names.items()
    ]


def adaptation() -> list[Panel]:
    return [
        panel(
            "Losses",
            "Newest value of each part of the objective.",
            "short",
            ("qshift_loss", "{{lane}} {{part}}"),
        ),
        panel(
            "Conflict angle",
            "Angle between the gradients of objective and reference, before and after decoupling. "
            "Above 90 degrees they pull apart.",
            "degree",
            ("qshift_conflict_angle_degrees", "{{lane}} before"),
            ("qshift_realised_angle_degrees", "{{lane}} after"),
        ),
        panel(
            "Removed by decoupling",
            "Share of the gradient's energy that decoupling took away.",
            "percentunit",
            ("qshift_removed_energy_ratio", "{{lane}}"),
        ),
        panel(
            "Updates",
            "Updates accepted, refused and rolled back per second.",
            "ops",
            (f"sum(rate(qshift_updates_total[{WINDOW}]))", "accepted"),
            (f"sum by (reason) (rate(qshift_refused_updates_total[{WINDOW}]))", "refused: {{reason}}"),
            (f"sum(rate(qshift_resets_total[{WINDOW}]))", "rolled back"),
        ),
        panel(
            "Distance from the source model",
            "Distance of the adapted parameters from where they started.",
            "short",
            ("qshift_source_distance", "{{lane}}"),
        ),
        panel(
            "Entropy",
            "Mean refined entropy of a batch under the frozen and the adapted encoder.",
            "short",
            ("qshift_entropy", "{{lane}} {{encoder}}"),
        ),
        panel(
            "Bits",
            "Adapted codes: dead bits never change, imbalance 0 is best, flips are against the twin.",
            "percentunit",
            ("qshift_bit_dead_ratio", "{{lane}} dead"),
            ("qshift_bit_balance_ratio", "{{lane}} imbalance"),
            ("qshift_flip_share_ratio", "{{lane}} flipped"),
        ),
    ]


def lanes() -> Panel:
    """The table of lanes: one row each, columns joined over the lane label."""
    columns = (
        (f"sum by (lane) (rate(qshift_queries_total[{WINDOW}]))", "Queries per second"),
        ("sum by (lane) (qshift_queries_total)", "Queries"),
        ("sum by (lane) (qshift_updates_total)", "Updates"),
        ("sum by (lane) (qshift_refused_updates_total)", "Refused"),
        ("sum by (lane) (qshift_resets_total)", "Rollbacks"),
        ("max by (lane) (qshift_drift_alarm)", "Drift alarm"),
        ("max by (lane) (qshift_source_distance)", "Distance"),
    )
    found = panel(
        "Lanes",
        "One row per lane. Drift alarm is 1 while any statistic is above its threshold.",
        "short",
        *columns,
        kind="table",
    )
    for target in found["targets"]:
        target |= {"format": "table", "instant": True}
    found["transformations"] = [
        {"id": "joinByField", "options": {"byField": "lane", "mode": "outer"}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {f"Time {i}": True for i in range(1, len(columns) + 1)},
                "renameByName": {f"Value #{chr(ord('A') + i)}": name for i, (_, name) in enumerate(columns)},
            },
        },
    ]
    return found


def service() -> list[Panel]:
    return [
        panel(
            "Queries",
            "Queries answered per second; repeated answers come after a restart and are byte-identical.",
            "reqps",
            (f"sum(rate(qshift_queries_total[{WINDOW}]))", "answered"),
            (f"sum(rate(qshift_repeated_answers_total[{WINDOW}]))", "repeated"),
        ),
        panel(
            "Dead letters",
            "Records that were not processed, per second and stage.",
            "reqps",
            (f"sum by (stage) (rate(qshift_dead_letters_total[{WINDOW}]))", "{{stage}}"),
        ),
        panel(
            "Lag",
            "Records of a partition that are not yet read.",
            "short",
            ("sum by (partition) (qshift_lag_records)", "{{partition}}"),
        ),
        *(
            panel(
                f"Time per stage, {name}",
                f"{name} of the time that a micro-batch spends in each stage.",
                "s",
                (
                    f"histogram_quantile({share}, "
                    f"sum by (le, stage) (rate(qshift_stage_seconds_bucket[{WINDOW}])))",
                    "{{stage}}",
                ),
            )
            for name, share in (("median", "0.5"), ("95th percentile", "0.95"), ("99th percentile", "0.99"))
        ),
        panel(
            "Rows per batch",
            "Mean number of queries in a micro-batch.",
            "short",
            (
                f"sum(rate(qshift_batch_rows_sum[{WINDOW}])) / sum(rate(qshift_batch_rows_count[{WINDOW}]))",
                "mean",
            ),
        ),
        panel(
            "Age of the newest checkpoint",
            "Time since the state was last made durable: what a restart would have to replay.",
            "s",
            ("qshift_checkpoint_age_seconds", "{{instance}}"),
        ),
        panel(
            "Not acknowledged",
            "Bytes sent to Kafka and not yet acknowledged; sending waits above kafka.max_inflight_bytes.",
            "bytes",
            ("qshift_inflight_bytes", "{{instance}}"),
        ),
        panel(
            "Disturbances",
            "Rebalances, returns to the last checkpoint, and restarts in an hour.",
            "short",
            ("increase(qshift_rebalances_total[1h])", "rebalances"),
            ("increase(qshift_recoveries_total[1h])", "recoveries"),
            ('changes(process_start_time_seconds{job="qshift"}[1h])', "restarts"),
        ),
        panel(
            "Gallery",
            "Items in the gallery being searched.",
            "short",
            ("qshift_index_items", "items"),
            kind="stat",
        ),
        panel(
            "Version",
            "Version and adaptation method that run.",
            "none",
            ("qshift_build_info", "{{version}} {{method}}"),
            kind="stat",
        ),
    ]


def dashboard() -> dict[str, Any]:
    """The whole document; rows of three panels under a heading each."""
    placed: list[Panel] = []
    bottom = 0
    sections = (
        ("Quality against the frozen twin", quality(), 8),
        ("Lanes", [lanes()], 24),
        ("Drift of the queries", drift(), 6),
        ("Adaptation", adaptation(), 8),
        ("Service", service(), 8),
    )
    for title, panels, width in sections:
        placed.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": _at(0, bottom, 24, 1),
            }
        )
        bottom += 1
        per_line = 24 // width
        for i, found in enumerate(panels):
            placed.append(
                {**found, "gridPos": _at(i % per_line * width, bottom + i // per_line * 8, width, 8)}
            )
        bottom += -(-len(panels) // per_line) * 8
    for number, found in enumerate(placed, 1):
        found["id"] = number
    return {
        "uid": "qshift",
        "title": "qshift",
        "description": "Online adaptation of a retrieval service, judged against its frozen twin.",
        "tags": ["qshift"],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": []},
        "panels": placed,
    }


def render() -> str:
    """The text of the committed file."""
    return json.dumps(dashboard(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _difference(answer: str, bound: str, interval: str) -> str:
    labels = f'answer="{answer}",bound="{bound}",interval="{interval}"'
    return f"qshift_quality_difference_ratio{{{labels}}}"


def _override(name: str, **properties: Any) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
