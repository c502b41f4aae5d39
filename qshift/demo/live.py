"""`qshift demo`: the whole loop for real, on pictures from packages and an embedded Apache Kafka.

Emoji are searched by text, by sketch and by bad photo. A batch of queries is sent when the
last one is answered, as users would; labels of a sampled share come later, on their own topic.
"""

from __future__ import annotations

import json
import logging
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from core.config import Config
from core.errors import QshiftError
from qshift.demo.catalogue import Catalogue, prepare_catalogue
from qshift.demo.peak_memory import PeakMemory
from qshift.demo.traffic import Traffic
from qshift.replay.offline import replay
from qshift.replay.schedule import Item, Schedule, hash_answers
from qshift.replay.table import PhaseRow, as_json, render
from qshift.service import Service
from qshift.terminal.bars import bars, reporter
from stream.broker import Broker
from stream.client import QueryClient, read_all
from stream.report import Report
from stream.states import entry_from_bytes

BURST = 64
"""Queries that are sent together and wait for their answers: a full batch."""


@dataclass(slots=True)
class DemoOptions:
    """What `qshift demo` can be told; see its help."""

    data: Path | None = None
    cache: Path = Path("qshift-data/demo")
    short: bool = False
    keep: bool = False
    verify: bool = False
    json_file: Path | None = None
    seed: int = 0
    port: int = 8765
    queries: int | None = None


def demo(options: DemoOptions, console: Console, started: float) -> int:
    """Runs the demo; returns the exit status. `started` is when the command was, by the monotonic clock."""
    # The client warns of every moment in which a topic or a connection is being made.
    logging.getLogger("kafka").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _interrupt)
    with PeakMemory() as memory, tempfile.TemporaryDirectory(prefix="qshift-demo-") as folder:
        broker = Broker(Path(folder) / "kafka", parent_bound=True)
        try:
            with bars(console) as progress:
                task = progress.add_task("Apache Kafka", total=None)
                with ThreadPoolExecutor(1) as pool:  # its jars come while the base is fitted
                    kafka = pool.submit(
                        broker.start, lambda text: progress.update(task, description=f"Apache Kafka: {text}")
                    )
                    catalogue = prepare_catalogue(options.data, options.cache, reporter(progress))
                    kafka.result()
                broker.ready(60)
                progress.update(task, description="Apache Kafka is ready", total=1, completed=1)
            config = demo_config(catalogue, broker.bootstrap_servers, options)
            schedule = catalogue.schedule(_queries(options), options.seed)
            rows, traffic, report = _live(config, catalogue, schedule, options, console)
            answers_sha256 = hash_answers({at.offset: value for at, value in traffic.answers.items()})
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
) -> tuple[list[PhaseRow], Traffic, Report]:
    """Streams the schedule through a service; the towers are free again when it returns."""
    title = f"Searching {len(catalogue.gallery):,} {catalogue.noun}"
    service = Service(config, catalogue.picture, title, catalogue.attribution)
    ended = False
    try:
        service.start()
        console.print(f"Live page: [link]{service.url}[/link]  ·  metrics: {service.url}/metrics")
        service.wait_until_ready(30.0)
        traffic, seconds = _stream(service, config, schedule, console)
        rows = _rows(schedule, traffic, seconds, service)
        render(rows, title).print(console)
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
    return rows, traffic, report


def _verify(
    config: Config, schedule: Schedule, answers_sha256: str, report: Report, console: Console
) -> bool:
    """Replays the schedule without Kafka at the journalled boundaries and compares hashes."""
    journal = read_all(config.kafka.bootstrap_servers, config.kafka.journal, security=config.kafka.security)
    again = replay(config, schedule, [entry_from_bytes(r.value) for r in journal if r.value], console)
    same = again.answers_sha256 == answers_sha256 and again.state_sha256 == report.state_sha256
    outcome = "[green]byte-identical[/]" if same else "[red]DIFFER[/]"
    console.print(f"Replay without Kafka: answers and state {outcome}")
    return same


def demo_config(catalogue: Catalogue, bootstrap_servers: str, options: DemoOptions) -> Config:
    """The service's defaults with the demo's paths; bursts are whole batches: the linger hardly matters."""
    return Config.model_validate(
        {
            "base": catalogue.base,
            "gallery": catalogue.gallery_folder,
            "seed": options.seed,
            "batch": {"linger_seconds": 5.0},
            "kafka": {"bootstrap_servers": bootstrap_servers},
            "http": {"port": options.port},
        }
    )


def _stream(
    service: Service, config: Config, schedule: Schedule, console: Console
) -> tuple[Traffic, dict[str, float]]:
    """Sends all phases and the labels; returns the traffic and the seconds of each phase."""
    client = QueryClient(config.kafka.bootstrap_servers, config.kafka)
    traffic, seconds = Traffic(client, config.kafka), {}
    try:
        with bars(console) as progress:
            for phase in schedule.phases:
                task = progress.add_task(phase.name, total=phase.queries)
                # An answer leaves before its batch is learned from: only then is the last phase over.
                service.wait_for_queries(traffic.sent, 30.0)
                service.observers.history.mark(phase.name)
                began = time.monotonic()
                _phase(traffic, schedule.items(phase), service, lambda new, t=task: progress.advance(t, new))  # type: ignore[misc]
                seconds[phase.name] = time.monotonic() - began
        traffic.finish()
        service.wait_for_labels(20.0)
    finally:
        client.close()
    return traffic, seconds


def _phase(traffic: Traffic, items: Iterator[Item], service: Service, advance: Callable[[int], None]) -> None:
    """One burst waits at most; the next one is drawn while the service works on it."""
    burst = list(islice(items, BURST))
    while burst:
        traffic.send(burst)
        burst = list(islice(items, BURST))
        while traffic.waiting:
            service.check()
            advance(traffic.receive(0.05))


def _rows(
    schedule: Schedule, traffic: Traffic, seconds: Mapping[str, float], service: Service
) -> list[PhaseRow]:
    rows = []
    for phase in schedule.phases:
        inside = schedule.within(phase)
        quality = service.observers.judged.summary(inside)
        latency = np.array([ms for at, ms in traffic.latency_ms.items() if inside(at)])
        rows.append(
            PhaseRow(
                phase.name, phase.modality, len(latency), quality.n,
                quality.map_frozen, quality.map_adapted, quality.map_served,
                quality.diff, quality.low, quality.high, quality.r1_frozen, quality.r1_served,
                float(np.percentile(latency, 50)), float(np.percentile(latency, 95)),
                len(latency) / seconds[phase.name],
            )
        )  # fmt: skip
    return rows


def _wait_for_ctrl_c() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
