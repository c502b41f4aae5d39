"""`qshift profile`: where the time of a batch goes, and what the service costs on top of the bare loop."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from app.bars import bars, reporter
from app.build import Engine, engine
from app.catalogue import Catalogue, prepare_catalogue
from app.replay import with_method
from app.schedule import Item, Phase
from app.service import Service
from core.config import Config
from core.types import Coordinates, Outcome, Query, QueryBatch, Record
from stream.broker import Broker
from stream.client import QueryClient
from stream.cluster import ensure_topics
from stream.topics import topic_settings

WARM = 3
"""Batches before the clock starts: first calls allocate and choose kernels."""


def profile(batches: int, cache: Path, json_file: Path | None, console: Console) -> int:
    """Prints medians per stage of adapted and frozen batches, and the two ratios."""
    with bars(console) as progress:
        catalogue = prepare_catalogue(None, cache, reporter(progress))
    config = Config.model_validate({"base": catalogue.base, "gallery": catalogue.gallery_folder})
    items = _items(catalogue, (batches + WARM) * config.batch.size)
    found: dict[str, dict[str, float]] = {}
    for name in ("frozen", "default"):
        with console.status(f"bare loop, {name}"):
            found[name] = _bare(engine(with_method(config, name)), items, config.kafka.queries)
    with console.status("the same queries through Kafka"):
        rate = _service(catalogue, config, items)
    bare = config.batch.size / found["default"]["total"]
    ratios = {
        "adapted_to_frozen_batch_time": found["default"]["total"] / found["frozen"]["total"],
        "service_to_bare_loop_throughput": rate / bare,
    }
    table = Table(box=box.SIMPLE_HEAD, title=f"ms per batch of {config.batch.size}, median of {batches}")
    for head in ("stage", "frozen", "default"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for stage in found["default"]:
        table.add_row(stage, *(f"{1000 * found[name].get(stage, 0.0):.0f}" for name in ("frozen", "default")))
    console.print(table)
    console.print(f"adapted / frozen batch time  {ratios['adapted_to_frozen_batch_time']:.2f}")
    console.print(
        f"service / bare-loop throughput  {ratios['service_to_bare_loop_throughput']:.2f}  "
        f"({rate:.1f} and {bare:.1f} queries/s)"
    )
    if json_file:
        json_file.write_text(json.dumps({"seconds": found, "ratios": ratios}, indent=1))
    return 0


def _items(catalogue: Catalogue, count: int) -> list[Item]:
    phase = Phase("noise", "image", ("noise",), count)
    return list(catalogue.schedule(count, 0, (phase,)).items(phase))


def _bare(built: Engine, items: list[Item], topic: str) -> dict[str, float]:
    """Median seconds per stage of answer and learn alone, one batch after the other."""
    size, learner = built.config.batch.size, built.pipeline.learner("image")
    laps: list[dict[str, float]] = []
    for start in range(0, len(items), size):
        began = time.perf_counter()
        rows = []
        for offset in range(start, start + size):
            item = items[offset]
            query = built.codec.decode(Record(Coordinates(topic, 0, offset), item.value, None, item.headers))
            if not isinstance(query, Query):
                raise TypeError(f"expected a query, got {query}")
            rows.append(built.pipeline.admit(query))
        decoded = time.perf_counter() - began
        work = built.pipeline.answer(learner, QueryBatch("0:image", start // size, "image", tuple(rows)))
        outcome = built.pipeline.learn(learner, work)
        total = time.perf_counter() - began
        laps.append({"decode": decoded, **outcome.seconds, "total": total})
    return {stage: float(np.median([lap[stage] for lap in laps[WARM:]])) for stage in laps[-1]}


def _service(catalogue: Catalogue, config: Config, items: list[Item]) -> float:
    """Queries per second of the service on an embedded Kafka, all queries waiting, page and metrics on."""
    with tempfile.TemporaryDirectory(prefix="qshift-profile-") as folder:
        broker = Broker(Path(folder), parent_bound=True)
        broker.start()
        broker.ready(60)
        servers = broker.bootstrap_servers
        kafka = config.kafka.model_copy(update={"bootstrap_servers": servers})
        http = config.http.model_copy(update={"port": 0})
        config = config.model_copy(update={"kafka": kafka, "http": http})
        ensure_topics(servers, topic_settings(kafka))
        client = QueryClient(servers, kafka)
        for item in items:
            client.send(item.value, item.headers)
        client.flush()
        client.close()
        service = Service(config, catalogue.picture)
        ends = _Ends()
        service.extra.append(ends)
        service.start()
        while ends.answered < len(items):
            service.check()
            time.sleep(0.05)
        service.stop()
        broker.stop()
    return ends.queries / (ends.last - ends.first)


class _Ends:
    """Observer that notes when the warm batches were over and when the last one was."""

    def __init__(self) -> None:
        self.batches, self.answered, self.queries, self.first, self.last = 0, 0, 0, 0.0, 0.0

    def observe(self, outcome: Outcome) -> None:
        self.batches, self.answered = self.batches + 1, self.answered + len(outcome.batch)
        self.last = time.perf_counter()
        if self.batches == WARM:
            self.first = self.last
        elif self.batches > WARM:
            self.queries += len(outcome.batch)

    def judge(self, judgement: object) -> None: ...

    def refuse(self, refusal: object) -> None: ...
