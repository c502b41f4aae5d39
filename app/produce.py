"""`qshift produce` and `qshift labels`: the other side of a running service."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rich.console import Console

from app.bars import bars
from app.catalogue import SIDE, load_folder, make_query
from app.emoji import load_emoji
from app.schedule import Item, Phase
from app.traffic import Traffic
from benchmarks.shifts.images import PICTURE_SHIFTS
from benchmarks.shifts.text import TEXT_SHIFTS
from core.config import load_connected
from core.errors import ConfigError
from core.types import Coordinates, Modality
from stream import codec
from stream.client import QueryClient

WINDOW = 128
"""Queries that wait for an answer at most."""


def produce(
    source: Path | None,
    shifts: tuple[str, ...],
    modality: Modality,
    queries: int,
    rate: float,
    labels: bool,
    seed: int,
    config_file: Path | None,
    console: Console,
) -> int:
    """Sends queries, waits for their answers, sends the labels that are asked for.

    Raises:
        ConfigError: no Kafka named, an unknown shift, an unreadable source.
    """
    config = load_connected(config_file)
    items = _items(source, shifts, modality, queries, seed)
    client = QueryClient(config.kafka.bootstrap_servers, config.kafka)
    traffic, began = Traffic(client, config.kafka, labels), time.monotonic()
    try:
        with bars(console) as progress:
            task = progress.add_task("answered", total=queries)
            while True:
                allowed = int((time.monotonic() - began) * rate) + 1 - traffic.sent if rate else WINDOW
                room = min(allowed, WINDOW - traffic.waiting, queries - traffic.sent)
                sent = traffic.send(islice(items, max(room, 0)))
                progress.advance(task, traffic.receive(0.05))
                if room > 0 and sent < room:
                    queries = traffic.sent
                    progress.update(task, total=queries)
                if not traffic.waiting and traffic.sent >= queries:
                    break
        traffic.finish()
    finally:
        client.close()
    seconds = time.monotonic() - began
    console.print(f"{len(traffic.answers)} of {traffic.sent} queries answered in {seconds:.0f} s")
    return 0


def send_labels(file: Path, config_file: Path | None, console: Console) -> int:
    """Sends the labels of a JSONL file.

    Raises:
        ConfigError: no Kafka named, or a line that cannot be used, by its number.
    """
    config = load_connected(config_file)
    parsed = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            at = Coordinates(str(entry.get("topic", config.kafka.queries)), int(entry.get("partition", 0)),
                             int(entry["offset"]))  # fmt: skip
            parsed.append((at, str(entry["label"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'{file}, line {number}: expected {{"offset": 7, "label": "..."}}: {error}'
            ) from error
    client = QueryClient(config.kafka.bootstrap_servers, config.kafka)
    try:
        for at, label in parsed:
            client.label(codec.label(at, label), str(at).encode())
        client.flush()
    finally:
        client.close()
    console.print(f"{len(parsed)} labels sent")
    return 0


def _items(
    source: Path | None, shifts: tuple[str, ...], modality: Modality, queries: int, seed: int
) -> Iterator[Item]:
    if source is not None and source.suffix == ".jsonl":
        return _lines(source)
    known = {*TEXT_SHIFTS} if modality == "text" else {*PICTURE_SHIFTS, "sketch"}
    unknown = [shift for shift in shifts if shift not in known]
    if unknown:
        raise ConfigError(
            f"shift {unknown[0]!r} is not known for {modality}: one of {', '.join(sorted(known))}"
        )
    data = load_emoji(Path("qshift-data/demo"), SIDE) if source is None else load_folder(source)
    phase = Phase("+".join(shifts), modality, shifts, queries)
    return (make_query(data, seed, phase, index) for index in range(queries))


def _lines(source: Path) -> Iterator[Item]:
    """Lines {"text"} or {"vector"} or {"image": path}, each with an optional "label" and "id"."""
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, label = str(entry.get("id", number)), str(entry.get("label", ""))
            if "text" in entry:
                value, headers = codec.text_query(entry["text"], name)
            elif "vector" in entry:
                import numpy as np

                value, headers = codec.vector_query(np.asarray(entry["vector"], np.float32), name)
            else:
                value, headers = codec.image_query((source.parent / entry["image"]).read_bytes(), name)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ConfigError(f"{source}, line {number}: {error}; expected text, vector or image") from error
        yield Item("file", value, tuple(headers), label)
