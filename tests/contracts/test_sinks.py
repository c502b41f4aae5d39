"""What `core.protocols.Sink` promises, of every sink; on Kafka in tests/integration/test_contracts.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest

from core.protocols import Channel, Sink
from core.records import Record
from stream.memory import MemorySink

CHANNELS: tuple[Channel, ...] = get_args(Channel)
HEADERS = [("kind", b"text"), ("kind", b"\xff\x00"), ("empty", b"")]
LETTER_BYTES = 3 << 20
Read = Callable[[Channel], list[Record]]
Made = tuple[Sink, Read]


def in_memory() -> Made:
    sink = MemorySink()
    return sink, lambda channel: list(sink.records[channel])


BATTERY: dict[str, Callable[[], Made]] = {"MemorySink": in_memory}


@pytest.fixture(params=BATTERY)
def sink_of(request: pytest.FixtureRequest) -> Iterator[Made]:
    """A sink, and what a channel holds."""
    made = BATTERY[request.param]()
    assert type(made[0]).__name__ == request.param
    yield made
    made[0].close()


def test_each_channel_holds_what_was_sent_whole_and_in_order(sink_of: Made) -> None:
    sink, read = sink_of
    sent = [(b"", None, []), (bytes(range(256)), b"key", HEADERS), (b"v", b"", HEADERS[:1])]
    for value, key, headers in sent:
        for channel in CHANNELS:
            sink.send(channel, channel.encode() + value, key, headers)
    sink.flush(20)
    for channel in CHANNELS:
        records = read(channel)
        found = [(record.value, record.key, list(record.headers)) for record in records]
        assert found == [(channel.encode() + value, key, headers) for value, key, headers in sent]
        assert [record.at.offset for record in records] == list(range(len(sent)))


def test_a_flush_makes_durable_and_may_be_repeated(sink_of: Made) -> None:
    sink, read = sink_of
    sink.flush(5)
    for count in range(1, 4):
        sink.send("answers", b"%d" % count, None)
        sink.flush(20)
        assert len(read("answers")) == count
    sink.flush(5)


def test_headers_of_the_caller_are_copied(sink_of: Made) -> None:
    sink, read = sink_of
    headers = list(HEADERS)
    sink.send("labels", b"v", None, headers)
    headers.clear()
    sink.flush(20)
    assert list(read("labels")[0].headers) == HEADERS


def test_no_dead_letter_is_too_large(sink_of: Made) -> None:
    """It may be cut; it is never refused, or one bad record would stop the stream."""
    sink, read = sink_of
    sink.send("dead-letters", b"x" * LETTER_BYTES, b"key", [("reason", b"too large")])
    sink.flush(20)
    assert len(read("dead-letters")) == 1 and read("dead-letters")[0].key == b"key"


def test_it_can_be_closed_twice(sink_of: Made) -> None:
    sink, read = sink_of
    sink.send("answers", b"last", None)
    sink.flush(20)
    sink.close()
    sink.close()
    assert [record.value for record in read("answers")] == [b"last"]
