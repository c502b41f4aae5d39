"""Pictures are decoded beside the loop: order kept, lines independent, memory and waiting bounded."""

import threading
import time
from typing import Any

import pytest

from core.errors import Refused
from core.records import Coordinates, Record
from core.types import Query
from stream.admission import Admission
from stream.company import Ahead

PICTURE, TEXT = "image", "text"


class Decoder:
    """Admits a picture when it is allowed to, and remembers in which order it was asked."""

    def __init__(self, open_: bool = True) -> None:
        self.seen: list[str] = []
        self.gate = threading.Event()
        if open_:
            self.gate.set()

    def __call__(self, query: Query) -> Query:
        self.seen.append(query.query_id)
        if query.modality == PICTURE:
            assert self.gate.wait(10)
        if query.content == b"bad":
            raise Refused("image", "bad")
        if query.content == b"worse":
            raise RuntimeError("a fault of ours")
        return query


@pytest.fixture
def make() -> Any:
    made: list[tuple[Admission[str], Decoder]] = []

    def build(decoder: Decoder, **options: Any) -> Admission[str]:
        admission: Admission[str] = Admission(decoder, **{"threads": 1, **options})
        made.append((admission, decoder))
        admission.turn(("a", "b"))
        return admission

    yield build
    for admission, decoder in made:
        decoder.gate.set()
        admission.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("qshift-decode") and t.is_alive()]


def put(
    admission: Admission[str], owner: str, name: str, modality: Any = PICTURE, value: bytes = b""
) -> bool:
    record = Record(Coordinates("q", 0, int(name[1:])), value)
    query = Query(record.at, modality, value, name)
    return admission.put(owner, record, query, admission.decodes(query))


def names(admission: Admission[str], wait_seconds: float = 5.0) -> list[str]:
    return [held.admit(held.event).query_id for held in admission.taken(wait_seconds)]  # type: ignore[arg-type]


def test_a_line_keeps_its_order_and_other_lines_do_not_wait(make: Any) -> None:
    decoder = Decoder(open_=False)
    admission = make(decoder)
    assert not put(admission, "a", "a0", TEXT)  # nothing before it: the caller admits it at once
    assert put(admission, "a", "a1")
    assert put(admission, "a", "a2", TEXT)
    assert not put(admission, "b", "b0", TEXT)
    assert names(admission, 0.05) == [] and len(admission) == 2
    assert admission.ahead("a") is Ahead.DECODING and admission.ahead("b") is Ahead.NOTHING
    assert admission.ahead("a", more=True) is Ahead.READY
    decoder.gate.set()
    assert names(admission) == ["a1", "a2"] and len(admission) == 0
    assert not put(admission, "a", "a3", TEXT)


def test_the_decoder_shares_its_time_and_not_its_turns(make: Any) -> None:
    """Line a holds large pictures of 1 s, line b small ones of 10 ms."""
    now, cost = [0.0], {"a": 1.0, "b": 0.01}

    class Slow(Decoder):
        def __call__(self, query: Query) -> Query:
            admitted = super().__call__(query)
            now[0] += cost[query.query_id[0]]
            return admitted

    decoder = Slow(open_=False)
    admission = make(decoder, clock=lambda: now[0])
    for number in range(8):
        put(admission, "a", f"a{number}")
    for number in range(50):
        put(admission, "b", f"b{number}")
    decoder.gate.set()
    while len(decoder.seen) < 58:
        time.sleep(0.01)
    assert decoder.seen.index("b49") <= 51  # one or two large ones before, not fifty
    found = []
    while len(admission):
        admission.turn(("a", "b"))
        found += names(admission)
    assert [name for name in found if name[0] == "a"] == [f"a{number}" for number in range(8)]
    assert [name for name in found if name[0] == "b"] == [f"b{number}" for number in range(50)]


def test_an_idle_line_saves_nothing_up(make: Any) -> None:
    now = [0.0]

    class Slow(Decoder):
        def __call__(self, query: Query) -> Query:
            now[0] += 1
            return super().__call__(query)

    decoder = Slow()
    admission = make(decoder, clock=lambda: now[0])
    for number in range(20):
        put(admission, "a", f"a{number}")
    while len(decoder.seen) < 20:
        time.sleep(0.01)
    decoder.gate.clear()
    for number in range(20, 30):
        put(admission, "a", f"a{number}")
    while len(decoder.seen) < 21:
        time.sleep(0.01)
    for number in range(10):
        put(admission, "b", f"b{number}")
    decoder.gate.set()
    while len(decoder.seen) < 40:
        time.sleep(0.01)
    late = decoder.seen[21:]
    assert any(name[0] == "a" for name in late[:4])  # b has no right to be first ten times


def test_what_decoding_raises_is_raised_in_the_loop(make: Any) -> None:
    admission = make(Decoder())
    put(admission, "a", "a0", value=b"bad")
    put(admission, "a", "a1", value=b"worse")
    put(admission, "a", "a2")
    refused, broken, good = (held for held in admission.taken(5.0))
    with pytest.raises(Refused):
        refused.admit(refused.event)
    with pytest.raises(RuntimeError):
        broken.admit(broken.event)
    assert good.admit(good.event).query_id == "a2"


def test_what_is_owned_no_longer_is_neither_decoded_nor_taken(make: Any) -> None:
    decoder = Decoder(open_=False)
    admission = make(decoder)
    for number in range(50):
        put(admission, "a", f"a{number}")
    put(admission, "b", "b0")
    admission.turn(("b",))
    decoder.gate.set()
    assert names(admission) == ["b0"] and len(admission) == 0
    assert len(decoder.seen) <= 2  # the one that was begun with, and b0


def test_the_end_does_not_wait_for_what_is_queued(make: Any) -> None:
    decoder = Decoder(open_=False)
    admission = make(decoder)
    for number in range(100):
        put(admission, "a", f"a{number}")
    threading.Timer(0.2, decoder.gate.set).start()  # a picture in hand is waited for, for a while
    began = time.monotonic()
    admission.close()
    assert time.monotonic() - began < 1.5
    assert len(decoder.seen) <= 1 and names(admission) == []


def test_encoded_bytes_are_bounded(make: Any) -> None:
    decoder = Decoder(open_=False)
    admission = make(decoder, most_bytes=1000)
    put(admission, "a", "a0", value=b"x" * 999)
    assert not admission.full
    put(admission, "a", "a1", value=b"x")
    assert admission.full
    decoder.gate.set()
    names(admission)
    assert not admission.full


def test_a_turn_ends_when_its_seconds_are_spent(make: Any) -> None:
    now = [0.0]
    admission = make(Decoder(), clock=lambda: now[0])
    assert not put(admission, "a", "a0", TEXT)
    now[0] += 10
    assert put(admission, "a", "a1", TEXT) and put(admission, "a", "a2", TEXT)
    assert admission.ahead("a") is Ahead.READY
    assert names(admission) == ["a1"]  # always one, however late it is
    admission.turn(("a",))
    assert names(admission) == ["a2"]


def test_without_threads_nothing_ever_waits(make: Any) -> None:
    admission = make(Decoder(), threads=0, clock=lambda: 1e18)
    assert not put(admission, "a", "a0") and not put(admission, "a", "a1", TEXT)
    assert names(admission) == [] and not admission.full
