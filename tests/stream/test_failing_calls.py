"""R9: whichever call of the producer fails, nothing is lost and a second answer is equal to the first.

With transactions there is no second one for readers of committed records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from scripted_kafka import CALLS, PRODUCE, ScriptedKafka, ScriptedProducer, ScriptedReader

from core.config import KafkaConfig
from core.errors import DeliveryError, PartitionsLost
from core.records import Coordinates, Partition, Record
from stream.changelog import ChangelogStore
from stream.journal import Journal
from stream.memory import Crash, MemorySource
from stream.report import Report
from stream.runner import run
from stream.sink import KafkaSink
from stream.topic_log import Isolation, TopicLog
from stream.transaction import Transaction, TransactionLog

MEMBER = SimpleNamespace(generation_id=1, member_id="worker-0")
QUERIES = 12
"""In two partitions, and one more that is refused."""


class Sink(KafkaSink):
    def __init__(self, kafka: ScriptedKafka, config: KafkaConfig) -> None:
        super().__init__("nowhere:1", config)
        self._kafka, self._limits = kafka, {}

    def _made(self, **options: Any) -> ScriptedProducer:
        return ScriptedProducer(self._kafka)


class Log(TopicLog):
    def __init__(self, kafka: ScriptedKafka) -> None:
        super().__init__("nowhere:1", 1.0, 1.0)
        self._kafka = kafka

    def _open_producer(self) -> ScriptedProducer:
        self._producer = self._producer or ScriptedProducer(self._kafka)
        return self._producer

    def _reader(
        self, at: TopicPartition, most_bytes: int = 0, isolation: Isolation | None = None
    ) -> ScriptedReader:
        return ScriptedReader(self._kafka, at, (isolation or self._isolation) == "read_committed")


class Together(Transaction):
    """A transaction of a kafka that is scripted."""

    def __init__(self, kafka: ScriptedKafka, config: KafkaConfig, member: Any) -> None:
        super().__init__("nowhere:1", config, "worker-0", lambda: member, commit_seconds=0.01)
        self._kafka, self._limits = kafka, {}

    def _made(self, **options: Any) -> ScriptedProducer:
        return ScriptedProducer(self._kafka, options["transactional_id"])


class TogetherLog(Log, TransactionLog):
    def __init__(self, kafka: ScriptedKafka, transaction: Transaction) -> None:
        TransactionLog.__init__(self, transaction, "nowhere:1", 1.0, 1.0)
        self._kafka = kafka

    append = TransactionLog.append


@pytest.fixture
def world(make_world: Any) -> Any:
    return make_world(
        batch={"size": 4, "floor": 2, "linger_seconds": 60.0},
        state={"every_batches": 2},
        kafka={"delivery_timeout_seconds": 1.0},
    )


class Queries(MemorySource):
    """The group's offsets are Kafka's."""

    def __init__(
        self, kafka: ScriptedKafka, records: list[Record], topic: str, lost: Exception | None = None
    ) -> None:
        super().__init__(records, [topic], 5)
        self.commits, self._kafka, self._lost = kafka.committed, kafka, lost

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        super().confirm(offsets, metadata)
        if self._kafka.call("confirm") and self._lost is not None:
            raise self._lost


def serve(
    world: Any,
    kafka: ScriptedKafka,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool = False,
    lost: Exception | None = None,
) -> tuple[Report, int]:
    """Runs, and again after an error at the very end; what the last run says, and failures in all.

    Args:
        whole: in transactions.
        lost: what asking the group comes to, where that is the call which goes wrong.
    """
    monkeypatch.setattr("stream.topic_log.BACKOFF_SECONDS", (0.0, 0.0))
    names, failures = world.config.kafka, 0
    while True:
        store = ChangelogStore("nowhere:1", names)
        transaction = Together(kafka, names, MEMBER) if whole else None
        store._log = log = Log(kafka) if transaction is None else TogetherLog(kafka, transaction)
        store._journal = Journal(log, names.journal)
        source = Queries(kafka, queries(world, names.queries), names.queries, lost)
        try:
            report = run(
                source, world.pipeline, world.codec, transaction or Sink(kafka, names), store, [],
                world.config, backoff_seconds=(0.0, 0.0), transaction=transaction,
            )  # fmt: skip
            return report, failures + report.recoveries
        except (DeliveryError, Crash):
            failures += 1


def queries(world: Any, topic: str) -> list[Record]:
    """The tenth is none."""
    records = world.queries(QUERIES)
    records.insert(9, Record(Coordinates(topic, 0, 0), b"no query", None))
    return [
        Record(Coordinates(topic, n % 2, n // 2), one.value, one.key, one.headers)
        for n, one in enumerate(records)
    ]


def values(kafka: ScriptedKafka, topic: str) -> dict[bytes | None, set[bytes | None]]:
    found: dict[bytes | None, set[bytes | None]] = defaultdict(set)
    for record in kafka.read(topic):
        found[record.key].add(record.value)
    return found


@pytest.mark.parametrize("kind", PRODUCE)
def test_whatever_record_fails_nothing_is_lost_and_copies_are_equal(
    world: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calm = ScriptedKafka()
    (expected, _), names = serve(world, calm, monkeypatch), world.config.kafka
    answers, letters = values(calm, names.answers), values(calm, names.dead_letters)
    assert len(answers) == QUERIES and len(letters) == 1
    assert {call.split(".")[-1] for call in calm.calls} >= {"answers", "dead-letters", "journal", "state"}
    repeated = 0
    for nth, call in enumerate(calm.calls, 1):
        if call == "confirm":
            continue
        kafka = ScriptedKafka(nth, kind)
        report, failures = serve(world, kafka, monkeypatch)
        assert values(kafka, names.answers) == answers, (nth, call)
        assert values(kafka, names.dead_letters) == letters, (nth, call)
        assert report.state_sha256 == expected.state_sha256, (nth, call)
        again = len(kafka.calls) > len(calm.calls)
        assert again and failures <= 1, (nth, call)
        repeated += len(kafka.read(names.answers)) > QUERIES
    assert (repeated > 0) == (kind != "raised"), "hardly anything went wrong: the test shows nothing"


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in PRODUCE if kind != "lost"]


@pytest.mark.parametrize("kind", [*SLOW, "lost", "expired", *CALLS])
def test_in_transactions_readers_see_each_answer_once_whichever_call_fails(
    world: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plain, names = ScriptedKafka(), world.config.kafka
    expected, _ = serve(world, plain, monkeypatch)
    calm = ScriptedKafka()
    report, failures = serve(world, calm, monkeypatch, whole=True)
    assert (report.state_sha256, failures) == (expected.state_sha256, 0)
    answers, letters = once(plain, names.answers), values(plain, names.dead_letters)
    assert once(calm, names.answers) == answers
    assert {*calm.calls} >= {"init", "offsets", "commit"}
    failed = 0
    for nth, call in enumerate(calm.calls, 1):
        if call == "confirm" or call.startswith("send") != (kind in (*PRODUCE, "expired")):
            continue
        kafka = ScriptedKafka(nth, kind)
        report, failures = serve(world, kafka, monkeypatch, whole=True)
        assert once(kafka, names.answers) == answers, (nth, call)
        # A query that is refused while one before it waits is so again from that checkpoint: a copy.
        assert values(kafka, names.dead_letters) == letters, (nth, call)
        assert report.state_sha256 == expected.state_sha256, (nth, call)
        assert kafka.committed == calm.committed, (nth, call)
        assert kafka.stable((names.answers, 0)) == len(kafka.topics[names.answers, 0]), "one is left open"
        failed += failures
    assert failed or kind == "raised", "nothing went wrong: the test shows nothing"


@pytest.mark.parametrize("lost", [PartitionsLost("no member"), DeliveryError("no word"), Crash()])
def test_in_transactions_what_was_open_is_given_up_with_the_partitions(
    world: Any, monkeypatch: pytest.MonkeyPatch, lost: Exception
) -> None:
    """A batch is journalled, and perhaps others are answered, when the group is asked."""
    calm, names = ScriptedKafka(), world.config.kafka
    expected, _ = serve(world, calm, monkeypatch, whole=True)
    for nth, call in enumerate(calm.calls, 1):
        if call == "confirm":
            kafka = ScriptedKafka(nth, "lost")
            report, _ = serve(world, kafka, monkeypatch, whole=True, lost=lost)
            assert len(kafka.calls) > len(calm.calls), "nothing was done again: the test shows nothing"
            assert once(kafka, names.answers) == once(calm, names.answers), nth
            assert report.state_sha256 == expected.state_sha256, nth


@pytest.mark.parametrize("generation", [0, -1])
def test_a_worker_of_another_generation_or_none_commits_nothing(generation: int) -> None:
    kafka, config = ScriptedKafka(), KafkaConfig()
    sleeper = Together(kafka, config, SimpleNamespace(generation_id=generation, member_id="worker-0"))
    sleeper.send("answers", b"late", b"key")
    with pytest.raises(PartitionsLost):
        sleeper.commit({(config.queries, 0): (1, "")})
    Together(kafka, config, MEMBER).ready()
    assert kafka.read(config.answers) == [] and not kafka.committed


def test_what_a_zombie_has_open_is_ended_by_its_successor() -> None:
    kafka, config = ScriptedKafka(), KafkaConfig()
    zombie, successor = Together(kafka, config, MEMBER), Together(kafka, config, MEMBER)
    zombie.send("answers", b"late", b"key")
    successor.send("answers", b"right", b"key")
    successor.commit({(config.queries, 0): (1, "")})
    with pytest.raises(DeliveryError):
        zombie.commit({(config.queries, 0): (1, "")})
    assert [record.value for record in kafka.read(config.answers)] == [b"right"]


def once(kafka: ScriptedKafka, topic: str) -> dict[bytes | None, bytes | None]:
    """What readers of committed records see: no key twice."""
    records = kafka.read(topic)
    assert max(Counter(record.key for record in records).values()) == 1
    return {record.key: record.value for record in records}
