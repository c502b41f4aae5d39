"""Source and sink against a real broker: what goes in comes out, and what fails is said to have failed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka.structs import TopicPartition

from core.config import KafkaConfig
from core.errors import BrokerError, ConfigError, DeliveryError, OffsetGoneError, Refused
from core.records import Partition, Record
from stream.broker import Broker
from stream.client import read_all
from stream.cluster import ensure_topics
from stream.kafka import KafkaSource
from stream.records import CORRUPT
from stream.sink import KafkaSink

pytestmark = pytest.mark.kafka
Topics = Callable[[str], str]


@pytest.fixture
def config(broker: Broker, topics: Topics) -> KafkaConfig:
    """A configuration with topics of its own, made: 2 partitions of queries, 1 of everything else."""
    names = {name: topics(name) for name in ("group", "queries", "answers", "labels", "dead_letters")}
    made = KafkaConfig(**names, partitions=2, max_inflight_bytes=1 << 20, delivery_timeout_seconds=10)
    wanted = {name: (1, {}) for name in (made.answers, made.labels, made.dead_letters)}
    assert ensure_topics(broker.bootstrap_servers, {**wanted, made.queries: (2, {})})[made.queries] == 2
    return made


@contextmanager
def source(broker: Broker, config: KafkaConfig, **options: object) -> Iterator[KafkaSource]:
    one = KafkaSource(broker.bootstrap_servers, config, **options)  # type: ignore[arg-type]
    try:
        yield one
    finally:
        one.close()


@contextmanager
def sink(broker: Broker, config: KafkaConfig, **options: object) -> Iterator[KafkaSink]:
    one = KafkaSink(broker.bootstrap_servers, config, **options)  # type: ignore[arg-type]
    try:
        yield one
    finally:
        one.close()


def read(one: KafkaSource, count: int, seconds: float = 20) -> list[Record]:
    """Polls until `count` records came, and once more: a duplicate or a stranger would show."""
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += one.poll(0.1)
    return records + one.poll(0.1)


def joined(one: KafkaSource, partitions: int, seconds: float = 20) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(one.assignment()) < partitions and time.monotonic() < deadline:
        records += one.poll(0.1)
    assert len(one.assignment()) == partitions
    return records


def test_round_trip_keeps_every_byte(broker: Broker, config: KafkaConfig) -> None:
    headers = [("kind", b"text"), ("empty", b""), ("kind", b"\xff\x00")]
    sent = [(b"", None, []), (b"v", b"", headers), (bytes(range(256)), b"k", headers), (None, b"k", [])]
    with sink(broker, config) as out:
        places = [
            out.emit_to(config.queries, value, key, list(head), partition=1).coordinates()
            for value, key, head in sent
        ]
        out.send("labels", b"label", b"key", [("h", b"1")])
        out.flush(10)
    assert [place.offset for place in places] == [0, 1, 2, 3]
    with source(broker, config) as incoming:
        records = read(incoming, len(sent) + 1)
        assert incoming.generation() >= 1
        assert incoming.lag() == {(config.queries, 1): 0}
        assert incoming.assignment() == {(config.queries, 0), (config.queries, 1)}
    queries = [record for record in records if record.at.topic == config.queries]
    assert [record.at for record in queries] == places
    assert [(r.value, r.key, list(r.headers)) for r in queries] == sent
    labels = [record for record in records if record.at.topic == config.labels]
    assert [(r.value, r.key, r.headers) for r in labels] == [(b"label", b"key", (("h", b"1"),))]
    assert all(abs(record.timestamp_ms / 1000 - time.time()) < 60 for record in records)


def test_commit_resume_and_seek(broker: Broker, config: KafkaConfig) -> None:
    with sink(broker, config) as out:
        for number in range(10):
            out.emit_to(config.queries, b"%d" % number, partition=0)
        out.emit_to(config.labels, b"a")
        out.emit_to(config.labels, b"b")
        out.flush(10)
    part = (config.queries, 0)
    with source(broker, config, max_poll_records=3) as first:
        assert len(read(first, 12)) == 12
        first.commit({part: 4}, "hash")
    with source(broker, config) as second:
        joined(second, 2)
        second.seek((config.labels, 0), 1)
        second.seek(part, 4)
        assert [r.value for r in read(second, 7) if r.at.topic == config.queries] == [
            b"%d" % n for n in range(4, 10)
        ]
        second.seek(part, 2)
        assert [r.at.offset for r in read(second, 8)] == list(range(2, 10))
        second.seek((config.labels, 0), 1)
        assert [r.value for r in read(second, 1)] == [b"b"]
        second.seek(part, 10)
        assert read(second, 1, seconds=0.3) == []
    with source(broker, config) as third:  # nothing but the commit: the group's offset
        assert [r.at.offset for r in read(third, 8) if r.at.topic == config.queries] == list(range(4, 10))


def test_pause_brings_labels_alone_and_resume_everything(broker: Broker, config: KafkaConfig) -> None:
    with source(broker, config) as incoming, sink(broker, config) as out:
        incoming.pause(True)
        joined(incoming, 2)
        for number in range(20):
            out.send("queries", b"%d" % number, b"%d" % number)
        out.flush(10)
        generation = incoming.generation()
        for _ in range(5):
            assert incoming.poll(0.1) == []
        out.emit_to(config.labels, b"late")  # what a batch that makes room may be waiting for
        out.flush(10)
        assert [record.value for record in read(incoming, 1)] == [b"late"]
        incoming.pause(False)
        assert sorted(int(r.value or b"") for r in read(incoming, 20)) == list(range(20))
        assert incoming.generation() == generation


def test_two_workers_share_and_come_to_rest(broker: Broker, config: KafkaConfig) -> None:
    """Short polls with long steps between them: the second worker takes one partition of two.

    The client alone joins again and again here: it drops a join that completes between two polls.
    """
    seen: dict[str, list[Record]] = {"first": [], "second": []}
    assigned: dict[str, frozenset[Partition]] = {}
    stop = threading.Event()

    def work(name: str) -> None:
        with source(broker, config) as one:
            while not stop.is_set():
                seen[name] += one.poll(0.02)
                assigned[name] = one.assignment()
                time.sleep(0.2)

    workers = [threading.Thread(target=work, args=(name,)) for name in seen]
    try:
        with sink(broker, config) as out:
            workers[0].start()
            assert wait_for(lambda: len(assigned.get("first", ())) == 2)
            workers[1].start()
            assert wait_for(lambda: [len(parts) for parts in assigned.values()] == [1, 1])
            for number in range(10):
                out.emit_to(config.queries, b"%d" % number, partition=number % 2)
            out.flush(10)
            assert wait_for(lambda: sum(map(len, seen.values())) >= 10)
    finally:
        stop.set()
        for worker in workers:
            if worker.is_alive():
                worker.join(20)
    assert assigned["first"] | assigned["second"] == {(config.queries, 0), (config.queries, 1)}
    for name, records in seen.items():
        assert {(r.at.topic, r.at.partition) for r in records} == assigned[name]
    assert sorted(int(r.value or b"") for records in seen.values() for r in records) == list(range(10))


def test_offsets_that_are_gone(broker: Broker, config: KafkaConfig) -> None:
    part = TopicPartition(config.queries, 0)
    label = TopicPartition(config.labels, 0)
    with sink(broker, config) as out:
        for number in range(10):
            out.emit_to(config.queries, b"%d" % number, partition=0)
            out.emit_to(config.labels, b"%d" % number, partition=0)
        out.flush(10)
    with source(broker, config, max_poll_records=2) as incoming:
        joined(incoming, 2)
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.delete_records({part: 6, label: 6})
        admin.close()
        with pytest.raises(OffsetGoneError, match=r"offset 5, .* goes on at 6"):
            incoming.seek((config.queries, 0), 5)
        with pytest.raises(OffsetGoneError, match="offset 11"):
            incoming.seek((config.queries, 0), 11)
        incoming.seek((config.queries, 0), 6)
        incoming.seek((config.labels, 0), 0)  # labels only measure: they continue where the log starts
        records = read(incoming, 8)
        assert [r.at.offset for r in records if r.at.topic == config.queries] == [6, 7, 8, 9]
        assert [r.at.offset for r in records if r.at.topic == config.labels] == [6, 7, 8, 9]


def test_retention_that_overtakes_the_reader_is_noticed(broker: Broker, config: KafkaConfig) -> None:
    """The client alone would go on at the log's start and drop what lies between."""
    part = TopicPartition(config.queries, 0)
    with sink(broker, config) as out, source(broker, config) as incoming:
        out.emit_to(config.queries, b"0", partition=0)
        out.flush(10)
        assert len(read(incoming, 1)) == 1
        incoming.pause(True)
        incoming.poll(0.2)
        for number in range(1, 10):
            out.emit_to(config.queries, b"%d" % number, partition=0)
        out.flush(10)
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.delete_records({part: 8})
        admin.close()
        incoming.pause(False)
        with pytest.raises(OffsetGoneError):
            read(incoming, 9, seconds=10)


def test_corrupt_record_is_skipped_with_its_coordinates(broker: Broker, config: KafkaConfig) -> None:
    with sink(broker, config) as out:
        for number in range(5):
            out.emit_to(config.queries, b"value-%d" % number * 20, partition=0).coordinates()  # 5 batches
    (segment,) = (broker.data_dir / "log" / f"{config.queries}-0").glob("*.log")
    content = segment.read_bytes()
    with segment.open("r+b") as file:
        file.seek(content.index(b"value-2") + 3)
        file.write(b"X")
    with source(broker, config) as incoming:
        records = read(incoming, 5)
    assert [r.at.offset for r in records] == [0, 1, 2, 3, 4]
    assert [r.value for r in records] == [
        None if number == 2 else b"value-%d" % number * 20 for number in range(5)
    ]
    assert dict(records[2].headers)["x-error-class"] == CORRUPT.encode()
    assert b"checksum" in dict(records[2].headers)["x-error-message"]


def test_corrupt_batch_loses_each_of_its_records_visibly(broker: Broker, config: KafkaConfig) -> None:
    with sink(broker, config, linger_seconds=0.2) as out:
        for number in range(4):
            out.emit_to(config.queries, b"value-%d" % number, partition=0)
        out.flush(10)
        out.emit_to(config.queries, b"after", partition=0).coordinates()
    (segment,) = (broker.data_dir / "log" / f"{config.queries}-0").glob("*.log")
    content = segment.read_bytes()
    with segment.open("r+b") as file:
        file.seek(content.index(b"value-1"))
        file.write(b"X")
    with source(broker, config) as incoming:
        records = read(incoming, 5)
    assert [(r.at.offset, r.value) for r in records] == [*((n, None) for n in range(4)), (4, b"after")]


def test_expired_records_make_flush_raise(broker: Broker, config: KafkaConfig) -> None:
    """T1: the broker stands still for longer than the delivery time-out."""
    short = config.model_copy(update={"delivery_timeout_seconds": 2.5})
    with sink(broker, short) as out:
        out.send("answers", b"before", b"0")
        out.flush(10)
        broker.pause()
        try:
            for number in range(5):
                out.send("answers", b"%d" % number, b"1")
            with pytest.raises(DeliveryError, match="sent again"):
                out.flush(6)
        finally:
            broker.resume()
        deadline = time.monotonic() + 60
        while True:  # by a new producer, which on a busy machine may need longer than 2.5 s to find Kafka
            try:
                out.send("answers", b"again", b"2")
                out.flush(20)
                break
            except DeliveryError:
                assert time.monotonic() < deadline
        assert wait_for(lambda: out.inflight_bytes == 0)
    reading = config.model_copy(update={"queries": config.answers, "group": config.group + "-answers"})
    with source(broker, reading) as incoming:
        values = [r.value for r in read(incoming, 2)]
        while b"again" not in values and time.monotonic() < deadline:  # expired records may be stored, too
            values += [r.value for r in incoming.poll(0.1)]
    assert values[0] == b"before" and b"again" in values


def test_flush_within_its_budget_or_not_at_all(broker: Broker, config: KafkaConfig) -> None:
    with sink(broker, config) as out:
        out.flush(0)  # nothing was sent
        out.send("answers", b"1", b"1")
        out.flush(10)
        broker.pause()
        try:
            out.send("answers", b"2", b"1")
            started = time.monotonic()
            with pytest.raises(DeliveryError):
                out.flush(0.5)
            assert time.monotonic() - started < 2
        finally:
            broker.resume()


def test_unacknowledged_bytes_are_bounded(broker: Broker, config: KafkaConfig) -> None:
    """T4: with a dead broker the raw client would take 80 MB here."""
    with sink(broker, config) as out:
        out.send("answers", b"x", b"k")
        out.flush(10)
        broker.pause()
        taken = []

        def fill() -> None:
            try:
                for number in range(8000):
                    out.send("answers", bytes(10_000), b"%d" % number)
                    taken.append(number)
            except DeliveryError:
                pass

        thread = threading.Thread(target=fill)
        thread.start()
        try:
            time.sleep(1.5)
            assert 90 <= len(taken) <= 105  # 1 MiB of 10 kB records
            assert out.inflight_bytes <= config.max_inflight_bytes
            assert thread.is_alive()
        finally:
            broker.resume()
        thread.join(60)
        out.flush(30)
        assert len(taken) == 8000
        assert out.inflight_bytes == 0


def test_too_large_is_refused_before_it_is_sent(broker: Broker, config: KafkaConfig) -> None:
    with sink(broker, config) as out:
        with pytest.raises(Refused, match="expected at most"):
            out.send("queries", bytes(5 << 20), None)
        out.send("queries", bytes(1 << 20), None, [("h", bytes(1000))])  # the largest that is allowed
        out.flush(10)
        assert out.inflight_bytes == 0
    with source(broker, config) as incoming:
        assert [len(r.value or b"") for r in read(incoming, 1)] == [1 << 20]
    with sink(broker, config, message_bytes=8 << 20) as out:  # the broker's own limit
        with pytest.raises(Refused, match="at most 2097152"):
            out.emit_to(config.queries, bytes(5 << 20))
        out.emit_to(config.queries, bytes(2 << 20)[:-200]).coordinates(10)


def test_limits_of_existing_topics_are_obeyed(broker: Broker, config: KafkaConfig) -> None:
    """What a topic does not take is refused or cut before it is sent; headers count as Kafka encodes them."""
    limit(broker, config.answers, 10_000)
    limit(broker, config.dead_letters, 4_000)
    many = [("h", b"")] * 3400  # 10,200 bytes on the wire
    with sink(broker, config) as out:
        with pytest.raises(Refused, match=f"for {config.answers}, expected at most 10000"):
            out.send("answers", b"v", b"k", many)
        out.send("answers", b"v", b"k", many[:3200])
        out.send("dead-letters", bytes(9_000), b"k", [*many, ("x-source-offset", b"7")])
        out.flush(10)
    (letter,) = read_all(broker.bootstrap_servers, config.dead_letters)
    assert letter.key == b"k" and 3_700 < len(letter.value or b"") < 4_000
    assert dict(letter.headers) == {"x-source-offset": b"7", "x-source-truncated": b"9000"}


def test_what_kafka_refuses_for_its_size_is_not_sent_again_for_ever(
    broker: Broker, config: KafkaConfig
) -> None:
    """A limit that was lowered under a running sink: the first failure is learned from."""
    with sink(broker, config) as out:
        out.send("answers", b"small", b"k")
        out.send("dead-letters", b"small", b"k")
        out.flush(10)
        limit(broker, config.answers, 10_000)
        limit(broker, config.dead_letters, 10_000)
        out.send("answers", bytes(20_000), b"k")
        out.send("answers", b"small too", b"k")
        with pytest.raises(DeliveryError, match="TooLarge"):
            out.flush(10)
        with pytest.raises(Refused, match="expected at most 20"):
            out.send("answers", bytes(20_000), b"k")
        for attempt in range(8):
            out.send("dead-letters", bytes(60_000), b"k", [("x-source-offset", b"7")])
            try:
                out.flush(10)
                break
            except DeliveryError:
                assert attempt < 6
    letters = read_all(broker.bootstrap_servers, config.dead_letters)
    assert len(letters) == 2 and 3_000 < len(letters[1].value or b"") < 10_000
    assert dict(letters[1].headers)["x-source-offset"] == b"7"


def limit(broker: Broker, topic: str, size: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.alter_configs([ConfigResource("topic", topic, {"max.message.bytes": str(size)})])
    admin.close()


def test_a_dead_letter_that_is_refused_goes_out_least_and_stops_nothing(
    broker: Broker, config: KafkaConfig, topics: Topics
) -> None:
    """A compacted topic takes no record without a key: the same one was sent again for ever."""
    compacted = config.model_copy(update={"dead_letters": topics("compacted")})
    ensure_topics(broker.bootstrap_servers, {compacted.dead_letters: (1, {"cleanup.policy": "compact"})})
    places = [("x-source-topic", b"q"), ("x-source-partition", b"0"), ("x-source-offset", b"7")]
    with sink(broker, compacted) as out:
        out.send("dead-letters", b"value", None, places)
        with pytest.raises(DeliveryError):
            out.flush(10)
        out.send("dead-letters", b"value", None, places)
        out.flush(20)
    (letter,) = read_all(broker.bootstrap_servers, compacted.dead_letters)
    assert (letter.key, letter.value) == (b"q/0/7", b"")
    assert set(letter.headers) == {*places, ("x-source-truncated", b"5")}


def test_broker_killed_in_mid_stream_loses_nothing(broker: Broker, config: KafkaConfig) -> None:
    """kill -9 while records are written and read: every acknowledged record comes, in order."""
    total, stored, failures = 3000, {}, []
    slow = config.model_copy(update={"delivery_timeout_seconds": 30.0})

    def write() -> None:
        try:
            with sink(broker, slow) as out:
                sent = []
                for number in range(total):
                    sent.append(out.emit_to(config.queries, b"%d" % number, partition=number % 2))
                    time.sleep(0.001)
                out.flush(30)
                stored.update({number: one.coordinates() for number, one in enumerate(sent)})
        except (DeliveryError, Refused, BrokerError) as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    records: list[Record] = []
    with source(broker, config) as incoming:
        joined(incoming, 2)
        joined_as = incoming.generation()
        writer.start()
        while len(records) < total // 4:
            records += incoming.poll(0.1)
        incoming.commit({(config.queries, 0): 1})
        broker.kill()
        assert incoming.poll(0.3) is not None
        incoming.commit({(config.queries, 0): 2})  # not now, and no error
        broker.restart()
        deadline = time.monotonic() + 30
        while len(records) < total and time.monotonic() < deadline:
            records += incoming.poll(0.1)
        writer.join(40)
        records += incoming.poll(0.3)
        assert failures == []
        incoming.commit({(config.queries, 0): 3})
        generation = incoming.generation()
    assert {int(r.value or b""): r.at for r in records} == stored
    if generation == joined_as:  # a member that was put out of the group reads again from the last commit
        assert max(Counter(r.at for r in records).values()) == 1
    first_seen = list(dict.fromkeys(r.at for r in records))
    for partition in (0, 1):
        offsets = [at.offset for at in first_seen if at.partition == partition]
        assert offsets == list(range(total // 2))


def test_static_member_has_its_partitions_back_at_once(broker: Broker, config: KafkaConfig) -> None:
    """A worker killed with -9 and started again need not wait for the session to run out."""
    code = (
        "import signal, sys\nsignal.alarm(30)\n"
        "from core.config import KafkaConfig\nfrom stream.kafka import KafkaSource\n"
        "one = KafkaSource(sys.argv[1], KafkaConfig.model_validate_json(sys.argv[2]), worker='w0')\n"
        "while len(one.assignment()) < 2: one.poll(0.1)\n"
        "print('joined', flush=True)\nwhile True: one.poll(0.1)\n"
    )
    root = Path(__file__).parents[2]
    worker = subprocess.Popen(
        [sys.executable, "-c", code, broker.bootstrap_servers, config.model_dump_json()],
        cwd=root, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert worker.stdout is not None and worker.stdout.readline() == b"joined\n"
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    started = time.monotonic()
    with source(broker, config, worker="w0") as incoming:
        joined(incoming, 2)
    assert time.monotonic() - started < 8


def test_missing_topics_and_brokers_are_named(broker: Broker, config: KafkaConfig, topics: Topics) -> None:
    missing = topics("missing")
    with pytest.raises(ConfigError, match=missing):
        KafkaSource(broker.bootstrap_servers, config.model_copy(update={"queries": missing}))
    with pytest.raises(BrokerError, match="no Kafka answered"):
        ensure_topics("127.0.0.1:9", {missing: (1, {})}, budget_seconds=0.5)


def test_topics_are_made_once(broker: Broker, topics: Topics) -> None:
    name = topics("twice")
    assert ensure_topics(broker.bootstrap_servers, {name: (3, {"cleanup.policy": "compact"})}) == {name: 3}
    assert ensure_topics(broker.bootstrap_servers, {name: (5, {})}) == {name: 3}


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
