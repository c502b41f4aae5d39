"""A worker as a member of its consumer group: what is taken from it, and what the group lets it commit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError
from kafka.structs import MemberState, OffsetAndMetadata

from core.errors import BrokerError, DeliveryError, NameTaken, PartitionsLost, QshiftError
from core.records import Partition
from stream.cluster import LOOKUP_SECONDS
from stream.names import process_id
from stream.rights import READ, said

log = logging.getLogger("qshift.kafka")

CONFIRM_SECONDS = 5.0
"""How long the group may take to say whether we own a partition."""

# The partition is ours no longer, or the group is in the middle of a change: the next poll shows it.
STALE = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
)


def member_settings(
    group: str, worker: str | None, session_seconds: float, max_poll_interval_seconds: float
) -> dict[str, Any]:
    """What a consumer has to be told to be a member."""
    return {
        "group_id": group,
        "client_id": process_id(),
        "group_instance_id": worker,
        "partition_assignment_strategy": [CooperativeStickyAssignor],
        "session_timeout_ms": int(session_seconds * 1000),
        "heartbeat_interval_ms": int(session_seconds * 1000 / 15),  # how soon a rebalance is noticed
        "max_poll_interval_ms": int(max_poll_interval_seconds * 1000),
    }


class Revocations(ConsumerRebalanceListener):  # type: ignore[misc]
    """Partitions taken away since last asked. Runs on the client's thread, inside `poll` only."""

    def __init__(self) -> None:
        self.taken: set[TopicPartition] = set()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Seen through the consumer's own assignment."""

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.taken.update(revoked)

    def on_partitions_lost(self, lost: Any) -> None:
        self.taken.update(lost)


class Membership:
    """What the group is asked, through the consumer that is its member.

    Args:
        consumer: made with `member_settings`.
        group, worker: names, for messages.
    """

    def __init__(self, consumer: Any, group: str, worker: str | None) -> None:
        self._consumer, self._group, self._worker = consumer, group, worker

    @property
    def rebalancing(self) -> bool:
        """Whether a join is under way, whose result is taken only inside `poll`."""
        return bool(self._consumer.group_metadata().state == MemberState.REBALANCING)

    def generation(self) -> int:
        """The group's generation as this member knows it; -1 before it joined."""
        return int(self._consumer.group_metadata().generation_id)

    def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
        """Commits to the group. A commit that cannot be made now is logged and left to the next one.

        The state that covers the offsets is durable already, and on a restart it wins over the group's
        offset: nothing depends on this commit but what tools show as lag.

        Raises:
            PartitionsLost, NameTaken: as `confirm`.
        """
        try:
            self._commit(offsets, metadata, LOOKUP_SECONDS)
        except DeliveryError as error:
            log.warning("offsets not committed, the next commit covers them", extra={"error": str(error)})

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        """Commits once more what is committed: the group refuses that to whom it does not count as owner.

        None stands for a partition of which nothing was read yet.

        Raises:
            PartitionsLost: this worker is no member, of another generation, or in the middle of a change.
            NameTaken: another worker of the same name has taken its place.
            DeliveryError: Kafka does not answer.
        """
        known: dict[Partition, int] = {}
        for partition, offset in offsets.items():
            found = self._position(partition) if offset is None else offset
            if found is not None:
                known[partition] = found
        self._commit(known, metadata, CONFIRM_SECONDS)

    def _position(self, partition: Partition) -> int | None:
        try:
            found = self._consumer.position(TopicPartition(*partition), int(CONFIRM_SECONDS * 1000))
        except kafka_errors.IllegalStateError as error:
            raise PartitionsLost(f"{partition[0]}/{partition[1]} was taken away: {error}") from error
        except KafkaError as error:
            raise self.refused(error) from error
        return None if found is None else int(found)

    def _commit(self, offsets: Mapping[Partition, int], metadata: str, seconds: float) -> None:
        if not offsets:
            return
        wanted = {TopicPartition(*p): OffsetAndMetadata(o, metadata, -1) for p, o in offsets.items()}
        try:
            self._consumer.commit(wanted, timeout_ms=int(seconds * 1000))
        except KafkaError as error:
            raise self.refused(error) from error

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """Offset and metadata of the group's last commit. Raises DeliveryError when Kafka does not answer."""
        part, limit_ms = TopicPartition(*partition), int(LOOKUP_SECONDS * 1000)
        try:
            found = self._consumer.committed(part, metadata=True, timeout_ms=limit_ms)
        except KafkaError as error:
            raise self.refused(error) from error
        return None if found is None or found.offset < 0 else (int(found.offset), found.metadata or "")

    def leave(self) -> None:
        """The next close tells the group that we are gone, so that others have our partitions at once.

        The client does so for members without a name only.
        """
        self._consumer._coordinator.is_dynamic_member = lambda: True

    def refused(self, error: KafkaError) -> QshiftError:
        """What an error of the group means to us."""
        if isinstance(error, kafka_errors.FencedInstanceIdError):
            return NameTaken(
                f"another worker is called {self._worker} in group {self._group}: give each its own --worker"
            )
        if isinstance(error, STALE):
            return PartitionsLost(f"the group does not count this worker as the owner: {error!r}")
        if error.retriable:
            return DeliveryError(f"the group {self._group} does not answer: {error!r}; is Kafka up?")
        return BrokerError(f"the group {self._group} cannot be used: {said(error, READ)}")
