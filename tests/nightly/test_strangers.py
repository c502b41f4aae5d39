"""R5 and R6 through a running service: what strangers send costs the others no more than two seconds."""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bombs import MOST_BYTES, bombs
from PIL import Image
from resident import resident_mib

from stream.client import polled, reader_of
from stream.codec import image_query
from stream.sink import KafkaSink
from tests.nightly.counts import Told, count, say
from tests.stream import test_codec

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

root = test_codec.root
DELAY_SECONDS, GROWTH_MIB = 2.0, 150
DECODER_MIB = 256 + 24 * 16
"""What a decoder's process may take at the default caps; `encoders/decoding.py`."""
QUIET_SECONDS = 20.0
EVERY_SECONDS, PICTURE_EVERY = 0.25, 4
"""Honest queries: vectors, and a small picture for so many of them."""
THEIRS, OURS = 0, 1
"""Partitions: of the strangers, of the honest. What stands behind a bomb in its own line waits for it."""
WAIT_SECONDS = 900.0


class Honest(threading.Thread):
    """Queries at a modest pace, all the time."""

    def __init__(self, site: Any, messages: Any) -> None:
        super().__init__(daemon=True)
        self._site, self._messages, self._over = site, messages(2_000)[0], threading.Event()
        self.sent: dict[bytes, tuple[str, float]] = {}
        """Key -> what it is, and when it was sent, in seconds."""

    def run(self) -> None:
        with closing(KafkaSink(self._site.servers, self._site.kafka)) as sink:
            for number in itertools.count():
                if self._over.wait(EVERY_SECONDS):
                    break
                self._send(sink, "vector", *self._messages[number % len(self._messages)])
                if number % PICTURE_EVERY == 0:
                    self._send(sink, "picture", *picture(number))
            sink.flush(60.0)

    def _send(self, sink: KafkaSink, what: str, value: bytes, headers: Any) -> None:
        at, sent = time.time(), sink.emit_to(
            self._site.kafka.queries, value, None, headers, partition=OURS
        )  # fmt: skip
        self.sent[str(sent.coordinates()).encode()] = what, at

    def end(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join(60)


def picture(number: int) -> tuple[bytes, Any]:
    out = io.BytesIO()
    drawn = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(out, "PNG")
    return image_query(out.getvalue())


@contextmanager
def watched(worker: Any) -> Iterator[dict[str, float]]:
    """The most that the service and its decoders hold at once, in MiB."""
    most, over = {"service": 0.0, "decoder": 0.0}, threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            most["service"] = max(most["service"], resident_mib(worker.pid))
            for child in children(worker.pid):
                try:
                    most["decoder"] = max(most["decoder"], resident_mib(child))
                except OSError:  # it has ended
                    continue

    beside = threading.Thread(target=look)
    beside.start()
    try:
        yield most
    finally:
        over.set()
        beside.join()


def children(process: int) -> list[int]:
    found = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return list(map(int, " ".join(found).split()))


def used(process: int) -> list[float]:
    """Seconds of CPU of the service, and of its decoders that live."""

    def seconds(one: int) -> float:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    return [seconds(process), sum(map(seconds, children(process)))]


@pytest.fixture
def beside(broker: Any, uneven: Any, clip_world: Path, messages: Any, root: Path) -> Iterator[Any]:
    """beside(what, hostile, count): sends those of the strangers, and holds the honest to the bars."""
    site = uneven(broker, base=str(clip_world / "base"), gallery=str(clip_world / "gallery"),
                  limits={"reference_root": str(root)})  # fmt: skip
    worker, honest, seen = site.worker(), Honest(site, messages), Seen(site)

    def run(what: str, hostile: Iterator[tuple[str, bytes, Any]], number: int) -> None:
        site.wait(lambda: "serving" in worker.output(), 300)
        honest.start()
        site.wait(lambda: len(seen.look().answered) > 20, 300)
        began, before = time.time(), resident_mib(worker.pid)
        time.sleep(QUIET_SECONDS)
        quiet, told, spent = time.time(), Told(what, number), used(worker.pid)
        theirs = set[bytes]()
        with watched(worker) as most, closing(KafkaSink(site.servers, site.kafka)) as sink:
            for topic, value, headers in hostile:
                waits = sink.emit_to(
                    topic, value, None, headers, partition=THEIRS if "queries" in topic else 0
                )
                if topic == site.kafka.queries:
                    theirs.add(str(waits.coordinates()).encode())
            sink.flush(60.0)
            deadline, done = time.monotonic() + WAIT_SECONDS, 0
            while done < len(theirs):
                assert time.monotonic() < deadline, f"{done} of {len(theirs)} done\n{worker.output()[-4000:]}"
                assert worker.code is None, worker.output()[-4000:]
                time.sleep(1.0)
                done = len(theirs & (seen.look().answered.keys() | seen.refused))
                told(done)
            took = time.time() - quiet
            spent = [seconds - began for seconds, began in zip(used(worker.pid), spent, strict=True)]
        honest.end()
        answers, deadline = seen.answered, time.monotonic() + 120
        while honest.sent.keys() - answers.keys():
            assert time.monotonic() < deadline, worker.output()[-4000:]
            seen.look()
        delays: dict[tuple[str, bool], list[float]] = {}
        for key, (kind, at) in honest.sent.items():
            if at >= began:
                delays.setdefault((kind, at >= quiet), []).append(answers[key] - at)
        taken = len(theirs & answers.keys())
        say(
            f"{what}: {len(theirs)} queries, {taken} answered, the others refused, in {took:.0f} s; "
            f"load {os.getloadavg()[0]:.1f}; service {before:.0f} MiB, {most['service'] - before:+.1f} at "
            f"most; a decoder {most['decoder']:.0f} MiB at most"
        )
        for (kind, loud), found in sorted(delays.items()):
            beside_what = what if loud else "nothing"
            say(
                f"{len(found)} honest queries of kind {kind} beside {beside_what}: answered after "
                f"{np.median(found):.2f} s, at most {max(found):.2f} s"
            )
        say(f"CPU: service {spent[0]:.1f} s, decoder {spent[1]:.1f} s of {took:.0f} s")
        worker.terminate(60.0)
        assert not honest.sent.keys() & seen.refused
        assert most["service"] - before <= GROWTH_MIB and most["decoder"] <= DECODER_MIB
        for kind in ("picture", "vector"):
            assert max(delays[kind, True]) - max(delays[kind, False]) <= DELAY_SECONDS, kind

    yield run, site
    honest.end()
    seen.close()


class Seen:
    """What the service has said so far; each record is read once."""

    def __init__(self, site: Any) -> None:
        self._client, self._site = site.client(), site
        self._letters = reader_of(site.servers, site.kafka.security, site.kafka.dead_letters)
        self.answered: dict[bytes, float] = {}
        """Key -> when its first answer was sent, in seconds."""
        self.refused: set[bytes] = set()
        """Keys that answers to them would have had."""

    def look(self) -> Seen:
        for record in self._client.answers(0.1):
            self.answered.setdefault(record.key or b"", record.timestamp_ms / 1000)
        for record in polled(self._letters, 0.1):
            head = dict(record.headers)
            self.refused.add(b"/".join(head[f"x-source-{one}"] for one in ("topic", "partition", "offset")))
        return self

    def close(self) -> None:
        self._client.close()
        self._letters.close()


def test_bombs_beside_honest_queries(beside: Any) -> None:
    """R6. Below the caps of bytes and pixels: each is decoded, or refused, whatever it costs."""
    run, site = beside
    corpus = list(bombs())
    for name, value in corpus:
        assert len(value) <= MOST_BYTES, f"{name} has {len(value)} bytes"
    number = count("bombs")
    hostile = (
        (site.kafka.queries, value, image_query(value, content_type="image/png")[1])
        for _, value in itertools.islice(itertools.cycle(corpus), number)
    )
    run("bombs", hostile, number)


def test_envelopes_beside_honest_queries(beside: Any) -> None:
    """R5. Messages with a few bytes changed, of all kinds, and labels among them."""
    run, site = beside
    number = count("envelopes_served")
    topics = {test_codec.TOPICS.queries: site.kafka.queries, test_codec.TOPICS.labels: site.kafka.labels}
    hostile = ((topics[one.at.topic], one.value, one.headers) for one in test_codec.mutants(number, seed=55))
    run("mutated envelopes", hostile, number)
