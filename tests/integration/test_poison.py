"""Records that the client cannot read cost themselves: one marked record each, and nothing after them."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import calc_crc32c

from core.checkpoints import JournalEntry
from core.config import KafkaConfig
from core.records import Record
from stream.broker import Broker
from stream.changelog import ChangelogStore
from stream.client import read_all
from stream.cluster import ensure_topics
from stream.kafka import KafkaSource
from stream.recording import KafkaLog
from stream.records import unreadable

pytestmark = pytest.mark.kafka


class Latin(str):
    """A header name whose bytes are not UTF-8, as a producer in another language may send it."""

    def encode(self, *_: Any) -> bytes:
        return b"caf\xe9"


@pytest.fixture
def config(broker: Broker, topics: Callable[[str], str]) -> KafkaConfig:
    names = {name: topics(name) for name in ("group", "queries", "labels")}
    made = KafkaConfig(**names)
    ensure_topics(broker.bootstrap_servers, {made.queries: (2, {}), made.labels: (1, {})})
    return made


def send(broker: Broker, topic: str, records: list[tuple[bytes, list[Any]]], **options: Any) -> None:
    """All in one batch of partition 0."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=300, **options)
    sent = [producer.send(topic, value, headers=headers, partition=0) for value, headers in records]
    producer.flush(10)
    assert [future.get(5).offset for future in sent] == sorted(future.get(5).offset for future in sent)
    producer.close()


def everything(broker: Broker, config: KafkaConfig, count: int, **options: Any) -> list[Record]:
    """What the source gives, and that it then is at the end and gives no more."""
    source = KafkaSource(broker.bootstrap_servers, config, **options)
    try:
        records: list[Record] = []
        deadline = time.monotonic() + 20
        while len(records) < count and time.monotonic() < deadline:
            records += source.poll(0.1)
        assert source.poll(0.2) == [] and set(source.lag().values()) <= {0}
        return records
    finally:
        source.close()


def altered(broker: Broker, topic: str, change: Callable[[bytearray], None], number: int = 0) -> None:
    """Rewrites one batch of partition 0 on disk; its checksum fits again."""
    (segment,) = (broker.data_dir / "log" / f"{topic}-0").glob("*.log")
    content, start = bytearray(segment.read_bytes()), 0
    for _ in range(number):
        start += 12 + struct.unpack_from(">i", content, start + 8)[0]
    end = start + 12 + struct.unpack_from(">i", content, start + 8)[0]
    batch = content[start:end]
    change(batch)
    checked = memoryview(batch)[DefaultRecordBatch.ATTRIBUTES_OFFSET :]
    struct.pack_into(">I", batch, DefaultRecordBatch.CRC_OFFSET, calc_crc32c(checked))
    with Path(segment).open("r+b") as file:
        file.seek(start)
        file.write(batch)


def foreign_codec(batch: bytearray) -> None:
    at = DefaultRecordBatch.ATTRIBUTES_OFFSET
    struct.pack_into(">h", batch, at, struct.unpack_from(">h", batch, at)[0] | 6)


def broken_bytes(batch: bytearray) -> None:
    batch[DefaultRecordBatch.HEADER_STRUCT.size + 4 :] = bytes(
        len(batch) - DefaultRecordBatch.HEADER_STRUCT.size - 4
    )


@pytest.mark.parametrize("most", [2, 512])
def test_a_header_name_that_is_not_utf8_costs_one_record(
    broker: Broker, config: KafkaConfig, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    poison = (b"poison", [(Latin("cafe"), b"x")])
    good = [(b"good-%d" % number, [("h", b"1")]) for number in range(6)]
    for topic in (config.queries, config.labels):
        send(broker, topic, [good[0], poison, good[1], poison, poison, *good[2:]])
        send(broker, topic, [poison])
        send(broker, topic, [good[0]])
    with caplog.at_level(logging.ERROR, "qshift.kafka"):
        records = everything(broker, config, 22, max_poll_records=most)
    for topic in (config.queries, config.labels):
        mine = [record for record in records if record.at.topic == topic]
        assert [record.at.offset for record in mine] == list(range(11))
        assert [record.at.offset for record in mine if unreadable(record)] == [1, 3, 4, 9]
        assert b"utf-8" in dict(mine[1].headers)["x-error-message"]
        kept = [(r.value, r.headers) for r in mine if not unreadable(r)]
        assert kept == [(b"good-%d" % n, (("h", b"1"),)) for n in (*range(6), 0)]
    named = {(r.__dict__["partition"], r.__dict__["first"]) for r in caplog.records if "first" in r.__dict__}
    assert {(f"{config.queries}/0", 1), (f"{config.labels}/0", 9)} <= named


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd", None])
def test_a_batch_that_cannot_be_unpacked_costs_its_records(
    broker: Broker, config: KafkaConfig, codec: str | None
) -> None:
    """A codec that nobody has, or bytes that it does not understand; before and after it all is well."""
    for topic in (config.queries, config.labels):
        for name in ("before", "middle", "after"):
            values = [(f"{name}-{number}".encode() * 50, []) for number in range(3)]
            send(broker, topic, values, compression_type=codec)
        altered(broker, topic, foreign_codec if codec is None else broken_bytes, number=1)
    records = everything(broker, config, 18, max_poll_records=4)
    for topic in (config.queries, config.labels):
        mine = [record for record in records if record.at.topic == topic]
        assert [(r.at.offset, (r.value or b"")[:6]) for r in mine] == [
            *((n, b"before") for n in range(3)), *((n, b"") for n in range(3, 6)),
            *((n, b"after-") for n in range(6, 9)),
        ]  # fmt: skip
        assert [unreadable(record) for record in mine] == [3 <= n < 6 for n in range(9)]


def test_a_long_name_is_not_quoted_whole(
    broker: Broker, config: KafkaConfig, caplog: pytest.LogCaptureFixture
) -> None:
    class Long(str):
        def encode(self, *_: Any) -> bytes:
            return b"\xff" * 500_000

    send(broker, config.queries, [(b"poison", [(Long("long"), b"x")])])
    with caplog.at_level(logging.ERROR, "qshift.kafka"):
        (record,) = everything(broker, config, 1)
    assert unreadable(record) and len(dict(record.headers)["x-error-message"]) <= 300
    assert all(len(str(entry.__dict__)) < 3000 for entry in caplog.records if entry.name == "qshift.kafka")


def test_other_partitions_go_on(broker: Broker, config: KafkaConfig) -> None:
    send(broker, config.queries, [(b"poison", [(Latin("cafe"), b"x")])])
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for number in range(5):
        producer.send(config.queries, b"%d" % number, partition=1).get(5)
    producer.close()
    records = everything(broker, config, 6)
    assert sorted((r.at.partition, r.at.offset) for r in records) == [(0, 0), *((1, n) for n in range(5))]


def test_an_altered_batch_header_is_passed_by_one_record_at_a_time(
    broker: Broker, config: KafkaConfig
) -> None:
    """A last offset of two thousand millions must not become as many dead letters."""
    send(broker, config.queries, [(b"a%d" % n, []) for n in range(3)])
    send(broker, config.queries, [(b"after", [])])
    (segment,) = (broker.data_dir / "log" / f"{config.queries}-0").glob("*.log")
    with segment.open("r+b") as file:  # the checksum is left as it was
        file.seek(DefaultRecordBatch.ATTRIBUTES_OFFSET + 2)
        file.write(struct.pack(">i", 2**31 - 2))
    source = KafkaSource(broker.bootstrap_servers, config)
    try:
        records: list[Record] = []
        deadline = time.monotonic() + 5
        while len(records) < 4 and time.monotonic() < deadline:
            records += source.poll(0.1)
    finally:
        source.close()
    assert [(r.at.offset, r.value) for r in records] == [(0, None), (1, None), (2, None), (3, b"after")]


def test_a_recording_is_read_past_them(broker: Broker, config: KafkaConfig) -> None:
    send(broker, config.queries, [(b"a", []), (b"poison", [(Latin("cafe"), b"x")]), (b"b", [])])
    with KafkaLog(broker.bootstrap_servers) as recording:
        assert recording.bounds(config.queries)[0] == (0, 3)
        records = recording.read(config.queries, {0: (0, 3)})
    assert [(r.at.offset, r.value, unreadable(r)) for r in records] == [
        (0, b"a", False), (1, None, True), (2, b"b", False),
    ]  # fmt: skip
    assert [r.value for r in read_all(broker.bootstrap_servers, config.queries)] == [b"a", None, b"b"]


def test_a_journal_record_that_is_none_is_skipped_named_and_counted(
    broker: Broker, topics: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    kafka = KafkaConfig(state=topics("state"), journal=topics("journal"))
    settings = ChangelogStore.topic_configs(kafka)
    ensure_topics(broker.bootstrap_servers, {name: (1, settings[name]) for name in settings})
    entries = [JournalEntry("q", 0, "0:text", seq, (2 * seq, 2 * seq + 1), "hash") for seq in range(4)]
    store = ChangelogStore(broker.bootstrap_servers, kafka)
    store.journal(entries[0])
    send(broker, kafka.journal, [(b"garbage", []), (b"x", [(Latin("cafe"), b"x")])])
    store.journal(entries[1])
    with caplog.at_level(logging.ERROR, "qshift.changelog"):
        assert store.journalled(("q", 0), {}) == entries[:2]
        mine = [record for record in caplog.records if record.name == "qshift.changelog"]
        said = [(r.getMessage(), r.__dict__["offset"], r.__dict__["skipped"]) for r in mine]
        assert said == [("journal record skipped: it cannot be read", n, n) for n in (1, 2)]
        send(broker, kafka.journal, [(b"{}", [])])
        store.journal(entries[2])  # behind what it did not write itself
        store.journal(entries[3])
    store.close()
    again = ChangelogStore(broker.bootstrap_servers, kafka)
    assert again.journalled(("q", 0), {"0:text": 1}) == entries[1:]
    again.close()
