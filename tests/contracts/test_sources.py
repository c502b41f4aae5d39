"""What `core.protocols.Source` promises, of every source; on Kafka in tests/integration/test_contracts.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from core.protocols import Source
from core.records import Coordinates, Record
from stream.memory import MemorySource

TOPIC, COUNT = "contract-queries", 12
HEADERS = (("kind", b"text"), ("kind", b"\xff\x00"), ("empty", b""))
Written = Sequence[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]]
Made = tuple[Source, str]
Open = Callable[[Written], Made]

WRITTEN: Written = [
    (b"", None, ()),
    (bytes(range(256)), b"key", HEADERS),
    (None, b"tombstone", ()),
    *((b"%d" % number, None, HEADERS[:1]) for number in range(3, COUNT)),
]
"""Value, key and headers of what the log of partition 0 holds."""


def in_memory(written: Written) -> Made:
    records = [Record(Coordinates(TOPIC, 0, n), *one) for n, one in enumerate(written)]
    return MemorySource(records, [TOPIC], step=5), TOPIC


BATTERY: dict[str, Open] = {"MemorySource": in_memory}


@pytest.fixture(params=BATTERY)
def source_of(request: pytest.FixtureRequest) -> Iterator[Open]:
    """source_of(written): a source of a log that holds that, and the name of its topic."""
    opened: list[Source] = []

    def opener(written: Written) -> Made:
        source, topic = BATTERY[request.param](written)
        assert type(source).__name__ == request.param
        opened.append(source)
        return source, topic

    yield opener
    for source in opened:
        source.close()


def read(source: Source, count: int, seconds: float = 20) -> list[Record]:
    """Polls until so many records came, and once more: a duplicate or a stranger would show."""
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += source.poll(0.1)
    return records + source.poll(0.1)


def offsets(records: Sequence[Record]) -> list[int]:
    return [record.at.offset for record in records]


def test_records_come_whole_and_in_log_order(source_of: Open) -> None:
    source, topic = source_of(WRITTEN)
    records = read(source, COUNT)
    assert [record.at for record in records] == [Coordinates(topic, 0, n) for n in range(COUNT)]
    assert [(r.value, r.key, r.headers) for r in records] == list(WRITTEN)
    assert source.assignment() == {(topic, 0)}
    assert source.poll(0.0) == []


def test_what_it_knows_of_the_log(source_of: Open) -> None:
    source, topic = source_of(WRITTEN)
    assert not source.exhausted
    read(source, COUNT)
    assert set(source.lag().values()) <= {0} and set(source.lag()) <= {(topic, 0)}
    assert source.generation() >= 0 and isinstance(source.log_id(), str)
    assert source.log_id() == source.log_id()


@pytest.mark.parametrize("offset", [0, 7, COUNT])
def test_it_continues_where_it_is_told(source_of: Open, offset: int) -> None:
    source, topic = source_of(WRITTEN)
    read(source, COUNT)
    for _ in range(2):
        source.seek((topic, 0), offset)
        assert offsets(read(source, COUNT - offset)) == list(range(offset, COUNT))


def test_a_pause_loses_nothing(source_of: Open) -> None:
    source, _ = source_of(WRITTEN)
    source.pause(True)
    source.pause(True)
    assert [source.poll(0.2) for _ in range(3)] == [[]] * 3
    source.pause(False)
    assert offsets(read(source, COUNT)) == list(range(COUNT))


def test_a_commit_is_remembered_with_its_metadata(source_of: Open) -> None:
    source, topic = source_of(WRITTEN)
    read(source, COUNT)
    assert source.committed((topic, 0)) is None
    source.commit({})
    assert source.committed((topic, 0)) is None
    for place, metadata in ((4, "hash of a state"), (9, "")):
        source.commit({(topic, 0): place}, metadata)
        assert source.committed((topic, 0)) == (place, metadata)
    assert source.poll(0.0) == [], "a commit moves nobody"


def test_ownership_is_confirmed_without_moving_the_commit(source_of: Open) -> None:
    source, topic = source_of(WRITTEN)
    read(source, COUNT)
    source.commit({(topic, 0): 5}, "hash")
    source.confirm({(topic, 0): 5}, "hash")
    source.confirm({})
    assert source.committed((topic, 0)) == (5, "hash")


def test_an_empty_log_gives_nothing(source_of: Open) -> None:
    source, topic = source_of([])
    assert read(source, 0) == [] and set(source.assignment()) <= {(topic, 0)}
