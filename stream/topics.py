"""The topics of a service and how each is kept."""

from __future__ import annotations

from core.config import KafkaConfig
from stream.changelog import ChangelogStore


def topic_settings(topics: KafkaConfig) -> dict[str, tuple[int, dict[str, str]]]:
    """Name -> (partitions, broker settings), as `ensure_topics` takes them.

    State is compacted: the last cut of a key is all that is needed. The journal must outlive the queries
    it describes. Answers, labels and dead letters follow the broker's own retention. Queries may be larger
    than the service takes, so that what is too large becomes a dead letter with its coordinates.
    """
    kept = ChangelogStore.topic_configs(topics)
    return {
        topics.queries: (
            topics.partitions, {"max.message.bytes": str(8 << 20), "compression.type": "uncompressed"},
        ),
        topics.answers: (topics.partitions, {}),
        topics.labels: (topics.partitions, {}),
        topics.dead_letters: (1, {"max.message.bytes": str(2 << 20)}),
        topics.state: (topics.partitions, kept[topics.state]),
        topics.journal: (topics.partitions, kept[topics.journal]),
    }  # fmt: skip
