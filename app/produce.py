"""`qshift produce` and `qshift labels`: the other side of a running service."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from app.bars import bars
from app.catalogue import SIDE, load_folder, make_query
from app.emoji import load_emoji
from app.schedule import Item, Phase
from benchmarks.shifts.images import PICTURE_SHIFTS
from benchmarks.shifts.text import TEXT_SHIFTS
from core.config import load
from core.errors import ConfigError
from core.types import Coordinates, Modality
from stream import codec
from stream.client import QueryClient

WINDOW = 128
LABEL_DELAY = 96
IDLE_SECONDS = 120.0


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
    config = load(config_file)
    if not config.kafka.bootstrap_servers:
        raise ConfigError("no Kafka named: set kafka.bootstrap_servers or QSHIFT_BOOTSTRAP_SERVERS")
    items = _items(source, shifts, modality, queries, seed)
    client = QueryClient(config.kafka.bootstrap_servers, config.kafka)
    waiting: dict[Coordinates, Item] = {}
    due: deque[tuple[int, Coordinates, str]] = deque()
    answered, sent, began, last = 0, 0, time.monotonic(), time.monotonic()
    try:
        with bars(console) as progress:
            task, finished = progress.add_task("answered", total=queries), False
            while not finished or waiting:
                limit = int((time.monotonic() - began) * rate) + 1 - sent if rate else WINDOW - len(waiting)
                while limit > 0 and not finished:
                    item = next(items, None)
                    if item is None or sent == queries:
                        finished = True
                        progress.update(task, total=sent)
                        break
                    waiting[client.send(item.value, item.headers).coordinates()] = item
                    sent, limit = sent + 1, limit - 1
                for record in client.answers(0.05):
                    answer = codec.decode_answer(record.value or b"")
                    asked = waiting.pop(answer.source, None)
                    if asked is None:
                        continue
                    answered, last = answered + 1, time.monotonic()
                    progress.update(task, completed=answered)
                    if labels and answer.label_wanted and asked.label:
                        due.append((answered + LABEL_DELAY, answer.source, asked.label))
                while due and (due[0][0] <= answered or (finished and not waiting)):
                    _, at, label = due.popleft()
                    client.label(codec.label(at, label), str(at).encode())
                if waiting and time.monotonic() - last > IDLE_SECONDS:
                    console.print(f"[red]no answer for {IDLE_SECONDS:.0f} s; is `qshift serve` running?[/]")
                    return 1
        client.flush()
    finally:
        client.close()
    console.print(f"{answered} of {sent} queries answered in {time.monotonic() - began:.0f} s")
    return 0


def send_labels(file: Path, config_file: Path | None, console: Console) -> int:
    """Sends the labels of a JSONL file.

    Raises:
        ConfigError: no Kafka named, or a line that cannot be used, by its number.
    """
    config = load(config_file)
    if not config.kafka.bootstrap_servers:
        raise ConfigError("no Kafka named: set kafka.bootstrap_servers or QSHIFT_BOOTSTRAP_SERVERS")
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
