"""`qshift profile`: what a batch costs, adapted against frozen, and the service against the bare loop.

CPU time of the whole process, not wall time: other users of the machine do not count. Everything that is
compared is interleaved, batch by batch or round by round, and ratios are medians of such pairs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from core.config import Config
from core.records import Coordinates, Record
from core.types import Query, QueryBatch
from qshift.build import Engine, engine
from qshift.demo.catalogue import Catalogue, prepare_catalogue
from qshift.demo.profile_service import service_seconds
from qshift.methods import with_method
from qshift.replay.schedule import Item, Phase
from qshift.terminal.bars import bars, reporter
from qshift.terminal.sheet import Head, Sheet
from stream.broker import Broker
from stream.session import Session

WARM = 3
"""Batches before the clock counts: first calls allocate and choose kernels."""
METHODS = ("frozen", "default")
STREAMS = {"clean": "clean", "shifted": "noise"}
"""Name of a stream -> the shift of all its pictures."""
ROUNDS = 3
"""Of bare loop and service in turn."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of a batch by stream, method and stage, and three ratios of CPU time.

    Figures: docs/lab/performance.md.
    """

    batch: int
    batches: int
    seconds: dict[str, dict[str, dict[str, float]]]
    clean_ratio: float
    """Default over frozen on clean queries."""
    shifted_ratio: float
    """The same on noisy ones."""
    service_ratio: float
    """Throughput per CPU second: service on Kafka over bare loop, default method, noisy queries."""


class Bench:
    """One method that answers batches in turn, and what each stage of each batch took."""

    def __init__(self, built: Engine) -> None:
        self.built = built
        self.session = Session(built.pipeline, "image")
        self.laps: list[dict[str, float]] = []

    def batch(self, items: Sequence[Item], number: int) -> float:
        """Decodes, answers and learns; returns CPU seconds."""
        began = time.process_time()
        rows = [self._query(item, number * len(items) + row) for row, item in enumerate(items)]
        decoded = time.process_time() - began
        answered = self.session.answer(QueryBatch("0:image", number, "image", tuple(rows)))
        outcome = self.session.learn(answered)
        total = time.process_time() - began
        self.laps.append({"decode": decoded, **outcome.seconds, "total": total})
        return total

    def _query(self, item: Item, offset: int) -> Query:
        at = Coordinates(self.built.config.kafka.queries, 0, offset)
        query = self.built.codec.decode(Record(at, item.value, None, item.headers))
        if not isinstance(query, Query):
            raise TypeError(f"expected a query, got {query}")
        return self.built.pipeline.admit(query)

    def medians(self) -> dict[str, float]:
        """Seconds by stage, without the warm batches. Stages are wall time, decode and total CPU time."""
        return {stage: float(np.median([lap[stage] for lap in self.laps[WARM:]])) for stage in self.laps[-1]}


def profile(batches: int, cache: Path, json_file: Path | None, console: Console) -> int:
    """Measures, prints stages and ratios, and writes them as JSON where asked."""
    with bars(console) as progress:
        catalogue = prepare_catalogue(None, cache, reporter(progress))
    config = Config.model_validate({"base": catalogue.base, "gallery": catalogue.gallery_folder})
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    ratios: dict[str, float] = {}
    for stream, shift in STREAMS.items():
        with console.status(f"{stream} queries: frozen and default in turn"):
            items = _items(catalogue, shift, (batches + WARM) * config.batch.size)
            seconds[stream], ratios[stream] = paired(config, items)
    with console.status("bare loop and service on Kafka in turn"):
        service = _service_ratio(catalogue, config, items)
    found = Profile(config.batch.size, batches, seconds, ratios["clean"], ratios["shifted"], service)
    table(found).print(console)
    console.print(f"clean_ratio    default / frozen, clean queries       {found.clean_ratio:.2f}")
    console.print(f"shifted_ratio  default / frozen, noisy queries       {found.shifted_ratio:.2f}")
    console.print(f"service_ratio  service / bare loop, queries per CPU  {found.service_ratio:.2f}")
    if json_file:
        json_file.write_text(json.dumps(asdict(found), indent=1))
    return 0


def paired(config: Config, items: Sequence[Item]) -> tuple[dict[str, dict[str, float]], float]:
    """Both methods on the same batches, one after the other: stages of each, median ratio of the pairs."""
    benches = {name: Bench(engine(with_method(config, name))) for name in METHODS}
    ratios, size = [], config.batch.size
    for number in range(len(items) // size):
        rows = items[number * size : (number + 1) * size]
        # Who goes first changes: a cache that is warm, or a clock that falls, helps neither.
        order = METHODS if number % 2 else METHODS[::-1]
        took = {name: benches[name].batch(rows, number) for name in order}
        ratios.append(took["default"] / took["frozen"])
    return {name: bench.medians() for name, bench in benches.items()}, float(np.median(ratios[WARM:]))


def table(found: Profile) -> Sheet:
    """Milliseconds by stage."""
    columns = [(stream, method) for stream in STREAMS for method in METHODS]
    sheet = Sheet(
        f"ms a batch of {found.batch}, median of {found.batches}",
        [Head("stage", left=True), *(Head(f"{stream}\n{method}") for stream, method in columns)],
    )
    stages = dict.fromkeys(stage for stream, method in columns for stage in found.seconds[stream][method])
    for stage in [*(stage for stage in stages if stage != "total"), "total"]:
        sheet.add(stage, *(f"{1000 * found.seconds[s][m].get(stage, 0.0):.0f}" for s, m in columns))
    return sheet


def _items(catalogue: Catalogue, shift: str, count: int) -> list[Item]:
    phase = Phase(shift, "image", (shift,), count)
    return list(catalogue.schedule(count, 0, (phase,)).items(phase))


def _service_ratio(catalogue: Catalogue, config: Config, items: Sequence[Item]) -> float:
    """Median over rounds of bare CPU seconds over those of the service, for the same queries."""
    size, ratios = config.batch.size, []
    with tempfile.TemporaryDirectory(prefix="qshift-profile-") as folder:
        broker = Broker(Path(folder), parent_bound=True)
        broker.start()
        broker.ready(60)
        for number in range(ROUNDS):
            bench = Bench(engine(config))
            bare = [bench.batch(items[at : at + size], at // size) for at in range(0, len(items), size)][
                WARM:
            ]
            served = service_seconds(catalogue, config, items, broker.bootstrap_servers, f"-{number}", WARM)
            ratios.append(float(np.mean(bare)) * (1 / size) / served)
        broker.stop()
    return float(np.median(ratios))
