"""The loop with pictures that take their time: what else waits, and what stays as it was to the byte."""

import io
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.errors import DeliveryError, Refused
from core.records import Coordinates, Record
from core.types import Modality
from encoders.images import Preprocess, decode, fit
from encoders.vector import VectorEncoder
from stream.codec import image_query, vector_query
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.report import Report
from stream.runner import run

TOPIC = "qshift.queries"
WIDTH = 24


class Pictures(VectorEncoder):
    """A "picture" is 24 floats as bytes; one that starts as `SLOW` does waits at the gate."""

    SLOW = b"slow"

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[str] = set()

    @property
    def modality(self) -> Modality:
        return "image"

    def prepare(self, content: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        if content.startswith(self.SLOW):
            self.gate.wait(20)
            content = content[len(self.SLOW) :]
        if len(content) != 4 * WIDTH:
            raise Refused("image", f"{len(content)} bytes")
        return super().prepare(np.frombuffer(content, np.float32))


@dataclass
class Seeing:
    """A world with pictures."""

    world: Any
    pictures: Pictures

    def stream(self, kinds: str, partition: int = 0, seed: int = 3) -> list[Record]:
        """One record per letter: v a vector, p a picture, s a slow one, x no picture, j no message."""
        rng = np.random.default_rng(seed + partition)
        records = []
        for offset, kind in enumerate(kinds):
            vector = (self.world.items[rng.integers(40)] + 0.1 * rng.normal(size=WIDTH) + 0.1).astype(
                np.float32
            )
            content = {"s": Pictures.SLOW + vector.tobytes(), "x": b"no picture"}.get(kind, vector.tobytes())
            value, headers = vector_query(vector, "") if kind == "v" else image_query(content)
            if kind == "j":
                value, headers = b"{", []
            records.append(Record(Coordinates(TOPIC, partition, offset), value, None, tuple(headers)))
        return records

    def run(
        self, events: list[Any], sink: Any = None, store: Any = None, **kw: Any
    ) -> tuple[Report, Any, Any]:
        sink, store = sink or MemorySink(), store or MemoryStore()
        source = kw.pop("source", None) or MemorySource(events, [TOPIC], step=kw.pop("step", 16))
        world = self.world
        kw = {"poll_seconds": 0.02, **kw}
        observers = kw.pop("observers", [])
        report = run(source, world.pipeline, world.codec, sink, store, observers, world.config, **kw)
        return report, sink, store


@pytest.fixture
def make_seeing(make_world: Any) -> Any:
    made: list[Pictures] = []

    def make(**sections: Any) -> Seeing:
        world, pictures = make_world(**sections), Pictures()
        made.append(pictures)
        world.pipeline.encoders["image"] = pictures
        world.head.means["image"] = world.head.means["vector"]
        return Seeing(world, pictures)

    yield make
    for pictures in made:
        pictures.gate.set()


MIXED = "vvppvxpsvjp" * 20


def dead(sink: MemorySink) -> list[bytes]:
    """Where the refused came from, in order."""
    return [dict(record.headers)["x-source-offset"] for record in sink.records["dead-letters"]]


@pytest.mark.parametrize("decoders", [1, 3])
def test_threads_change_no_byte(make_seeing: Any, answers_of: Any, decoders: int) -> None:
    inline, beside = make_seeing(), make_seeing()
    expected, sink, _ = inline.run(inline.stream(MIXED))
    got, other, _ = beside.run(beside.stream(MIXED), decoders=decoders)
    assert inline.pictures.threads == {threading.current_thread().name}
    assert threading.current_thread().name not in beside.pictures.threads
    assert expected.queries == got.queries == sum(kind not in "xj" for kind in MIXED)
    assert got.state_sha256 == expected.state_sha256
    assert answers_of(other) == answers_of(sink)
    assert dead(other) == dead(sink)


@pytest.mark.parametrize("seed", range(4))
def test_crashes_stay_invisible(make_seeing: Any, answers_of: Any, seed: int) -> None:
    seeing = make_seeing()
    records = seeing.stream(MIXED)
    expected, sink, _ = seeing.run(records)
    events: list[Any] = list(records)
    for place in sorted(np.random.default_rng(seed).choice(len(records), 4, replace=False), reverse=True):
        events.insert(int(place), Crash())
    source, store, crashed = MemorySource(events, [TOPIC], step=7), MemoryStore(), MemorySink()
    while True:
        try:
            report, _, _ = seeing.run([], crashed, store, source=source, decoders=2)
            break
        except Crash:
            source.seek((TOPIC, 0), 0)
    assert report.state_sha256 == expected.state_sha256
    assert answers_of(crashed) == answers_of(sink)


def test_what_was_being_decoded_when_a_delivery_failed_is_read_again(
    make_seeing: Any, answers_of: Any
) -> None:
    class Failing(MemorySink):
        failures = 3

        def flush(self, budget_seconds: float) -> None:
            if self.failures:
                self.failures -= 1
                raise DeliveryError("not acknowledged")

    seeing = make_seeing()
    expected, sink, _ = seeing.run(seeing.stream(MIXED))
    report, failing, _ = seeing.run(seeing.stream(MIXED), Failing(), decoders=2)
    assert report.recoveries == 3
    assert report.state_sha256 == expected.state_sha256
    assert answers_of(failing) == answers_of(sink)


class Live(MemorySource):
    """Never exhausted, and remembers how often it was polled."""

    polls = 0

    def poll(self, budget_seconds: float) -> list[Record]:
        self.polls += 1
        records = super().poll(budget_seconds)
        if not records:
            time.sleep(min(budget_seconds, 0.01))
        return records

    @property
    def exhausted(self) -> bool:
        return False


class Background:
    """A run of a live source in a thread of its own."""

    def __init__(self, seeing: Seeing, events: list[Record] | Live, store: Any = None) -> None:
        self.stop, self.sink, self.store = threading.Event(), MemorySink(), store or MemoryStore()
        self.source = events if isinstance(events, Live) else Live(events, [TOPIC], step=64)
        options = {"source": self.source, "stop": self.stop, "decoders": 1}
        self.thread = threading.Thread(target=seeing.run, args=([], self.sink, self.store), kwargs=options)
        self.thread.start()

    def until(self, condition: Any, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.01)

    def end(self) -> float:
        """Stops the run; how long it took."""
        began = time.monotonic()
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        return time.monotonic() - began


BRISK = {"batch": {"size": 16, "floor": 8, "linger_seconds": 0.05}}


def test_others_are_answered_while_pictures_are_decoded_and_the_end_is_near(
    make_seeing: Any, answers_of: Any
) -> None:
    seeing = make_seeing(**BRISK)
    seeing.pictures.gate.clear()
    held = seeing.stream("vvvv" + "s" * 200 + "vvvv")
    others = seeing.stream("v" * 100, partition=1)
    live = Background(seeing, [*held, *others])
    # All of the other partition, and what stands before the first picture in this one; not what is behind.
    live.until(lambda: len(live.sink.records["answers"]) >= 104)
    polls = live.source.polls
    live.until(lambda: live.source.polls > polls + 5)  # the group would keep this worker
    assert live.end() < 2
    assert len(live.sink.records["answers"]) == 104
    checkpoint = live.store.load((TOPIC, 0))
    assert checkpoint is not None and checkpoint.next_offset == 4  # the rest is read again
    seeing.pictures.gate.set()
    again = Background(seeing, [*held, *others], live.store)
    again.until(lambda: len(again.sink.records["answers"]) >= 204)
    again.end()
    assert len(answers_of(live.sink).keys() | answers_of(again.sink).keys()) == 308
    assert not answers_of(live.sink).keys() & answers_of(again.sink).keys()


class Decoding(Pictures):
    """Really decodes: the mean colour of a picture, eight times."""

    def prepare(self, content: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        colour = fit(decode(content, 224), Preprocess()).mean((1, 2))
        return VectorEncoder.prepare(self, np.tile(colour + 1, WIDTH // 3))


def peak_mib() -> float:
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_a_hundred_small_files_at_the_cap_cost_others_little(make_seeing: Any, answers_of: Any) -> None:
    """One-colour WEBPs of 700 bytes that unpack to 4096 x 4096 pixels, with other queries among them."""
    buffer = io.BytesIO()
    Image.new("RGB", (4096, 4096), (9, 8, 7)).save(buffer, "WEBP", lossless=True)
    value, headers = image_query(buffer.getvalue(), content_type="image/webp")
    assert len(value) < 1500
    seeing = make_seeing(**BRISK)
    seeing.pictures = seeing.world.pipeline.encoders["image"] = Decoding()
    flooded = seeing.stream("v" + "pppppppppv" * 10)
    flooded = [
        record if seeing.world.codec.decode(record).modality == "vector"
        else replace(record, value=value, headers=tuple(headers))
        for record in flooded
    ]  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")  # peaks begin here
    before = peak_mib()
    live = Background(seeing, [*flooded, *seeing.stream("v" * 100, 1)])
    began = time.monotonic()
    live.until(lambda: sum(b"/1/" in key for key in answers_of(live.sink)) == 100)
    assert time.monotonic() - began < 5  # the other partition, whole
    live.until(lambda: f"{TOPIC}/0/10".encode() in answers_of(live.sink), 60)  # behind nine of them
    assert live.end() < 2
    done = len(answers_of(live.sink)) - 100
    assert 10 <= done < 60, "the end came before all were decoded"
    assert peak_mib() - before < 4 * 64 + 100
    checkpoint = live.store.load((TOPIC, 0))
    assert checkpoint is not None and 0 < checkpoint.next_offset <= done + 1
    assert {f"{TOPIC}/0/{offset}".encode() for offset in range(checkpoint.next_offset)} <= answers_of(
        live.sink
    ).keys()


def test_polling_pauses_while_too_much_waits(make_seeing: Any) -> None:
    seeing = make_seeing(**BRISK, limits={"pending_queries": 64})
    seeing.pictures.gate.clear()
    live = Background(seeing, seeing.stream("s" * 1000))
    live.until(lambda: live.source.polls > 20)
    assert live.source._next <= 64 + 64
    seeing.pictures.gate.set()
    live.until(lambda: len(live.sink.records["answers"]) == 1000, 30)
    live.end()


def test_a_partition_that_was_lost_meanwhile_is_not_answered(make_seeing: Any) -> None:
    class Losing(Live):
        lost = False

        def assignment(self) -> Any:
            return frozenset({(TOPIC, 1)}) if self.lost else super().assignment()

    seeing = make_seeing(**BRISK)
    seeing.pictures.gate.clear()
    source = Losing([*seeing.stream("s" * 20), *seeing.stream("v" * 20, 1)], [TOPIC], step=64)
    live = Background(seeing, source)
    live.until(lambda: len(live.sink.records["answers"]) == 20)
    source.lost, polls = True, source.polls
    live.until(lambda: source.polls > polls + 3)
    seeing.pictures.gate.set()
    time.sleep(0.2)
    live.end()
    assert all(record.key.startswith(f"{TOPIC}/1/".encode()) for record in live.sink.records["answers"])
    assert live.store.load((TOPIC, 0)) is None


def test_a_backlog_that_waits_only_for_its_turn_is_not_cut_short(make_seeing: Any) -> None:
    """Where many records are ready, full batches are worth more than a time-out that ends at every turn."""
    seeing = make_seeing(batch={"size": 16, "floor": 8, "linger_seconds": 0.0})
    records = seeing.stream("s" + "v" * 160)
    sizes: list[int] = []

    class Sizes:
        def observe(self, outcome: Any) -> None:
            if outcome.batch.modality == "vector":
                sizes.append(len(outcome.batch))

        def judge(self, judgement: Any) -> None: ...

        def refuse(self, refusal: Any) -> None: ...

    report, _, _ = seeing.run(records, step=200, decoders=1, observers=[Sizes()])
    assert report.queries == 161
    assert sizes == [16] * 10
