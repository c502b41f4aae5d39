"""Every Prometheus series, declared once: metrics, dashboards, alert rules and documentation read this table.

Prefix `qshift_`; counters end in `_total`; `_ratio` is 0-1 (differences -1 to 1), `_seconds`, `_bytes`.
No query ids, no references, no free text in labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric: its name, what it counts, its labels, and the buckets of a histogram."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


SERIES: tuple[Series, ...] = (
    # Records
    Series("qshift_queries_total", "counter", "Queries answered for the first time.", ("lane",)),
    Series(
        "qshift_abstained_answers_total",
        "counter",
        "Answers that named nothing: their confidence is below the threshold of the query.",
        ("lane",),
    ),
    Series("qshift_answers_total", "counter", "Answers sent, repeated ones included."),
    Series(
        "qshift_repeated_answers_total", "counter", "Answers given again after a restart, byte-identical."
    ),
    Series("qshift_dead_letters_total", "counter", "Records that were not processed, by stage.", ("stage",)),
    Series("qshift_batches_total", "counter", "Micro-batches answered.", ("lane",)),
    Series("qshift_batch_rows", "histogram", "Queries per micro-batch.", (), ROWS),
    Series("qshift_stage_seconds", "histogram", "Time of a micro-batch per stage.", ("stage",), SECONDS),
    Series("qshift_series_dropped_total", "counter", "Batches counted under lane=other: too many lanes."),
    # Adaptation
    Series("qshift_updates_total", "counter", "Updates that changed a lane's state.", ("lane",)),
    Series(
        "qshift_quiet_batches_total", "counter", "Batches without a sign of a shift: not adapted.", ("lane",)
    ),
    Series(
        "qshift_refused_updates_total", "counter", "Batches nothing was learned from.", ("lane", "reason")
    ),
    Series("qshift_resets_total", "counter", "Times a lane was rolled back.", ("lane",)),
    Series("qshift_loss", "gauge", "Newest value of each part of the objective.", ("lane", "part")),
    Series("qshift_conflict_angle_degrees", "gauge", "Angle of the gradient to the reference's.", ("lane",)),
    Series("qshift_realised_angle_degrees", "gauge", "The same angle after decoupling.", ("lane",)),
    Series("qshift_removed_energy_ratio", "gauge", "Share of the gradient decoupling removed.", ("lane",)),
    Series("qshift_kept_share_ratio", "gauge", "Share of a batch the objective used.", ("lane",)),
    Series("qshift_source_distance", "gauge", "Distance of the parameters from the source model.", ("lane",)),
    Series("qshift_uniformity", "gauge", "Uniformity of the adapted features in a batch.", ("lane",)),
    Series("qshift_gap", "gauge", "Modality gap of the adapted features in a batch.", ("lane",)),
    Series("qshift_diagnostic", "gauge", "Figures that only one method has, by name.", ("lane", "figure")),
    Series("qshift_entropy", "gauge", "Mean refined entropy of a batch, by encoder.", ("lane", "encoder")),
    # Geometry and semantics, where the base model is PSCA's
    Series(
        "qshift_semantic_agreement_ratio",
        "gauge",
        "Share of a batch whose nearest prototype is the class that scores highest, by encoder.",
        ("lane", "encoder"),
    ),
    Series(
        "qshift_semantic_reliability",
        "gauge",
        "Mean reliability of a batch's pseudo-labels, by encoder.",
        ("lane", "encoder"),
    ),
    Series(
        "qshift_semantic_gap",
        "gauge",
        "Distance of a batch's projected mean from the source's, by encoder.",
        ("lane", "encoder"),
    ),
    # Codes
    Series("qshift_bit_balance_ratio", "gauge", "Mean of |2p-1| over bits, 0 is balanced.", ("lane",)),
    Series("qshift_bit_entropy_ratio", "gauge", "Entropy of the bits as a share of their number.", ("lane",)),
    Series(
        "qshift_bit_effective_ratio",
        "gauge",
        "Independent bits the covariance amounts to, as a share.",
        ("lane",),
    ),
    Series("qshift_bit_dead_ratio", "gauge", "Share of bits that never change in the window.", ("lane",)),
    Series(
        "qshift_flip_share_ratio", "gauge", "Share of bits that differ from the frozen twin's.", ("lane",)
    ),
    # Drift
    Series("qshift_drift_value", "gauge", "Drift statistic of the newest window.", ("lane", "statistic")),
    Series("qshift_drift_threshold", "gauge", "Its alarm threshold.", ("lane", "statistic")),
    Series(
        "qshift_drift_alarm", "gauge", "1 while the statistic is above its threshold.", ("lane", "statistic")
    ),
    # Quality
    Series("qshift_quality_map_ratio", "gauge", "Faded mAP from sampled labels, 95 %.", ("answer", "bound")),
    Series(
        "qshift_quality_difference_ratio",
        "gauge",
        "mAP of an answer minus the frozen twin's; anytime intervals may be read after every label.",
        ("answer", "bound", "interval"),
    ),
    Series(
        "qshift_expected_map",
        "gauge",
        "mAP to expect by cosines alone, without labels, 0 to 1; faded; where the base model brings a curve.",
        ("lane", "twin"),
    ),
    Series("qshift_quality_effective_labels", "gauge", "Labels that the faded estimates are worth."),
    Series(
        "qshift_quality_verdict",
        "gauge",
        "What labels prove of served against frozen, at every look: 1 it helps, -1 it harms.",
    ),
    Series("qshift_harm_evidence_ratio", "gauge", "Evidence of harm, as a share of what proves it."),
    Series("qshift_harm_alarms_total", "counter", "How often harm was proved."),
    Series("qshift_quality_block", "gauge", "Number of the block that the anytime interval covers."),
    Series("qshift_quality_steady", "gauge", "0 when no constant difference fits the block: it has changed."),
    Series("qshift_labels_requested_total", "counter", "Queries sampled for labelling."),
    Series("qshift_labels_arrived_total", "counter", "Labels joined to an answer."),
    Series("qshift_labels_corrected_total", "counter", "Labels that replaced an earlier one."),
    Series("qshift_labels_expired_total", "counter", "Sampled queries whose label never came in time."),
    Series("qshift_labels_ignored_total", "counter", "Labels that were not used, by reason.", ("reason",)),
    Series("qshift_labels_pending", "gauge", "Sampled queries that wait for their label."),
    Series("qshift_labels_early", "gauge", "Labels that wait for their answer."),
    # Service
    Series("qshift_lag_records", "gauge", "Records of a partition not yet read.", ("partition",)),
    Series("qshift_checkpoint_age_seconds", "gauge", "Time since the newest complete checkpoint."),
    Series("qshift_checkpoint_bytes", "gauge", "Size of the newest complete checkpoint."),
    Series("qshift_checkpoints_total", "counter", "Checkpoints that were made durable."),
    Series("qshift_restore_seconds", "gauge", "Time the last restore of a state took."),
    Series("qshift_recoveries_total", "counter", "Returns to the newest checkpoint after a failed delivery."),
    Series("qshift_rebalances_total", "counter", "Changes of the assigned partitions."),
    Series("qshift_inflight_bytes", "gauge", "Bytes sent and not acknowledged."),
    Series(
        "qshift_commands_total",
        "counter",
        "Commands that lanes have obeyed, or refused; repeated ones do not count.",
        ("action", "result"),
    ),
    Series("qshift_waiting_queries", "gauge", "Accepted queries that wait for a batch."),
    Series("qshift_index_items", "gauge", "Items in the gallery being searched."),
    Series("qshift_index_info", "gauge", "1 for the gallery version being searched.", ("version",)),
    Series(
        "qshift_gallery_outages_total",
        "counter",
        "Times that the server which searches the gallery stopped answering: items were searched here.",
    ),
    Series("qshift_gallery_away", "gauge", "1 while that server does not answer, 0 else and without one."),
    Series("qshift_observer_errors_total", "counter", "Errors of what watches the run.", ("observer",)),
    Series(
        "qshift_unobserved_total",
        "counter",
        "What observers did not see because too much waited for them, by kind: outcome, refusal, label.",
        ("kind",),
    ),
    Series("qshift_observers_held_bytes", "gauge", "What waits for observers or is being shown to them."),
    Series(
        "qshift_http_refused_total",
        "counter",
        "Clients of the HTTP side that were refused, dropped or closed, by reason.",
        ("reason",),
    ),
    Series("qshift_build_info", "gauge", "1; the version and the method that run.", ("version", "method")),
)
