"""The topics of a service and how each is kept."""

from __future__ import annotations

from core.config import KafkaConfig


def topic_settings(topics: KafkaConfig) -> dict[str, tuple[int, dict[str, str]]]:
    """Name -> (partitions, broker settings), as `ensure_topics` takes them.

    State is compacted: the last cut of a key is all that is needed. The journal must outlive the queries
    it describes. Answers, labels and dead letters follow the broker's own retention.
    """
    big = {"max.message.bytes": str(2 << 20)}
    return {
        topics.queries: (topics.partitions, {**big, "compression.type": "uncompressed"}),
        topics.answers: (topics.partitions, {}),
        topics.labels: (topics.partitions, {}),
        topics.dead_letters: (1, big),
        topics.state: (topics.partitions, {"cleanup.policy": "compact", **big}),
        topics.journal: (topics.partitions, {"cleanup.policy": "delete", "retention.ms": "-1"}),
    }
