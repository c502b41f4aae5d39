"""Writes the Grafana dashboard: `python deploy/dashboard.py`. The same source always gives the same bytes.

A test compares the committed JSON with `render()` and every metric name with `monitoring.series`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panels import Panel, band, dashed, panel, placed, zero_line

TARGET = Path(__file__).parent / "grafana" / "dashboards" / "qshift.json"
WINDOW = "5m"
"""Of every rate."""


def quality() -> list[Panel]:
    return [
        *(_map_of(answer) for answer in ("frozen", "adapted", "served")),
        *(_gain_of(answer) for answer in ("adapted", "served")),
        *_labels(),
    ]


def _map_of(answer: str) -> Panel:
    bounds = (
        (f'qshift_quality_map_ratio{{answer="{answer}",bound="{bound}"}}', bound)
        for bound in ("low", "value", "high")
    )
    found = panel(
        f"mAP of the {answer} answer",
        "Faded mAP from sampled labels, with its 95 % interval for one look at it.",
        "percentunit",
        *bounds,
    )
    return band(found, "low", "high")


def _gain_of(answer: str) -> Panel:
    found = panel(
        f"{answer} - frozen",
        f"mAP of the {answer} answer minus that of the frozen twin on the same queries. "
        "The band is the anytime interval of the present block: it may be read at any time. "
        "Wholly below 0 is harm.",
        "percentunit",
        (_difference(answer, "low", "anytime"), "low"),
        (_difference(answer, "value", "faded"), "value"),
        (_difference(answer, "high", "anytime"), "high"),
    )
    return zero_line(band(found, "low", "high"))


def _labels() -> list[Panel]:
    """What the estimates of quality rest on."""
    return [
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
            "Proved",
            "What labels prove of served against frozen: 1 it helps, -1 it harms, 0 neither. "
            "May be looked at any time.",
            "short",
            ("qshift_quality_verdict", "verdict"),
            ("qshift_harm_evidence_ratio", "evidence of harm"),
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
    return [*_gradients(), *_updates()]


def _gradients() -> list[Panel]:
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
    ]


def _updates() -> list[Panel]:
    """How often the encoder is changed, and how far it has come."""
    return [
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
    return [*_records(), *_batches(), *_durability(), *_versions()]


def _records() -> list[Panel]:
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
    ]


def _batches() -> list[Panel]:
    return [
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
    ]


def _durability() -> list[Panel]:
    return [
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
    ]


def _versions() -> list[Panel]:
    return [
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
    """The whole document."""
    panels = placed(
        ("Quality against the frozen twin", quality(), 8),
        ("Lanes", [lanes()], 24),
        ("Drift of the queries", drift(), 6),
        ("Adaptation", adaptation(), 8),
        ("Service", service(), 8),
    )
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
        "panels": panels,
    }


def render() -> str:
    """The text of the committed file."""
    return json.dumps(dashboard(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _difference(answer: str, bound: str, interval: str) -> str:
    labels = f'answer="{answer}",bound="{bound}",interval="{interval}"'
    return f"qshift_quality_difference_ratio{{{labels}}}"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
