"""The topics of a service, how each is kept, and whether those that exist can do their work."""

from __future__ import annotations

import logging

from core.config import Config, KafkaConfig
from core.errors import ConfigError
from stream.changelog import ChangelogStore
from stream.chunks import CHUNK_BYTES
from stream.cluster import ensure_topics, granted, message_limits
from stream.letters import HEADROOM_BYTES, LEAST_BYTES
from stream.rights import check_rights

log = logging.getLogger("qshift.kafka")

AROUND_BYTES = 4096
"""What a chunk of state has around it, generously."""
BOUNDARY_BYTES = 128 << 10
"""A journal entry of the largest batch, 4096 offsets of up to 19 digits, and what is around it."""
COMMON_BYTES = 1 << 20
"""About Kafka's own limit for a message; below it, long dead letters are cut and long answers refused."""


def topic_settings(
    topics: KafkaConfig, partitions: int | None = None
) -> dict[str, tuple[int, dict[str, str]]]:
    """Name -> (partitions, broker settings), as `ensure_topics` takes them.

    State is compacted: the last record of a key is all that is needed. The journal must outlive the queries
    it describes. Answers, labels and dead letters follow the broker's own retention. Queries may be larger
    than the service takes, so that what is too large becomes a dead letter with its coordinates.

    Args:
        partitions: of the queries, where they exist already; `kafka.partitions` by default.
    """
    kept, count = ChangelogStore.topic_configs(topics), partitions or topics.partitions
    made = {
        topics.queries: (count, {"max.message.bytes": str(8 << 20), "compression.type": "uncompressed"}),
        topics.answers: (count, {}),
        topics.labels: (count, {}),
        topics.dead_letters: (1, {"max.message.bytes": str(2 << 20)}),
        topics.state: (count, kept[topics.state]),
        topics.journal: (count, kept[topics.journal]),
        # One order of all commands; what holds for lanes to come is read however old it is.
        topics.control: (1, {"cleanup.policy": "delete", "retention.ms": "-1"}),
        topics.audit: (1, {"cleanup.policy": "delete", "retention.ms": "-1"}),
    }
    for role, settings in topics.topic_settings.items():
        name = str(getattr(topics, role))
        if name in made:
            made[name] = (made[name][0], {**made[name][1], **settings})
    return made


def prepared_topics(bootstrap_servers: str, config: Config) -> int | None:
    """Makes the topics that are missing, and looks whether the others fit.

    Returns:
        How many partitions of the queries can keep state in Kafka; None where state lies in a directory.

    Raises:
        ConfigError: queries have partitions whose state has no place, or a topic takes too small messages.
        BrokerError: Kafka cannot be reached or refuses, or does not allow what a service does.
    """
    kafka = config.kafka
    mine = topic_settings(kafka)
    _allowed(bootstrap_servers, config)
    # Queries that were there before decide for those that are made with them.
    copies = kafka.replication_factor
    count = ensure_topics(
        bootstrap_servers, {kafka.queries: mine[kafka.queries]}, security=kafka.security, replication=copies
    )[kafka.queries]
    mine = topic_settings(kafka, count)
    found = ensure_topics(bootstrap_servers, mine, security=kafka.security, replication=copies)
    _allowed(bootstrap_servers, config)
    limits = message_limits(bootstrap_servers, mine, security=kafka.security)
    needed = {kafka.dead_letters: LEAST_BYTES}
    kept = None
    if config.state.store == "changelog":
        kept = min(found[kafka.state], found[kafka.journal])
        if kept < count:
            raise ConfigError(too_few(kafka, count, kept))
        needed |= {kafka.state: CHUNK_BYTES + AROUND_BYTES, kafka.journal: BOUNDARY_BYTES}
    for name, least in needed.items():
        if limits.get(name, least) < least:
            raise ConfigError(
                f"the topic {name} takes messages of {limits[name]} bytes, {least} are needed: raise its "
                "max.message.bytes"
            )
    most = config.limits.message_bytes + HEADROOM_BYTES
    for name in (kafka.answers, kafka.dead_letters):
        if limits.get(name, most) < min(most, COMMON_BYTES):
            log.warning(
                "topic takes small messages only: longer dead letters are cut, longer answers are refused",
                extra={"topic": name, "bytes": limits[name]},
            )
    return kept


def _allowed(bootstrap_servers: str, config: Config) -> None:
    """Raises BrokerError where Kafka says that a right is missing.

    Asked before topics are made, because one that we have no right on cannot be told from one that is not
    there; and after it, because then all of them can be asked for.
    """
    if config.kafka.security.protocol != "PLAINTEXT":
        topics = topic_settings(config.kafka)
        allowed = granted(bootstrap_servers, topics, config.kafka.group, config.kafka.security)
        check_rights(*allowed, config.kafka, config.state.store == "changelog")


def too_few(kafka: KafkaConfig, queries: int, kept: int) -> str:
    """What is wrong where queries have more partitions than state and journal, and what to do."""
    return (
        f"the topic {kafka.queries} has {queries} partitions, but {kafka.state} and {kafka.journal} have "
        f"{kept} in common: give both {queries} (kafka-topics --alter --partitions {queries}) and start again"
    )
