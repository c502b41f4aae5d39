"""Queries of a file for `qshift produce`: all are judged before one is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from core.config import Config
from core.errors import ConfigError, Refused
from core.filters import ANYTHING, Wanted
from core.readers.lines import BadLine
from core.readers.places import shown
from core.readers.vectors import holds_vectors
from core.records import Coordinates, Record
from qshift.data.inventory import SHOWN
from qshift.replay.admitted import judge
from qshift.replay.own_message import EXPECTED, Strangers, own_message, query_lines, word_of
from qshift.replay.schedule import Item
from qshift.replay.vector_rows import vector_rows
from qshift.terminal.counts import counted
from stream.codec import Codec
from stream.preparation import check_top

SAID = 20
"""Refused lines of a file that are said one by one."""


@dataclass(frozen=True, slots=True)
class FileQueries:
    """Queries of a file that the service would take, and (line or row, reason) of those that it would not."""

    items: tuple[Item, ...]
    refused: tuple[tuple[int, str], ...]
    strangers: str
    noun: str = "line"

    def say(self, console: Console) -> None:
        for line, reason in self.refused[:SAID]:
            console.print(f"{self.noun} {line} is refused: {reason}", markup=False, highlight=False)
        if self.refused:
            more = f", {len(self.refused) - SAID} of them not shown" if len(self.refused) > SAID else ""
            console.print(
                f"{counted(len(self.refused), 'query', 'queries')} refused{more}; sent: {len(self.items)}"
            )
        if self.strangers:
            console.print(self.strangers, markup=False, highlight=False)


def read_queries(source: Path, config: Config, usual: Wanted = ANYTHING) -> FileQueries:
    """Queries of a JSONL file or of a file of vectors, each with an optional "label" and "id".

    All are judged before one is sent.

    `usual` is what a query wants that does not say so itself.

    Raises:
        ConfigError: the file cannot be read, or holds no query that the service would take.
    """
    codec, limits, kafka = Codec(config.limits, config.kafka), config.limits, config.kafka
    found: list[Item] = []
    refused: list[tuple[int, str]] = []
    strangers = Strangers()
    noun, entries = ("row", vector_rows(source)) if holds_vectors(source) else ("line", query_lines(source))
    for number, entry in entries:
        try:
            if isinstance(entry, BadLine):
                raise Refused("decode", str(entry))
            strangers.look(entry, f"{noun} {number}")
            name, label = word_of(entry, "id") or str(number), word_of(entry, "label")
            value, headers = own_message(entry, name, source.parent, limits, usual)
            record = Record(Coordinates(kafka.queries, 0, number), value, None, tuple(headers))
            check_top(judge(codec, limits, record), config.answer.shortlist)
        except Refused as error:
            refused.append((number, error.reason))
            continue
        found.append(Item("file", value, tuple(headers), label))
    if not found:
        reasons = "; ".join(f"{noun} {line}: {reason}" for line, reason in refused[:SHOWN])
        said = f" that can be sent: {reasons}" if refused else ""
        raise ConfigError(f"{shown(source)} holds no query{said}; a line is {EXPECTED}")
    return FileQueries(tuple(found), tuple(refused), strangers.note(), noun)
