"""`qshift produce`: queries to a running service, at a pace, and the labels that it asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from core.config_file import load_connected
from core.errors import ConfigError
from core.filters import ANYTHING, Wanted
from core.readers.places import is_folder
from core.types import Modality
from qshift.data.emoji import load_emoji
from qshift.demo.catalogue import SIDE, load_folder, make_query
from qshift.demo.file_queries import read_queries
from qshift.demo.traffic import Traffic
from qshift.replay.schedule import Item, Phase
from qshift.shifts.images import PICTURE_SHIFTS
from qshift.shifts.text import TEXT_SHIFTS
from qshift.terminal.bars import bars
from qshift.terminal.counts import counted
from stream import codec
from stream.client import QueryClient

OF_MADE = ("--shift", "--modality", "--seed")
"""Options of queries that are made, not read."""
QUERIES = 640
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
    want: Wanted = ANYTHING,
) -> int:
    """Sends queries, waits for their answers, sends the labels that are asked for.

    Args:
        source: a folder of pictures, a JSONL file under any name, or None for the emoji.
        queries: how many; None for all of a file, else 640.
        given: options on the command line, such as "--shift".
        want: of every query that does not say so itself.

    Raises:
        ConfigError: no Kafka named, an unknown shift, an unreadable source, options that do not go with it.
    """
    of_file = source is not None and not is_folder(source)
    if wrong := [flag for flag in OF_MADE if of_file and flag in given]:
        raise ConfigError(f"{wrong[0]} does not go with a file of queries: it is for folders and the emoji")
    if not 0 <= rate < math.inf:
        raise ConfigError(f"expected --rate of 0 or more queries per second, got {rate}")
    config = load_connected(config_file)
    if want.top > config.answer.shortlist:
        raise ConfigError(
            f"--top {want.top}: at most {config.answer.shortlist} are served (answer.shortlist)"
        )
    if source is not None and of_file:
        found = read_queries(source, config, want)
        found.say(console)
        items = iter(found.items)
        queries = len(found.items) if queries is None else queries
    else:
        queries = QUERIES if queries is None else queries
        items = (wanting(item, want) for item in _items(source, shifts, modality, queries, seed))
    client, began = QueryClient(config.kafka.bootstrap_servers, config.kafka), time.monotonic()
    traffic = Traffic(client, config.kafka, labels)
    try:
        with bars(console) as progress:
            _send(traffic, items, queries, rate, progress)
        traffic.finish()
    finally:
        client.close()
    sent = counted(traffic.sent, "query", "queries")
    console.print(f"{len(traffic.answers)} of {sent} answered in {time.monotonic() - began:.0f} s")
    return 0


def wanting(item: Item, want: Wanted) -> Item:
    """The same query, wanting this of its answer."""
    value, headers = codec.wanting((item.value, list(item.headers)), want)
    return replace(item, value=value, headers=tuple(headers))


def _send(traffic: Traffic, items: Iterator[Item], queries: int, rate: float, progress: Progress) -> None:
    """Sends so many queries, or all there are, and takes their answers."""
    began, task = time.monotonic(), progress.add_task("answered", total=queries)
    while True:
        allowed = int((time.monotonic() - began) * rate) + 1 - traffic.sent if rate else WINDOW
        room = min(allowed, WINDOW - traffic.waiting, queries - traffic.sent)
        sent = traffic.send(islice(items, max(room, 0)))
        progress.advance(task, traffic.receive(0.05))
        if room > 0 and sent < room:
            queries = traffic.sent
            progress.update(task, total=queries)
        if not traffic.waiting and traffic.sent >= queries:
            return


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
