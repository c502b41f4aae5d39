"""Answers, dead letters, audit, journal, checkpoints and the group's offsets in one Kafka transaction (G3).

Readers of committed records see each answer once: it is there with the state that it left, or not at all. A
transaction holds what a worker has written for all its partitions since the last one. The client's own
transactions cannot be relied upon by themselves, which was measured (docs/lab/log.md, 2026-11-30):

- It commits although records have failed: every future is looked at before (`KafkaSink.flush`).
- A call that fails may have been done, and the producer can say no more: it is thrown away. Its successor of
  the same transactional id waits for the fate of what was open (`init_transactions`), and only then what is
  committed is read, as after partitions were lost.
- Its calls wait for ever while Kafka is away: here they have a limit.
- Offsets of a worker that is no member are taken: the group is told the generation of the last poll.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import OffsetAndMetadata

from core.config import KafkaConfig
from core.errors import DeliveryError, PartitionsLost
from core.records import Partition
from stream.membership import STALE
from stream.patience import Patience
from stream.rights import WRITE, refused, said
from stream.sink import KafkaSink, Sent, end_aside
from stream.topic_log import Keyed, TopicLog

log = logging.getLogger("qshift.kafka")

COMMIT_SECONDS = 60.0
TIMEOUT_SECONDS = 60.0
"""Kafka aborts a transaction that lasts longer: readers wait so long for that of a worker that died."""
STOP_SECONDS = 5.0
"""What a producer that could not begin may take to end."""
LOOK_MS = 200
"""How often a call that waits looks whether it is to hurry."""
MESSAGE_BYTES = 1 << 20
"""A part of a checkpoint is so large at most, whatever a message of the service may be."""
OPTIONS = {
    "transaction_timeout_ms": int(1000 * TIMEOUT_SECONDS),
    # The first record after a commit is refused until the commit is written everywhere, and tried again.
    "retry_backoff_ms": 10,
}


class Transaction(KafkaSink):
    """A sink whose records, and what `append` and `commit` are given, are committed together.

    Args:
        worker: its name in the group; another process of that name ends what this one has open.
        member: as whom the group knows this worker since its last poll.
        commit_seconds: what a call may take that waits for Kafka.
        others: see `KafkaSink`.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        config: KafkaConfig,
        worker: str,
        member: Callable[[], Any],
        message_bytes: int = MESSAGE_BYTES,
        hurry: threading.Event | None = None,
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        super().__init__(bootstrap_servers, config, max(message_bytes, MESSAGE_BYTES), hurry=hurry)
        self._id, self._member = f"{config.group}-{worker}", member
        self._seconds = commit_seconds
        self.open = False
        """Whether anything was written since the last commit."""

    def ready(self) -> None:
        """Settles what was open when a producer was thrown away, or a worker of our name died.

        Raises:
            DeliveryError: Kafka does not say in time.
        """
        self._producer()

    def emit_to(self, topic: str, *record: Any, **more: Any) -> Sent:
        """As promised by `KafkaSink`, whose arguments it takes."""
        try:
            self._begin()
            return super().emit_to(topic, *record, **more)
        except DeliveryError:
            self.drop()
            raise

    def append(self, topic: str, partition: int, keyed: Sequence[Keyed]) -> list[int]:
        """Offsets of records, all acknowledged. Raises DeliveryError."""
        sent = [self.emit_to(topic, value, key, partition=partition) for key, value in keyed]
        self.flush(self._seconds)
        return [one.coordinates(0.0).offset for one in sent]

    def commit(self, offsets: Mapping[Partition, tuple[int, str]]) -> None:
        """1 every record acknowledged, 2 offsets added, 3 committed.

        Args:
            offsets: of the group, with what stands beside them.

        Raises:
            DeliveryError: what was written counts, or does not: load what is committed.
            PartitionsLost: likewise; the group does not know us as the owner.
        """
        self.flush(self._seconds)
        try:
            self._begin()
            assert self._epoch is not None
            client = self._epoch.producer
            if offsets:
                wanted = {TopicPartition(*p): OffsetAndMetadata(*one, -1) for p, one in offsets.items()}
                self._ended(
                    client, client._transaction_manager.send_offsets_to_transaction(wanted, self._known())
                )
            self._ended(client, client._transaction_manager.begin_commit())
        except PartitionsLost:
            self.drop()
            raise
        except KafkaError as error:
            self.drop()
            if isinstance(error, (*STALE, kafka_errors.FencedInstanceIdError)):
                raise PartitionsLost(
                    f"the group does not count this worker as the owner: {error!r}"
                ) from error
            if refused(error):
                raise DeliveryError(said(error, WRITE, self._security.username)) from error
            raise DeliveryError(f"the transaction may be committed or not: {error!r}") from error
        self.open = False

    def drop(self) -> None:
        """Gives up what is open; the next call waits for its fate."""
        self.open = False
        if self._epoch is not None:
            self._discard(self._epoch)

    def close(self) -> None:
        """Aborts what is open: readers would wait for it."""
        if self.open and self._epoch is not None:
            client = self._epoch.producer
            try:
                self._ended(client, client._transaction_manager.begin_abort())
            except KafkaError as error:
                log.warning("transaction left open", extra={"error": repr(error)})
                self.drop()
        super().close()

    def _begin(self) -> None:
        epoch = self._producer()
        if not self.open:
            try:
                epoch.producer.begin_transaction()
            except KafkaError as error:
                raise DeliveryError(f"no transaction can be begun: {error!r}") from error
            self.open = True

    def _known(self) -> Any:
        """Offsets of a worker without a generation would be taken from anybody."""
        member = self._member()
        if member is None or member.generation_id < 0 or not member.member_id:
            raise PartitionsLost("this worker is no member of the group")
        return member

    def _ended(self, client: Any, result: Any) -> None:
        """Waits for a call, which the client's own would do without a limit. Raises KafkaError."""
        patience = Patience(self._seconds, self._hurry)
        client._sender.wakeup()
        while not result.wait(timeout_ms=min(LOOK_MS, 1000 * patience.left())):
            if patience.left() <= 0:
                raise KafkaTimeoutError("Kafka does not say what has become of the transaction")

    def _connect(self, **more: Any) -> Any:
        """A successor, once what its predecessor had open is settled."""
        made = super()._connect(transactional_id=self._id, **OPTIONS, **more)
        patience = Patience(self._seconds, self._hurry)
        while True:
            try:
                made.init_transactions()
                return made
            except KafkaError as error:
                # A time-out goes on waiting for the same call.
                if isinstance(error, KafkaTimeoutError) and patience.left() > 0:
                    continue
                made._sender.force_close()
                end_aside(made, STOP_SECONDS)
                if refused(error):
                    raise DeliveryError(said(error, WRITE, self._security.username)) from error
                raise DeliveryError(f"what was open is not settled: {error!r}; is Kafka up?") from error

    def _discard(self, epoch: Any) -> None:
        self.open = False
        epoch.producer._sender.force_close()  # nothing of it is to be sent any more
        super()._discard(epoch)


class TransactionLog(TopicLog):
    """State and journal, written in a transaction; what is read is committed, and nothing is open there.

    Args:
        transaction: what is appended is part of it.
    """

    fenced = True

    def __init__(self, transaction: Transaction, *of_the_log: Any, **more: Any) -> None:
        super().__init__(*of_the_log, **more)
        self._transaction = transaction

    def append(self, topic: str, partition: int, keyed: Sequence[Keyed]) -> list[int]:
        """As promised by `TopicLog`; DeliveryError at once, as nothing can be tried again by itself."""
        return self._transaction.append(topic, partition, keyed)

    def read(
        self, topic: str, partition: int, start: int
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """As promised by `TopicLog`. What our own predecessor had open is settled first."""
        self._transaction.ready()
        return super().read(topic, partition, start)
