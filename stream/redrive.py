"""Dead letters that go back to where they came from, with their original bytes.

Nothing is kept about what was sent: each record says where the original lies (`x-redriven-from`), and
who redrives looks for that in the log first. So it may be repeated, and interrupted at any place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from core.config import KafkaConfig
from core.records import Coordinates, Record
from stream.history.answered import letter_source
from stream.history.windows import Log, Progress, nobody, windows
from stream.letters import OURS
from stream.records import CORRUPT

ORIGIN = "x-redriven-from"
Send = Callable[[str, int, bytes | None, bytes | None, Sequence[tuple[str, bytes]]], None]
"""(topic, partition, value, key, headers)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters go back. Empty means all.

    Args:
        stages: of failure, as in `x-error-stage`.
        errors: classes, as in `x-error-class`.
        start_ms, end_ms: when the letter was written; from (included) and to (excluded).
        attempts: most times that a query may have been tried.
    """

    stages: frozenset[str] = frozenset()
    errors: frozenset[str] = frozenset()
    start_ms: int = 0
    end_ms: int = 2**63 - 1
    attempts: int = 3


@dataclass(slots=True)
class Redriven:
    """What became of the letters: how many were sent, and why others were left."""

    sent: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    """Of those sent."""
    left: Counter[str] = field(default_factory=Counter)
    """Reason -> letters."""


@dataclass(frozen=True, slots=True)
class _Letter:
    record: Record
    source: Coordinates
    stage: str
    attempt: int


def redrive(
    log: Log, kafka: KafkaConfig, wanted: Wanted, send: Send, found: Redriven, progress: Progress = nobody
) -> None:
    """Sends letters back, oldest first, to their own topic and partition.

    Args:
        send: takes one record; a dry run does nothing with it.
        found: is filled as it goes on, so that who is interrupted knows how far it came.

    Raises:
        BrokerError: Kafka cannot be read; and whatever `send` raises.
    """
    letters = list(_chosen(log, kafka, wanted, {kafka.queries, kafka.labels}, found, progress))
    known = _gone_back(log, letters, progress)
    for letter in letters:
        if str(letter.source) in known:
            found.left["already sent back"] += 1
            continue
        original = _original(log, letter)
        if original is None:
            found.left["cut, and no longer in the log"] += 1
            continue
        headers = [(n, v) for n, v in original.headers if not n.startswith(OURS) and n != ORIGIN]
        headers += [(ORIGIN, str(letter.source).encode()), ("x-attempt", b"%d" % (letter.attempt + 1))]
        send(letter.source.topic, letter.source.partition, original.value, original.key, headers)
        known.add(str(letter.source))
        found.sent += 1
        found.stages[letter.stage] += 1


def _chosen(
    log: Log, kafka: KafkaConfig, wanted: Wanted, topics: Collection[str], found: Redriven, progress: Progress
) -> Iterator[_Letter]:
    bounds = log.bounds(kafka.dead_letters)
    for record in windows(log, kafka.dead_letters, bounds, progress):
        said = {name: value.decode(errors="replace") for name, value in record.headers}
        source, stage, error = (
            letter_source(record),
            said.get("x-error-stage", ""),
            said.get("x-error-class", ""),
        )
        if not wanted.start_ms <= record.timestamp_ms < wanted.end_ms:
            continue
        if (wanted.stages and stage not in wanted.stages) or (wanted.errors and error not in wanted.errors):
            continue
        if source is None or source.topic not in topics:
            found.left["of another topic"] += 1
        elif error == CORRUPT:
            found.left["could not be read by any client"] += 1
        elif (attempt := _number(said.get("x-attempt", "1"))) >= wanted.attempts:
            found.left[f"tried {wanted.attempts} times or more"] += 1
        else:
            yield _Letter(record, source, stage, attempt)


def _gone_back(log: Log, letters: Sequence[_Letter], progress: Progress) -> set[str]:
    """Places of originals that the log has a redriven copy of: it cannot be older than its letter."""
    known: set[str] = set()
    oldest: dict[str, int] = {}
    for letter in letters:
        topic = letter.source.topic
        oldest[topic] = min(letter.record.timestamp_ms, oldest.get(topic, letter.record.timestamp_ms))
    for topic, since in oldest.items():
        bounds, starts = log.bounds(topic), log.at_time(topic, since)
        ranges = {n: (at, bounds[n][1]) for n, at in starts.items() if at is not None and n in bounds}
        for record in windows(log, topic, ranges, progress):
            known |= {value.decode(errors="replace") for name, value in record.headers if name == ORIGIN}
    return known


def _original(log: Log, letter: _Letter) -> Record | None:
    """The record as its client sent it; from its source where the letter was cut."""
    said, at = dict(letter.record.headers), letter.source
    if "x-source-truncated" not in said:
        return letter.record if "x-source-null" not in said else replace(letter.record, value=None)
    low, high = log.bounds(at.topic).get(at.partition, (0, 0))
    if not low <= at.offset < high:
        return None
    return next(iter(log.read(at.topic, {at.partition: (at.offset, at.offset + 1)})), None)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 1
