"""Redriving: original bytes to the place they came from, each once, however often it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from core.config import KafkaConfig
from core.records import Coordinates, Record, Refusal
from stream.letters import dead_letter, fitted
from stream.redrive import ORIGIN, Redriven, Wanted, redrive

KAFKA = KafkaConfig()


class Cluster:
    """Topics as lists: what is sent is there at once."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.topics: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            self.topics.setdefault((record.at.topic, record.at.partition), []).append(record)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {
            number: (found[0].at.offset, found[-1].at.offset + 1)
            for (name, number), found in self.topics.items()
            if name == topic and found
        }

    def at_time(self, topic: str, time_ms: int) -> dict[int, int | None]:
        return {
            number: next((r.at.offset for r in found if r.timestamp_ms >= time_ms), None)
            for (name, number), found in self.topics.items()
            if name == topic
        }

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        return [
            record
            for number, (low, high) in ranges.items()
            for record in self.topics[topic, number]
            if low <= record.at.offset < high
        ]

    def send(
        self, topic: str, partition: int, value: bytes | None, key: bytes | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> None:  # fmt: skip
        found = self.topics.setdefault((topic, partition), [])
        at = Coordinates(topic, partition, found[-1].at.offset + 1 if found else 0)
        found.append(Record(at, value, key, tuple(headers), 9000))

    def sent(self, topic: str = KAFKA.queries) -> list[Record]:
        found = [r for (name, _), some in sorted(self.topics.items()) if name == topic for r in some]
        return [record for record in found if ORIGIN in dict(record.headers)]


def query(offset: int, partition: int = 0, topic: str = KAFKA.queries, value: bytes | None = b"?") -> Record:
    headers = (("x-tenant", b"a"), ("x-attempt", b"1"))
    return Record(Coordinates(topic, partition, offset), value, b"key", headers, 1000 + offset)


def letter(
    number: int, record: Record, stage: str = "fetch", limit: int = 1 << 20, error: str = "Refused"
) -> Record:
    value, key, headers = dead_letter(Refusal(record, stage, error, "why"), 1 << 20)  # type: ignore[arg-type]
    value, key, headers = fitted((value, key, headers), limit)
    at = Coordinates(KAFKA.dead_letters, 0, number)
    return Record(at, value, key, tuple(headers), record.timestamp_ms + 500)


def ask(cluster: Cluster, **wanted: object) -> Redriven:
    found = Redriven()
    redrive(cluster, KAFKA, Wanted(**wanted), cluster.send, found)  # type: ignore[arg-type]
    return found


def test_a_letter_goes_back_with_its_bytes_to_its_partition() -> None:
    original = query(5, partition=3)
    cluster = Cluster([original, letter(0, original)])
    assert ask(cluster).sent == 1
    (again,) = cluster.sent()
    assert again.at == Coordinates(KAFKA.queries, 3, 6)
    assert (again.value, again.key) == (original.value, original.key)
    assert dict(again.headers) == {"x-tenant": b"a", ORIGIN: b"qshift.queries/3/5", "x-attempt": b"2"}


def test_asking_twice_sends_once() -> None:
    records = [query(n) for n in range(4)]
    cluster = Cluster([*records, *(letter(n, r) for n, r in enumerate(records))])
    assert ask(cluster).sent == 4
    again = ask(cluster)
    assert again.sent == 0 and again.left == {"already sent back": 4}
    assert len(cluster.sent()) == 4


def test_an_interrupted_one_is_finished_by_the_next() -> None:
    records = [query(n) for n in range(4)]
    cluster, found = Cluster([*records, *(letter(n, r) for n, r in enumerate(records))]), Redriven()

    def send(*record: object) -> None:
        if found.sent == 2:
            raise KeyboardInterrupt
        cluster.send(*record)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        redrive(cluster, KAFKA, Wanted(), send, found)
    assert found.sent == 2 and ask(cluster).sent == 2
    assert sorted(dict(r.headers)[ORIGIN] for r in cluster.sent()) == [
        b"qshift.queries/0/%d" % n for n in range(4)
    ]


def test_what_failed_again_goes_back_again_until_it_was_tried_often_enough() -> None:
    original = query(0)
    cluster = Cluster([original, letter(0, original)])
    for attempt in (2, 3):
        assert ask(cluster).sent == 1
        failed = cluster.sent()[-1]
        assert dict(failed.headers)["x-attempt"] == b"%d" % attempt
        cluster.topics[KAFKA.dead_letters, 0].append(letter(attempt, failed))
    last = ask(cluster)
    assert last.sent == 0 and last.left == {"already sent back": 2, "tried 3 times or more": 1}


def test_a_cut_letter_is_read_from_its_source() -> None:
    original = query(5, value=b"x" * 5000)
    cut = letter(0, original, limit=2048)
    cluster = Cluster([original, cut])
    assert b"x-source-truncated" not in (cut.value or b"") and len(cut.value or b"") < 5000
    assert ask(cluster).sent == 1 and cluster.sent()[0].value == original.value
    gone = Cluster([query(9), cut])
    assert ask(gone).left == {"cut, and no longer in the log": 1}


def test_null_stays_null_and_empty_stays_empty() -> None:
    nothing, empty = query(0, value=None), query(1, value=b"")
    cluster = Cluster([nothing, empty, letter(0, nothing), letter(1, empty)])
    ask(cluster)
    assert [record.value for record in cluster.sent()] == [None, b""]


def test_only_what_is_wanted() -> None:
    records = [query(n) for n in range(4)]
    letters = [
        letter(n, r, stage=s)
        for n, (r, s) in enumerate(zip(records, ("fetch", "decode", "fetch", "image"), strict=True))
    ]
    assert ask(Cluster([*records, *letters]), stages=frozenset({"fetch"})).stages == {"fetch": 2}
    assert ask(Cluster([*records, *letters]), errors=frozenset({"Other"})).sent == 0
    assert ask(Cluster([*records, *letters]), start_ms=1501, end_ms=1503).sent == 2


def test_what_cannot_go_back_is_counted() -> None:
    corrupt, foreign, label = query(0), query(0, topic="foreign"), query(0, topic=KAFKA.labels)
    nameless = replace(letter(3, corrupt), headers=(("x-error-stage", b"decode"),))
    cluster = Cluster([
        corrupt, foreign, label, letter(0, corrupt, error="CorruptRecord"), letter(1, foreign),
        letter(2, label), nameless,
    ])  # fmt: skip
    found = ask(cluster)
    assert found.left == {"could not be read by any client": 1, "of another topic": 2}
    assert found.sent == 1 and len(cluster.sent(KAFKA.labels)) == 1
