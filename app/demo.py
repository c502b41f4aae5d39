"""`qshift demo`: the whole loop for real, on pictures from packages and an embedded Apache Kafka.

Emoji are searched by text, by sketch and by bad photo. The producer keeps at most one batch waiting, as
users would who wait for their answers; labels of a sampled share come later, on their own topic.
"""

from __future__ import annotations

import json
import logging
import resource
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
from app.replay import replay
from app.schedule import Item, Phase, Schedule, hash_answers
from app.service import Service
from app.table import PhaseRow, as_json, render
from core.config import Config
from core.types import Coordinates
from stream import codec
from stream.broker import Broker
from stream.client import QueryClient, read_all
from stream.kafka import Sent, ensure_topics
from stream.topics import topic_settings

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
    started = time.monotonic()
    queries = options.queries or (128 if options.short else 640)
    with tempfile.TemporaryDirectory(prefix="qshift-demo-") as folder:
        broker = Broker(Path(folder) / "kafka", parent_bound=True)
        with bars(console) as progress:
            task = progress.add_task("Apache Kafka", total=None)
            broker.start(lambda text: progress.update(task, description=f"Apache Kafka: {text}"))
            catalogue = prepare_catalogue(options.data, options.cache, reporter(progress))
            broker.ready(60)
            progress.update(task, description="Apache Kafka is ready", total=1, completed=1)
        config = demo_config(catalogue, broker.bootstrap_servers, options)
        ensure_topics(broker.bootstrap_servers, topic_settings(config.kafka))
        schedule = catalogue.schedule(queries, options.seed)
        service = Service(
            config,
            catalogue.picture,
            f"Searching {len(catalogue.gallery):,} {catalogue.noun}",
            catalogue.attribution,
        )
        try:
            service.start()
            console.print(f"Live page: [link]{service.url}[/link]  ·  metrics: {service.url}/metrics")
            seen = _stream(service, config, schedule, broker.bootstrap_servers, console)
            if options.keep:
                console.print("--keep: everything stays up; Ctrl-C ends it")
                _wait_for_ctrl_c()
        finally:
            report = service.stop()
        rows = _rows(schedule, seen, service)
        console.print(render(rows, f"Searching {len(catalogue.gallery):,} {catalogue.noun}"))
        console.print(catalogue.attribution, style="dim")
        answers_sha256 = hash_answers(seen.answers)
        status = 0
        del service  # its copy of the towers would stand beside that of the replay
        if options.verify:
            journal = read_all(broker.bootstrap_servers, config.kafka.journal)
            again = replay(config, schedule, journal=[r.value for r in journal if r.value], console=console)
            same = again.answers_sha256 == answers_sha256 and again.state_sha256 == report.state_sha256
            status = 0 if same else 1
            console.print(
                "Replay without Kafka: answers and state "
                + ("[green]byte-identical[/]" if same else "[red]DIFFER[/]")
            )
        broker.stop()
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    console.print(f"{seconds:.0f} s, peak memory {peak / 2**30:.1f} GiB")
    if options.json_file:
        document = {
            "phases": as_json(rows), "answers_sha256": answers_sha256,
            "state_sha256": report.state_sha256, "seconds": round(seconds, 1), "peak_rss_bytes": peak,
        }  # fmt: skip
        options.json_file.write_text(json.dumps(document, indent=1))
    return status


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
