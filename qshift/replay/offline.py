"""`qshift replay demo`: a schedule through the production path: the same run, the same bytes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, TaskID

from core.checkpoints import JournalEntry
from core.config import Config
from core.records import Judgement, Record, Refusal
from core.types import Outcome
from monitoring.quality import Quality
from qshift.build import engine, judged
from qshift.offline import run_offline
from qshift.replay.schedule import Item, Phase, Schedule, hash_answers
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
    learned: int
    """Batches that were learned from."""
    refused: Mapping[str, int]
    """Why the others were not: reason -> batches."""
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
    quality = judged(built)
    console = console or Console(quiet=True)
    with bars(console) as progress:
        records, items = _drawn(schedule, config.kafka.queries, progress, title)
        answering = progress.add_task(f"{title}: answering", total=len(records))
        ticker = _Ticker(progress, answering)
        report, sink = run_offline(built, records, [quality, ticker], journal)
    answers = {}
    for record in sink.records["answers"]:
        answer = codec.decode_answer(record.value or b"")
        answers[answer.source.offset] = record.value or b""
        if answer.label_wanted:
            at = records[answer.source.offset].at
            quality.judge(Judgement(at, at, items[answer.source.offset].label))
    rows = [_row(phase, quality.summary(schedule.within(phase))) for phase in schedule.phases]
    return Replayed(
        rows, hash_answers(answers), report.state_sha256, report,
        ticker.learned, ticker.refused, time.monotonic() - started,
    )  # fmt: skip


def _drawn(schedule: Schedule, topic: str, progress: Progress, title: str) -> tuple[list[Record], list[Item]]:
    """The queries, and what was asked for by each."""
    records, items = [], []
    total = sum(phase.queries for phase in schedule.phases)
    drawing = progress.add_task(f"{title}: drawing queries", total=total)
    for record, item in schedule.records(topic):
        records.append(record)
        items.append(item)
        progress.advance(drawing)
    return records, items


class _Ticker:
    """Observer: moves the bar, and counts what was learned from."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.learned, self.refused = 0, Counter[str]()

    def observe(self, outcome: Outcome) -> None:
        self._progress.advance(self._task, len(outcome.batch))
        if outcome.step is not None and outcome.step.updated:
            self.learned += 1
        else:
            self.refused[outcome.step.reason if outcome.step is not None else ""] += 1

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


def _row(phase: Phase, quality: Quality) -> PhaseRow:
    return PhaseRow(
        phase.name, phase.modality, phase.queries, quality.n,
        quality.map_frozen, quality.map_adapted, quality.map_served,
        quality.diff, quality.low, quality.high, quality.r1_frozen, quality.r1_served,
        float("nan"), float("nan"), float("nan"),
    )  # fmt: skip
