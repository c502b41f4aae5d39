"""`qshift replay demo`: a schedule through the production path: the same run, the same bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from core.checkpoints import JournalEntry
from core.config import Config
from core.types import Judgement, Outcome, Refusal
from qshift.build import engine
from qshift.methods import with_method as with_method
from qshift.observers import judged
from qshift.offline import run_offline
from qshift.replay.schedule import Schedule, hash_answers
from qshift.replay.table import PhaseRow
from qshift.terminal.bars import bars
from stream import codec
from stream.report import Report


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gives: the table's rows and the two hashes."""

    rows: list[PhaseRow]
    answers_sha256: str
    state_sha256: str
    report: Report
    seconds: float


def replay(
    config: Config,
    schedule: Schedule,
    journal: Sequence[JournalEntry] = (),
    console: Console | None = None,
    title: str = "replay",
) -> Replayed:
    """Runs a schedule; with a journal, at the batch boundaries of the run that wrote it.

    Labels of sampled queries are given as soon as the stream has ended: they cannot change an answer.
    """
    started = time.monotonic()
    built = engine(config)
    records, items = [], []
    console = console or Console(quiet=True)
    with bars(console) as progress:
        total = sum(phase.queries for phase in schedule.phases)
        making = progress.add_task(f"{title}: drawing queries", total=total)
        for record, item in schedule.records(config.kafka.queries):
            records.append(record)
            items.append(item)
            progress.advance(making)
        answering = progress.add_task(f"{title}: answering", total=total)
        quality_of = judged(built)

        class Ticker:
            """Moves the bar."""

            def observe(self, outcome: Outcome) -> None:
                progress.advance(answering, len(outcome.batch))

            def judge(self, judgement: Judgement) -> None: ...

            def refuse(self, refusal: Refusal) -> None: ...

        report, sink = run_offline(built, records, [quality_of, Ticker()], journal)
    answers = {}
    for record in sink.records["answers"]:
        answer = codec.decode_answer(record.value or b"")
        answers[answer.source.offset] = record.value or b""
        if answer.label_wanted:
            at = records[answer.source.offset].at
            quality_of.judge(Judgement(at, at, items[answer.source.offset].label))
    rows = []
    for phase in schedule.phases:
        quality = quality_of.summary(schedule.within(phase))
        rows.append(
            PhaseRow(
                phase.name, phase.modality, phase.queries, quality.n,
                quality.map_frozen, quality.map_adapted, quality.map_served,
                quality.diff, quality.low, quality.high, quality.r1_frozen, quality.r1_served,
                float("nan"), float("nan"), float("nan"),
            )
        )  # fmt: skip
    return Replayed(rows, hash_answers(answers), report.state_sha256, report, time.monotonic() - started)
