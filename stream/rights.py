"""What a service must be allowed on each topic, whether it is, and what a refusal of Kafka means.

The same list is docs/reference/operations.md, Rights; a test runs a service that is allowed this and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kafka import errors as kafka_errors
from kafka.errors import KafkaError
from kafka.protocol.metadata import MetadataRequest

from core.config import KafkaConfig
from core.errors import BrokerError

READ, WRITE, DESCRIBE = "Read", "Write", "Describe"
DENIED = 29
"""Kafka's error code of a topic that we may not even see (TOPIC_AUTHORIZATION_FAILED)."""
ASK_SECONDS = 5.0
Right = tuple[str, str, str]
"""What has to be allowed, on a topic or the group, and its name."""


def topic_rights(kafka: KafkaConfig, changelog: bool) -> dict[str, tuple[str, ...]]:
    """Topic -> what a service does with it. Either right includes Describe.

    Args:
        changelog: whether state is kept in Kafka.
    """
    rights: dict[str, tuple[str, ...]] = {
        kafka.queries: (READ,), kafka.labels: (READ,), kafka.answers: (WRITE,), kafka.dead_letters: (WRITE,),
        kafka.control: (READ,), kafka.audit: (WRITE,),
    }  # fmt: skip
    kept = (READ, WRITE) if changelog else (DESCRIBE,)  # they are looked for in any case
    return {**rights, kafka.state: kept, kafka.journal: kept}


def check_rights(
    topics: Iterable[Mapping[str, Any]], group: Mapping[str, Any] | None, kafka: KafkaConfig, changelog: bool
) -> None:
    """Looks at what Kafka says we may do. What it does not say, as brokers before 2.3, counts as allowed.

    Args:
        topics: as an admin client describes them.
        group: likewise; None where we may not even ask for it.

    Raises:
        BrokerError: a right is missing.
    """
    found = {topic["name"]: topic for topic in topics}
    lacking: list[Right] = []
    for name, needed in topic_rights(kafka, changelog).items():
        if name in found:
            lacking += [(right, "topic", name) for right in needed if not _allowed(found[name], right)]
    if group is None or (not group.get("error") and not _allowed(group, READ)):
        lacking.append((READ, "group", kafka.group))
    if lacking:
        raise BrokerError(denied(lacking, kafka.security.username))


def denied(lacking: Iterable[Right], user: str | None) -> str:
    """One sentence about what is not allowed, and the command that allows the first of it."""
    lacking = list(lacking)
    who = f"the user {user}" if user else "this client"
    what = ", ".join(f"{right} on the {kind} {name}" for right, kind, name in lacking)
    right, kind, name = lacking[0]
    return (
        f"Kafka does not allow {who}: {what}; let its administrator grant that, as by kafka-acls --add "
        f"--allow-principal User:{user or 'NAME'} --operation {right} --{kind} {name}"
    )


def unseen(topics: Iterable[str], user: str | None) -> str:
    """One sentence about topics that are not there, or that we may not see, and may not make."""
    return (
        f"Kafka shows {f'the user {user}' if user else 'this client'} no topic {', '.join(topics)}, and does "
        "not allow to make it: let its administrator make it and grant what docs/reference/operations.md "
        "lists under Rights, or grant Create on the topic, too"
    )


def said(error: BaseException | None, right: str, user: str | None = None) -> str:
    """An error of a client in words, where Kafka did not allow something; else as the client spells it.

    Args:
        right: what was tried.
    """
    if isinstance(error, kafka_errors.TopicAuthorizationFailedError):
        named = error.args[0] if error.args else "?"
        topics = sorted(named) if isinstance(named, set | frozenset | list | tuple) else [str(named)]
        return denied([(right, "topic", topic) for topic in topics], user)
    if isinstance(error, kafka_errors.GroupAuthorizationFailedError):
        return f"Kafka does not allow {user or 'this client'}: {READ} on the group; grant it with kafka-acls"
    return repr(error)


def refused(error: BaseException | None) -> bool:
    """Whether an error is about what we may do, and not about whether Kafka is there."""
    return isinstance(error, kafka_errors.AuthorizationError)


def hidden(consumer: Any, topic: str) -> bool:
    """Whether a topic that a consumer has not found is one that it may not see; asks Kafka for it by name.

    Beside the consumer's own list of topics: of one on that list which does not exist the client asks again
    ten times a second, and whatever else waits for such an answer fails with it.
    """

    async def described() -> Any:
        asked = consumer._manager.send(MetadataRequest(
            topics=[MetadataRequest.MetadataRequestTopic(name=topic)], allow_auto_topic_creation=False,
            include_cluster_authorized_operations=False, include_topic_authorized_operations=False,
        ))  # fmt: skip
        return await consumer._manager.wait_for(asked, int(ASK_SECONDS * 1000))

    try:
        return any(found.error_code == DENIED for found in consumer._net.run(described).topics)
    except KafkaError:  # nobody answers: what the caller asks next says so
        return False


def _allowed(described: Mapping[str, Any], right: str) -> bool:
    if described.get("error_code") == DENIED:
        return False
    operations = described.get("authorized_operations")
    return operations is None or right.upper() in operations


def group_described(admin: Any, group: str) -> Mapping[str, Any] | None:
    """What an admin client is told of a group, {} where it cannot be asked; None where we may not."""
    try:
        return dict(admin.describe_groups([group]).get(group, {}))
    except kafka_errors.GroupAuthorizationFailedError:
        return None
    except KafkaError:
        return {}
