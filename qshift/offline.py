"""One run off line: records through the production path, nothing live around it, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.checkpoints import JournalEntry
from core.protocols import Observer
from core.records import Record
from qshift.build import Engine
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.report import Report
from stream.runner import run


def run_offline(
    engine: Engine,
    records: Sequence[Record],
    observers: Sequence[Observer],
    journal: Iterable[JournalEntry] = (),
) -> tuple[Report, MemorySink]:
    """Answers and learns until the records end.

    Args:
        engine: with fresh state; its configuration names the topics.
        records: queries, and labels among them, in the order of their arrival.
        observers: see every outcome, in this order.
        journal: batch boundaries; without them a batch ends where it is full, at the end with what is left.

    Returns:
        The report, and all that was sent.
    """
    config, store, sink = engine.config, MemoryStore(), MemorySink()
    for entry in journal:
        store.journal(entry)
    # A clock that stands still: no batch ends because this machine is slow.
    report = run(
        MemorySource(records, [config.kafka.queries]), engine.pipeline, engine.codec, sink, store,
        observers, config, clock=lambda: 0.0, base_version=engine.base.version,
    )  # fmt: skip
    return report, sink
