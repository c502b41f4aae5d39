"""`qshift demo`: the whole loop for real, on pictures from packages and an embedded Apache Kafka.

Emoji are searched by text, by sketch and by bad photo. The producer keeps at most one batch waiting, as
users would who wait for their answers; labels of a sampled share come later, on their own topic.
"""

from __future__ import annotations

import json
import logging
import signal
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    Progress,
)

from app.bars import bars, reporter
from app.catalogue import Catalogue, prepare_catalogue
from app.memory import PeakMemory
from app.replay import replay
from app.schedule import Item, Phase, Schedule, hash_answers
from app.service import Service
from app.table import PhaseRow, as_json, render
from core.config import Config
from core.errors import QshiftError
from core.types import Coordinates
from stream import codec
from stream.broker import Broker
from stream.client import QueryClient, read_all
from stream.kafka import Sent
from stream.runner import Report

WINDOW = 64
"""Queries that wait at most: one batch. The next is drawn and sent while the service learns from this one."""
LABEL_DELAY = 96
"""A label is sent when so many later answers have come."""


@dataclass(slots=True)
class DemoOptions:
    data: Path | None = None
    cache: Path = Path("qshift-data/demo")
    short: bool = False
    keep: bool = False
    verify: bool = False
    json_file: Path | None = None
    seed: int = 0
    port: int = 8765
    queries: int | None = None


@dataclass(slots=True)
class _Seen:
    """What the client has sent and got back."""

    sent_ms: dict[int, int] = field(default_factory=dict)
    items: dict[int, Item] = field(default_factory=dict)
    answers: dict[int, bytes] = field(default_factory=dict)
    latency_ms: dict[int, float] = field(default_factory=dict)
    labels_due: deque[tuple[int, bytes, bytes]] = field(default_factory=deque)
    phase_seconds: dict[str, float] = field(default_factory=dict)


def demo(options: DemoOptions, console: Console) -> int:
    """Runs the demo; returns the exit status."""
    # The client warns of every moment in which a topic or a connection is being made.
    logging.getLogger("kafka").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    with PeakMemory() as memory, tempfile.TemporaryDirectory(prefix="qshift-demo-") as folder:
        broker = Broker(Path(folder) / "kafka", parent_bound=True)
        try:
            with bars(console) as progress:
                task = progress.add_task("Apache Kafka", total=None)
                broker.start(lambda text: progress.update(task, description=f"Apache Kafka: {text}"))
                catalogue = prepare_catalogue(options.data, options.cache, reporter(progress))
                broker.ready(60)
                progress.update(task, description="Apache Kafka is ready", total=1, completed=1)
            config = demo_config(catalogue, broker.bootstrap_servers, options)
            schedule = catalogue.schedule(_queries(options), options.seed)
            rows, seen, report = _live(config, catalogue, schedule, options, console)
            answers_sha256 = hash_answers(seen.answers)
            status = 0
            if options.verify:
                same = _verify(config, schedule, answers_sha256, report, console)
                status = 0 if same else 1
        finally:
            broker.stop()
    seconds = time.monotonic() - started
    console.print(f"{seconds:.0f} s, peak memory of all processes {memory.peak_bytes / 2**30:.1f} GiB")
    if options.json_file:
        document = {
            "phases": as_json(rows), "answers_sha256": answers_sha256, "state_sha256": report.state_sha256,
            "seconds": round(seconds, 1), "peak_rss_bytes": memory.peak_bytes,
        }  # fmt: skip
        options.json_file.write_text(json.dumps(document, indent=1))
    return status


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends the demo as Ctrl-C does: service and broker are stopped cleanly."""
    raise KeyboardInterrupt


def _queries(options: DemoOptions) -> int:
    return options.queries or (128 if options.short else 640)


def _live(
    config: Config, catalogue: Catalogue, schedule: Schedule, options: DemoOptions, console: Console
) -> tuple[list[PhaseRow], _Seen, Report]:
    """Streams the schedule through a service; the towers are free again when it returns."""
    title = f"Searching {len(catalogue.gallery):,} {catalogue.noun}"
    service = Service(config, catalogue.picture, title, catalogue.attribution)
    ended = False
    try:
        service.start()
        console.print(f"Live page: [link]{service.url}[/link]  ·  metrics: {service.url}/metrics")
        seen = _stream(service, config, schedule, config.kafka.bootstrap_servers, console)
        rows = _rows(schedule, seen, service)
        console.print(render(rows, title))
        console.print(catalogue.attribution, style="dim")
        if options.keep:
            console.print(f"--keep: everything stays up, the page at {service.url}; Ctrl-C ends it")
            _wait_for_ctrl_c()
        ended = True
    finally:
        try:
            report = service.stop()
        except QshiftError:
            if ended:
                raise
    return rows, seen, report


def _verify(
    config: Config, schedule: Schedule, answers_sha256: str, report: Report, console: Console
) -> bool:
    """Replays the schedule without Kafka at the journalled boundaries and compares hashes."""
    journal = read_all(config.kafka.bootstrap_servers, config.kafka.journal)
    again = replay(config, schedule, [r.value for r in journal if r.value], console)
    same = again.answers_sha256 == answers_sha256 and again.state_sha256 == report.state_sha256
    outcome = "[green]byte-identical[/]" if same else "[red]DIFFER[/]"
    console.print(f"Replay without Kafka: answers and state {outcome}")
    return same


def demo_config(catalogue: Catalogue, bootstrap_servers: str, options: DemoOptions) -> Config:
    """The service's defaults, with the demo's paths; the linger only matters at the end of a phase."""
    return Config.model_validate(
        {
            "base": catalogue.base,
            "gallery": catalogue.gallery_folder,
            "seed": options.seed,
            "batch": {"linger_seconds": 1.0},
            "kafka": {"bootstrap_servers": bootstrap_servers},
            "http": {"port": options.port},
        }
    )


def _stream(
    service: Service, config: Config, schedule: Schedule, bootstrap_servers: str, console: Console
) -> _Seen:
    client, seen = QueryClient(bootstrap_servers, config.kafka), _Seen()
    try:
        with bars(console) as progress:
            for phase in schedule.phases:
                _phase(client, config, schedule, phase, service, seen, progress)
            while seen.labels_due:
                _, value, key = seen.labels_due.popleft()
                client.label(value, key)
            client.flush()
            service.wait_for_labels(20.0)
    finally:
        client.close()
    return seen


def _phase(
    client: QueryClient, config: Config, schedule: Schedule, phase: Phase, service: Service,
    seen: _Seen, progress: Progress,
) -> None:  # fmt: skip
    task = progress.add_task(phase.name, total=phase.queries)
    # An answer leaves before its batch is learned from: only then is the last phase over.
    service.wait_for_queries(len(seen.items), 30.0)
    service.observers.history.mark(phase.name)
    began, first, waiting = time.monotonic(), len(seen.items), 0
    ready: deque[Item] = deque()
    source, sent_all = schedule.items(phase), False
    sent: list[Sent] = []
    while not sent_all or waiting:
        service.check()
        while not sent_all and waiting + config.batch.size <= WINDOW:
            ready.extend(islice(source, config.batch.size))
            sent_all = len(ready) < config.batch.size
            while ready:
                item = ready.popleft()
                offset = len(seen.items)
                seen.items[offset] = item
                seen.sent_ms[offset] = time.time_ns() // 1_000_000
                sent.append(client.send(item.value, item.headers))
                waiting += 1
            if sent:
                last = sent[-1].coordinates()
                assert last.offset == len(seen.items) - 1, "another producer writes to the demo's topic"
        for record in client.answers(0.1):
            answer = codec.decode_answer(record.value or b"")
            offset = answer.source.offset
            if offset in seen.answers:
                continue
            seen.answers[offset] = record.value or b""
            seen.latency_ms[offset] = record.timestamp_ms - seen.sent_ms[offset]
            waiting -= 1
            progress.update(task, completed=len(seen.answers) - first)
            if answer.label_wanted:
                at = Coordinates(config.kafka.queries, 0, offset)
                value = codec.label(at, seen.items[offset].label)
                seen.labels_due.append((len(seen.answers) + LABEL_DELAY, value, str(at).encode()))
        while seen.labels_due and seen.labels_due[0][0] <= len(seen.answers):
            _, value, key = seen.labels_due.popleft()
            client.label(value, key)
    seen.phase_seconds[phase.name] = time.monotonic() - began


def _rows(schedule: Schedule, seen: _Seen, service: Service) -> list[PhaseRow]:
    rows = []
    for phase in schedule.phases:
        offsets = [o for o in seen.answers if schedule.phase_of(o) == phase.name]
        quality = service.observers.judged.summary(schedule.within(phase))
        latency = np.array([seen.latency_ms[o] for o in offsets])
        rows.append(
            PhaseRow(
                phase.name, phase.modality, len(offsets), quality.n,
                quality.map_frozen, quality.map_adapted, quality.map_served,
                quality.diff, quality.low, quality.high, quality.r1_frozen, quality.r1_served,
                float(np.percentile(latency, 50)), float(np.percentile(latency, 95)),
                len(offsets) / seen.phase_seconds[phase.name],
            )
        )  # fmt: skip
    return rows


def _wait_for_ctrl_c() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
