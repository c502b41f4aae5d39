"""`qshift replay queries` and `qshift replay topic`: the user's own material on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import ConfigError
from core.filters import ANYTHING, Wanted
from core.records import Coordinates, Record
from qshift.build import Engine
from qshift.methods import check_known
from qshift.replay.journal import journal_of
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.own_run import OwnRow, own_json, own_table, own_times, run_records
from qshift.replay.recorded import mark, recorded
from qshift.terminal.counts import counted

FROZEN = "frozen"
USUAL = (FROZEN, "default")
Versions = Callable[[Collection[str]], Callable[[Engine], None]]
"""Versions of a gallery that a journal names -> what turns an engine to them."""


def replay_own(
    path: Path,
    gallery: Path,
    base: Path,
    config: Config,
    methods: Sequence[str],
    console: Console,
    json_file: Path | None = None,
    journal: Path | None = None,
    count: int | None = None,
    want: Wanted = ANYTHING,
) -> list[OwnRow]:
    """Runs a folder, a JSONL file or a file of vectors; see `qshift.replay.own_queries`.

    Args:
        journal: batch boundaries of the live run that answered these queries, JSON lines.
        count: of the queries that are run, from the first; None for all.
        want: of every query that does not say so itself.

    Raises:
        ConfigError: an unknown method, nothing there that could be used, or a journal of other queries.
        ArtifactError: gallery or base missing, or not of one another.
    """
    methods = _methods(methods)
    config = config.model_copy(update={"base": base, "gallery": gallery})
    planned = [] if journal is None else journal_of(journal, config.kafka.queries)  # costs no loading
    own = own_queries(path, *own_parts(gallery, base), config, count, want)
    records = own.records[:count]
    kept = {record.at for record in records}
    labels = {at: label for at, label in own.labels.items() if at in kept}
    rows = _run(
        records, labels, config, methods, planned, own.notes(), ("own", path.name), console, json_file
    )
    if (lost := len(records) - rows[0].queries - rows[0].refused) > 0:
        text = f"{counted(lost, 'query', 'queries')} in no batch of the journal, not answered"
        console.print(text, style="dim")
    return rows


def replay_topic(
    topic: str,
    start: str,
    end: str,
    partitions: Collection[int],
    config: Config,
    methods: Sequence[str],
    console: Console,
    json_file: Path | None = None,
    versions: Versions = lambda _: lambda _: None,
) -> list[OwnRow]:
    """Runs a stretch of a recorded topic; `config` names the Kafka, base and gallery.

    `versions` makes what turns an engine to the gallery versions that the journal names.

    Raises:
        ConfigError: an unknown method, or a stretch that cannot be read as asked.
        OffsetGoneError: the log no longer reaches back to the start.
        BrokerError: no Kafka at the address.
    """
    methods = _methods(methods)
    if not topic:
        raise ConfigError("expected the name of a topic, got none: name one that was recorded")
    for text in filter(None, (start, end)):
        mark(text)  # what cannot be read at all needs no Kafka to be refused
    found = recorded(
        config.kafka.bootstrap_servers, config.kafka, config.limits, topic, start, end, partitions
    )
    ranges = ", ".join(f"{n}:{first}-{end - 1}" for n, (first, end) in found.ranges.items() if first < end)
    return _run(
        found.records, found.labels, config, methods, found.journal, list(found.notes),
        (topic, ranges), console, json_file, found.late, versions([one.gallery for one in found.journal]),
    )  # fmt: skip


def _methods(names: Sequence[str]) -> list[str]:
    """Frozen first, then each named once. Raises ConfigError before anything is read."""
    check_known(names)
    return list(dict.fromkeys((FROZEN, *(names or USUAL))))


def _run(
    records: Sequence[Record],
    labels: Mapping[Coordinates, str],
    config: Config,
    methods: Sequence[str],
    journal: Sequence[JournalEntry],
    notes: Sequence[str],
    names: tuple[str, str],
    console: Console,
    json_file: Path | None,
    late: Sequence[Record] = (),
    attach: Callable[[Engine], None] = lambda _: None,
) -> list[OwnRow]:
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)
    rows = run_records(records, labels, config, methods, journal, console, late, attach)
    own_table(rows, " · ".join(names)).print(console)
    if json_file is not None:
        json_file.write_text(
            json.dumps(own_json(rows, *names, config.seed), indent=1, allow_nan=False) + "\n"
        )
        times = json.dumps(own_times(rows, *names, config.seed), indent=1, allow_nan=False)
        json_file.with_suffix(".timings.json").write_text(times + "\n")
    return rows
