"""`qshift produce` and `qshift labels`: the other side of a running service."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from app.bars import bars
from app.catalogue import SIDE, load_folder, make_query
from app.emoji import load_emoji
from app.own_message import EXPECTED, own_message, query_lines, word_of
from app.schedule import Item, Phase
from app.traffic import Traffic
from benchmarks.shifts.images import PICTURE_SHIFTS
from benchmarks.shifts.text import TEXT_SHIFTS
from core.config import LimitConfig, load_connected
from core.errors import ConfigError, Refused
from core.readers.lines import BadLine, document, lines
from core.types import Coordinates, Modality
from stream import codec
from stream.client import QueryClient
from stream.messages import LabelMessage

LABEL_LINE = 'a line is {"offset": 7, "label": "cat"}, with "topic" and "partition" where they differ'
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
    items = _items(source, shifts, modality, queries, seed, config.limits)
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
    parsed = read_labels(file, config.kafka.queries)
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
    source: Path | None, shifts: tuple[str, ...], modality: Modality, queries: int, seed: int,
    limits: LimitConfig,
) -> Iterator[Item]:  # fmt: skip
    if source is not None and source.suffix == ".jsonl":
        return _lines(source, limits)
    known = {*TEXT_SHIFTS} if modality == "text" else {*PICTURE_SHIFTS, "sketch"}
    unknown = [shift for shift in shifts if shift not in known]
    if unknown:
        raise ConfigError(
            f"shift {unknown[0]!r} is not known for {modality}: one of {', '.join(sorted(known))}"
        )
    data = load_emoji(Path("qshift-data/demo"), SIDE) if source is None else load_folder(source)
    phase = Phase("+".join(shifts), modality, shifts, queries)
    return (make_query(data, seed, phase, index) for index in range(queries))


def _lines(source: Path, limits: LimitConfig) -> Iterator[Item]:
    """Queries of a JSONL file, each with an optional "label" and "id": all are read before one is sent."""
    found = []
    for number, entry in query_lines(source):
        try:
            if isinstance(entry, BadLine):
                raise Refused("decode", str(entry))
            name, label = word_of(entry, "id") or str(number), word_of(entry, "label")
            value, headers = own_message(entry, name, source.parent, limits)
        except Refused as refused:
            raise ConfigError(f"{source}, line {number}: {refused.reason}") from refused
        found.append(Item("file", value, tuple(headers), label))
    if not found:
        raise ConfigError(f"{source} holds no query: a line is {EXPECTED}")
    return iter(found)


def read_labels(file: Path, topic: str) -> list[tuple[Coordinates, str]]:
    """The labels of a JSONL file, each as the service takes it. Raises ConfigError, with the line."""
    found = []
    for number, line in lines(file):
        try:
            entry = document(line)
            if not isinstance(entry, dict):
                raise BadLine("it is no object")
            place = {"topic": entry.get("topic", topic), "partition": entry.get("partition", 0)}
            place["offset"] = entry.get("offset")
            message = LabelMessage.model_validate_json(
                json.dumps({"query": place, "label": entry.get("label")})
            )
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = str(first["loc"][-1]) if first["loc"] else "it"
            raise ConfigError(f"{file}, line {number}: {where}: {first['msg']}; {LABEL_LINE}") from error
        except BadLine as error:
            raise ConfigError(f"{file}, line {number}: {error}; {LABEL_LINE}") from error
        found.append((message.query.coordinates(), message.label))
    if not found:
        raise ConfigError(f"{file} holds no label; {LABEL_LINE}")
    return found
