"""`qshift produce` and `qshift labels`: the other side of a running service."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from core.config import Config
from core.config_file import load_connected
from core.errors import ConfigError, Refused
from core.readers.lines import BadLine, document, lines
from core.readers.places import broken, is_folder, shown
from core.types import Coordinates, Modality, Record
from qshift.data.emoji import load_emoji
from qshift.data.inventory import SHOWN
from qshift.demo.catalogue import SIDE, load_folder, make_query
from qshift.demo.traffic import Traffic
from qshift.replay.admitted import judge
from qshift.replay.own_message import EXPECTED, Strangers, own_message, query_lines, word_of
from qshift.replay.schedule import Item, Phase
from qshift.shifts.images import PICTURE_SHIFTS
from qshift.shifts.text import TEXT_SHIFTS
from qshift.terminal.bars import bars
from stream import codec
from stream.client import QueryClient
from stream.codec import Codec
from stream.messages import LabelMessage

LABEL_LINE = 'a line is {"offset": 7, "label": "cat"}, with "topic" and "partition" where they differ'
LABEL_FIELDS = ("offset", "label", "topic", "partition")
OF_MADE = ("--shift", "--modality", "--seed")
"""Options of queries that are made, not read."""
QUERIES = 640
SAID = 20
"""Refused lines of a file that are said one by one."""
WINDOW = 128
"""Queries that wait for an answer at most."""


def produce(
    source: Path | None,
    shifts: tuple[str, ...],
    modality: Modality,
    queries: int | None,
    rate: float,
    labels: bool,
    seed: int,
    config_file: Path | None,
    console: Console,
    given: Collection[str] = (),
) -> int:
    """Sends queries, waits for their answers, sends the labels that are asked for.

    Args:
        source: a folder of pictures, a JSONL file under any name, or None for the emoji.
        queries: how many; None for all of a file, else 640.
        given: options on the command line, such as "--shift".

    Raises:
        ConfigError: no Kafka named, an unknown shift, an unreadable source, options that do not go with it.
    """
    of_file = source is not None and not is_folder(source)
    if wrong := [flag for flag in OF_MADE if of_file and flag in given]:
        raise ConfigError(f"{wrong[0]} does not go with a file of queries: it is for folders and the emoji")
    if not 0 <= rate < math.inf:
        raise ConfigError(f"expected --rate of 0 or more queries per second, got {rate}")
    config = load_connected(config_file)
    if source is not None and of_file:
        found = read_queries(source, config)
        found.say(console)
        items = iter(found.items)
        queries = len(found.items) if queries is None else queries
    else:
        queries = QUERIES if queries is None else queries
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
    source: Path | None, shifts: tuple[str, ...], modality: Modality, queries: int, seed: int
) -> Iterator[Item]:
    known = {*TEXT_SHIFTS} if modality == "text" else {*PICTURE_SHIFTS, "sketch"}
    unknown = [shift for shift in shifts if shift not in known]
    if unknown:
        raise ConfigError(
            f"shift {unknown[0]!r} is not known for {modality}: one of {', '.join(sorted(known))}"
        )
    data = load_emoji(Path("qshift-data/demo"), SIDE) if source is None else load_folder(source)
    phase = Phase("+".join(shifts), modality, shifts, queries)
    return (make_query(data, seed, phase, index) for index in range(queries))


@dataclass(frozen=True, slots=True)
class FileQueries:
    """Queries of a file that the service would take, and (line, reason) of those that it would not."""

    items: tuple[Item, ...]
    refused: tuple[tuple[int, str], ...]
    strangers: str

    def say(self, console: Console) -> None:
        for line, reason in self.refused[:SAID]:
            console.print(f"line {line} is refused: {reason}", markup=False, highlight=False)
        if self.refused:
            more = f", {len(self.refused) - SAID} of them not shown" if len(self.refused) > SAID else ""
            console.print(f"{len(self.refused)} queries refused{more}; {len(self.items)} are sent")
        if self.strangers:
            console.print(self.strangers, markup=False, highlight=False)


def read_queries(source: Path, config: Config) -> FileQueries:
    """Queries of a JSONL file, each with an optional "label" and "id": all are judged before one is sent.

    Raises:
        ConfigError: the file cannot be read, or holds no query that the service would take.
    """
    codec, limits, kafka = Codec(config.limits, config.kafka), config.limits, config.kafka
    found: list[Item] = []
    refused: list[tuple[int, str]] = []
    strangers = Strangers()
    for number, entry in query_lines(source):
        try:
            if isinstance(entry, BadLine):
                raise Refused("decode", str(entry))
            strangers.look(entry, f"line {number}")
            name, label = word_of(entry, "id") or str(number), word_of(entry, "label")
            value, headers = own_message(entry, name, source.parent, limits)
            judge(codec, limits, Record(Coordinates(kafka.queries, 0, number), value, None, tuple(headers)))
        except Refused as error:
            refused.append((number, error.reason))
            continue
        found.append(Item("file", value, tuple(headers), label))
    if not found:
        reasons = "; ".join(f"line {line}: {reason}" for line, reason in refused[:SHOWN])
        said = f" that can be sent: {reasons}" if refused else ""
        raise ConfigError(f"{shown(source)} holds no query{said}; a line is {EXPECTED}")
    return FileQueries(tuple(found), tuple(refused), strangers.note())


def read_labels(file: Path, topic: str) -> list[tuple[Coordinates, str]]:
    """The labels of a JSONL file, each as the service takes it. Raises ConfigError, with the line."""
    found = []
    for number, line in lines(file):
        try:
            entry = document(line)
            if not isinstance(entry, dict):
                raise BadLine("it is no object")
            if strange := [name for name in entry if name not in LABEL_FIELDS]:
                raise BadLine(f"the field {shown(strange[0])} is not known")
            place = {"topic": entry.get("topic", topic), "partition": entry.get("partition", 0)}
            place["offset"] = entry.get("offset")
            if any(isinstance(word, str) and broken(word) for word in entry.values()):
                raise BadLine("it holds half of a surrogate pair: write valid Unicode")
            message = LabelMessage.model_validate({"query": place, "label": entry.get("label")})
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = str(first["loc"][-1]) if first["loc"] else "it"
            raise ConfigError(
                f"{shown(file)}, line {number}: {where}: {first['msg']}; {LABEL_LINE}"
            ) from error
        except BadLine as error:
            raise ConfigError(f"{shown(file)}, line {number}: {error}; {LABEL_LINE}") from error
        found.append((message.query.coordinates(), message.label))
    if not found:
        raise ConfigError(f"{shown(file)} holds no label; {LABEL_LINE}")
    return found
