"""What every Kafka client of ours shares: time-outs, topics, and what is asked of the cluster itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka.errors import KafkaError

from core.errors import BrokerError, ConfigError
from core.records import Partition
from core.security import OPEN, SecurityConfig
from stream.handshake import introduce, refusal
from stream.options import client_options
from stream.rights import group_described, unseen

log = logging.getLogger("qshift.kafka")

CONNECT_SECONDS = 30.0
LOOKUP_SECONDS = 10.0
CLOSE_SECONDS = 5.0
SETTLE_SECONDS = 5.0
HEARD_MS = 2000  # so long ago may brokers have spoken that count as there
RECONNECT_MS = 1000  # the client's 30 s makes every recovery wait
TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


def ensure_topics(
    bootstrap_servers: str,
    topics: Mapping[str, tuple[int, Mapping[str, str]]],
    budget_seconds: float = CONNECT_SECONDS,
    security: SecurityConfig = OPEN,
    replication: int | None = None,
) -> dict[str, int]:
    """Creates the topics that are missing; leaves existing ones as they are.

    Args:
        topics: name -> (partitions, topic configuration such as {"cleanup.policy": "compact"}).
        replication: copies of each partition of a new topic; None: as many as the broker makes by itself.

    Returns:
        Partitions that each topic has now, which for an existing topic may not be those asked for.

    Raises:
        BrokerError: Kafka cannot be reached or refuses.
    """
    if security.protocol != OPEN.protocol:  # an open one may still be starting
        introduce(bootstrap_servers, security)
    with _admin(bootstrap_servers, security, budget_seconds) as admin:
        try:
            missing = sorted(set(topics) - set(admin.list_topics()))
            if hidden := [name for name in missing if not _made(admin, name, *topics[name], replication)]:
                raise BrokerError(unseen(hidden, security.username))
            if missing:
                admin.wait_for_topics(missing, timeout_ms=int(budget_seconds * 1000))
            found = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(topics))}
        except KafkaError as error:
            raise BrokerError(f"the topics {sorted(topics)} could not be made: {error}") from error
    for name, (partitions, _) in topics.items():
        if found[name] != partitions:
            log.warning("topic has another number of partitions", extra={"topic": name, "has": found[name]})
    return found


def _made(
    admin: Any, name: str, partitions: int, settings: Mapping[str, str], replication: int | None
) -> bool:
    """Makes a topic; False where we may not."""
    try:
        wanted: dict[str, Any] = {"num_partitions": partitions, "configs": dict(settings)}
        if replication is not None:
            wanted["replication_factor"] = replication
        admin.create_topics({name: wanted})
    except kafka_errors.TopicAlreadyExistsError:
        log.debug("topic was created by another process", extra={"topic": name})
    except kafka_errors.AuthorizationError:
        return False
    return True


def granted(
    bootstrap_servers: str, topics: Iterable[str], group: str, security: SecurityConfig
) -> tuple[list[dict[str, Any]], Mapping[str, Any] | None]:
    """Topics and group as Kafka describes them, with what we may do there; see `stream.rights.check_rights`.

    Raises:
        BrokerError: Kafka cannot be reached or refuses.
    """
    introduce(bootstrap_servers, security)
    with _admin(bootstrap_servers, security, LOOKUP_SECONDS) as admin:
        try:
            return admin.describe_topics(list(topics)), group_described(admin, group)
        except KafkaError as error:
            raise BrokerError(f"Kafka does not say what is allowed: {error}") from error


def group_members(bootstrap_servers: str, group: str, security: SecurityConfig) -> list[Mapping[str, Any]]:
    """Members of a consumer group as Kafka describes them; none where we may not ask.

    Raises:
        BrokerError: Kafka cannot be reached.
    """
    with _admin(bootstrap_servers, security, LOOKUP_SECONDS) as admin:
        return list((group_described(admin, group) or {}).get("members", ()))


def delete_before(
    bootstrap_servers: str, partition: Partition, offset: int, security: SecurityConfig
) -> None:
    """Erases the records below an offset; -1: all. Raises BrokerError."""
    at = TopicPartition(*partition)
    with _admin(bootstrap_servers, security, LOOKUP_SECONDS) as admin:
        try:
            admin.delete_records({at: offset})
        except KafkaError as error:
            raise BrokerError(
                f"records of {partition[0]}/{partition[1]} cannot be erased: {error}"
            ) from error


def absent(producer: Any, topics: Iterable[str]) -> list[str]:
    """Topics that the brokers do not have, as they have just told a producer that sent to them."""
    metadata = producer._metadata  # its public question waits for an answer
    if time.monotonic() * 1000 - metadata._last_successful_refresh_ms > HEARD_MS:
        return []  # it is Kafka that is away
    return sorted(topic for topic in topics if metadata.partitions_for_topic(topic) is None)


def message_limits(
    bootstrap_servers: str,
    topics: Iterable[str],
    budget_seconds: float = LOOKUP_SECONDS,
    security: SecurityConfig = OPEN,
) -> dict[str, int]:
    """`max.message.bytes` of the topics that exist; {} where we may not ask, or nobody answers."""
    resources = [ConfigResource("topic", name, ["max.message.bytes"]) for name in topics]
    try:
        with _admin(bootstrap_servers, security, budget_seconds) as admin:
            found = admin.describe_configs(resources, config_filter="all").get("topic", {})
            asked = {name: values.get("max.message.bytes", {}).get("value") for name, values in found.items()}
            return {name: int(limit) for name, limit in asked.items() if limit is not None}
    except (KafkaError, BrokerError, ConfigError, ValueError) as error:
        log.info("the topics cannot be asked for their largest message", extra={"error": repr(error)})
        return {}


@contextmanager
def _admin(bootstrap_servers: str, security: SecurityConfig, budget_seconds: float) -> Iterator[Any]:
    """A client for the cluster itself. Raises BrokerError when none answers."""
    timeout_ms = int(budget_seconds * 1000)
    try:
        admin = KafkaAdminClient(
            **client_options(bootstrap_servers, security), bootstrap_timeout_ms=timeout_ms,
            request_timeout_ms=timeout_ms, reconnect_backoff_max_ms=RECONNECT_MS,
        )  # fmt: skip
    except KafkaError as error:
        raise unreachable(bootstrap_servers, security, budget_seconds, error) from error
    try:
        yield admin
    finally:
        admin.close()


def unreachable(servers: str, security: SecurityConfig, seconds: float, error: Exception) -> BrokerError:
    """The error of an address where no Kafka answers, or one that speaks otherwise; to be raised."""
    return BrokerError(
        refusal(servers, security)
        or f"no Kafka answered at {servers} within {seconds:.0f} s ({error}): start it, for example with "
        "`qshift broker up`, or correct kafka.bootstrap_servers"
    )
