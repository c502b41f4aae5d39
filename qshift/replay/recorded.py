"""Recorded topics as input of a replay: what would another method have answered yesterday?

The queries come back with the coordinates that they had, so keyed draws, labels and, where the journal holds
them, batch boundaries are those of the live run. What a lane had learned before the stretch does not come
back: a replay starts from the source, as `qshift serve` does on its first day.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from core.checkpoints import JournalEntry
from core.config import KafkaConfig, LimitConfig
from core.errors import ArtifactError, ConfigError, OffsetGoneError
from core.records import Coordinates, Judgement, Partition, Record
from stream.codec import Codec
from stream.memory import MemorySource
from stream.recording import KafkaLog
from stream.states import entry_from_bytes, settled

Ranges = dict[int, tuple[int, int]]
"""Partition -> (first offset, the one after the last)."""
LEAST_MS = 10**11
"""Plain numbers from here on are milliseconds (March 1973), below it offsets."""
MOST_MS = 10**14
FORMS = "an offset (1200), a time (2026-11-22T08:00:00Z) or milliseconds since 1970 (1795334400000)"


class Log(Protocol):
    """Where recordings lie: `stream.recording.KafkaLog`, or a list in tests."""

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> (first offset, the one after the last); {} for a topic that does not exist."""

    def at_time(self, topic: str, time_ms: int) -> dict[int, int | None]:
        """Partition -> the first offset with a timestamp of at least `time_ms`; None where there is none."""

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        """Records of each partition from its first offset up to before its second, by place."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A stretch of a query topic, and what else was recorded about it.

    `journal` holds the batch boundaries of the lanes whose beginning it knows, cut to the stretch; `notes`
    say in words what is missing.
    """

    topic: str
    ranges: Ranges
    records: tuple[Record, ...]
    labels: Mapping[Coordinates, str]
    journal: tuple[JournalEntry, ...]
    notes: tuple[str, ...] = ()
    late: tuple[Record, ...] = ()
    """All of the label topic's records about the topic, and of the control topic's those that the journal
    names, each in the order of their places."""

    def source(self) -> MemorySource:
        """The queries as a source: partitions merged by time, each in its own order."""
        return MemorySource(self.records, [self.topic])


def recorded(
    bootstrap_servers: str,
    kafka: KafkaConfig,
    limits: LimitConfig,
    topic: str,
    start: str = "",
    end: str = "",
    partitions: Collection[int] = (),
) -> Recording:
    """Reads a recording from Kafka; see `read_recording`."""
    with KafkaLog(bootstrap_servers, kafka.security) as log:
        return read_recording(log, kafka, limits, topic, start, end, partitions)


def read_recording(
    log: Log,
    kafka: KafkaConfig,
    limits: LimitConfig,
    topic: str,
    start: str = "",
    end: str = "",
    partitions: Collection[int] = (),
) -> Recording:
    """A stretch of the query topic with its labels and batch boundaries.

    Args:
        kafka: names of the label and the journal topic; either may be missing.
        limits: for decoding labels.
        topic: of the queries, as recorded.
        start, end: from (included) and to (excluded): an offset, an ISO 8601 time (UTC where it names no
            zone) or milliseconds since 1970; "" for the beginning and the present end.
        partitions: which; all by default. An offset needs exactly one.

    Raises:
        ConfigError: no such topic or partition, a mark that cannot be read, or a stretch without records.
        OffsetGoneError: the log no longer reaches back to the start.
    """
    kafka = kafka.model_copy(update={"queries": topic})
    held = log.bounds(topic)
    if not held:
        raise ConfigError(f"the topic {topic} does not exist: name one that was recorded")
    unknown = sorted(set(partitions) - set(held))
    if unknown:
        raise ConfigError(f"{topic} has no partition {unknown[0]}: one of {', '.join(map(str, held))}")
    held = {number: held[number] for number in sorted(partitions or held)}
    ranges = _ranges(log, topic, start, end, held)
    records = log.read(topic, ranges)
    lost = [n for n, (first, _) in log.bounds(topic).items() if n in ranges and first > ranges[n][0]]
    if lost:
        raise OffsetGoneError(f"{_valid(log, topic, held)}; retention took records away while they were read")
    if not records:
        raise ConfigError(f"nothing was recorded from {start or 'the beginning'} to {end or 'the end'}: "
                          f"{_valid(log, topic, held)}")  # fmt: skip
    labels, late = _labels(log, Codec(limits, kafka), kafka.labels, ranges, topic)
    journal, notes = _journal(log, kafka.journal, ranges, topic)
    late = (*late, *_commands(log, kafka.control, journal))
    return Recording(topic, ranges, tuple(merged(records)), labels, journal, notes, late)


def mark(text: str) -> tuple[int | None, int | None]:
    """(offset, None) or (None, milliseconds since 1970). Raises ConfigError."""
    text = text.strip()
    if text.isdecimal():
        number = int(text)
        if number < MOST_MS:
            return (number, None) if number < LEAST_MS else (None, number)
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return None, max(0, round(found.timestamp() * 1000))
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is no place in a recording: expected {FORMS}") from None


def merged(records: Sequence[Record]) -> list[Record]:
    """All partitions in one order, by time; within a partition the log's own, whatever the clocks said."""
    latest: dict[int, int] = {}
    keyed = []
    for record in sorted(records, key=lambda r: r.at):
        number = record.at.partition
        latest[number] = max(latest.get(number, 0), record.timestamp_ms)
        keyed.append(((latest[number], record.at), record))
    return [record for _, record in sorted(keyed, key=lambda pair: pair[0])]


def _ranges(log: Log, topic: str, start: str, end: str, held: Ranges) -> Ranges:
    marks = [mark(text) if text else (None, None) for text in (start, end)]
    if len(held) > 1 and any(offset is not None for offset, _ in marks):
        raise ConfigError(
            f"an offset means one partition, and {topic} has {len(held)}: name one with --partition, or give "
            "times"
        )
    (first_offset, first_ms), (end_offset, end_ms) = marks
    firsts = log.at_time(topic, first_ms) if first_ms is not None else {}
    ends = log.at_time(topic, end_ms) if end_ms is not None else {}
    ranges: Ranges = {}
    for number, (low, high) in held.items():
        begin = low if first_offset is None else first_offset
        if first_ms is not None:
            found = firsts.get(number)
            begin = high if found is None else found
            if begin == low > 0 and low < high and _older(log, topic, number, low, first_ms):
                raise OffsetGoneError(
                    f"the log no longer reaches back to {start}: {_valid(log, topic, held)}"
                )
        stop = high if end_offset is None else end_offset
        if end_ms is not None:
            found = ends.get(number)
            stop = high if found is None else found
        if begin < low:
            raise OffsetGoneError(f"the log no longer holds offset {begin}: {_valid(log, topic, held)}")
        if stop > high or (first_offset is not None and begin >= high):
            raise ConfigError(f"the log ends before {max(begin, stop)}: {_valid(log, topic, held)}")
        if begin > stop and (first_offset, end_offset) != (None, None):
            raise ConfigError(f"the start {begin} lies behind the end {stop}: {_valid(log, topic, held)}")
        ranges[number] = (begin, max(begin, stop))
    if first_ms is not None and end_ms is not None and first_ms >= end_ms:
        raise ConfigError(f"the start {start} does not lie before the end {end}: {_valid(log, topic, held)}")
    return ranges


def _older(log: Log, topic: str, number: int, low: int, wanted_ms: int) -> bool:
    """Whether the time asked for lies before the first record that retention has left."""
    first = log.read(topic, {number: (low, low + 1)})
    return bool(first) and first[0].timestamp_ms > wanted_ms


def _valid(log: Log, topic: str, held: Ranges) -> str:
    """What could have been asked for, as part of a sentence."""
    return "; ".join(_held(log, topic, number, *bounds) for number, bounds in held.items())


def _held(log: Log, topic: str, number: int, low: int, high: int) -> str:
    if low == high:
        return f"{topic}/{number} holds no records"
    ends = log.read(topic, {number: (low, low + 1)}) + log.read(topic, {number: (high - 1, high)})
    times = [f"{datetime.fromtimestamp(r.timestamp_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}" for r in ends]
    return f"{topic}/{number} holds offsets {low} to {high - 1}" + (
        f" ({' to '.join(times)})" if times else ""
    )


def _labels(
    log: Log, codec: Codec, topic: str, ranges: Ranges, queries: str
) -> tuple[dict[Coordinates, str], tuple[Record, ...]]:
    """Labels of the stretch, whenever they came, the last one of a query; and the records of all labels."""
    found: dict[Coordinates, str] = {}
    records: list[Record] = []
    for record in merged(log.read(topic, log.bounds(topic))):
        event = codec.decode(record)
        if isinstance(event, Judgement) and event.query.topic == queries:
            records.append(record)
            start, end = ranges.get(event.query.partition, (0, 0))
            if start <= event.query.offset < end:
                found[event.query] = event.label
    return found, tuple(sorted(records, key=lambda record: record.at))


def _journal(
    log: Log, topic: str, ranges: Ranges, queries: str
) -> tuple[tuple[JournalEntry, ...], tuple[str, ...]]:
    """Boundaries within the stretch, and what could not be used."""
    held = log.bounds(topic)
    by_lane: dict[tuple[Partition, str], list[JournalEntry]] = {}
    notes: list[str] = []
    for record in log.read(topic, {n: bounds for n, bounds in held.items() if n in ranges}):
        try:
            entry = entry_from_bytes(record.value or b"")
        except ArtifactError as error:
            notes.append(f"journal entry {record.at} is left out: {error}")
            continue
        if entry.topic == queries and entry.partition in ranges:
            by_lane.setdefault(((entry.topic, entry.partition), entry.lane), []).append(entry)
    kept: list[JournalEntry] = []
    for (partition, lane), entries in sorted(by_lane.items()):
        start, end = ranges[partition[1]]
        entries = sorted(settled(entries, {}), key=lambda entry: entry.seq)
        inside = [(_cut(entry, start, end), not entry.offsets) for entry in entries]
        batches = [entry for entry in entries if entry.offsets]
        if not any(entry.offsets for entry, _ in inside):
            continue  # commands alone say nothing of the stretch
        # A planned batch swallows whatever lies before it: without the lane's first batches they would go
        # unanswered.
        if entries[0].seq > 0 and batches[0].offsets[0] >= start:
            notes.append(f"the journal lacks the beginning of lane {lane}: its batches are cut by size")
            continue
        # What was commanded before the stretch may still hold in it.
        kept += [entry for entry, command in inside if command or entry.offsets]
    if not kept:
        notes.append("no batch boundaries were recorded for this stretch: batches are cut by size")
    return tuple(kept), tuple(notes)


def _commands(log: Log, topic: str, journal: Sequence[JournalEntry]) -> list[Record]:
    """The records of the control topic that lanes have obeyed in the stretch or before it."""
    named = {entry.control_offset - 1 for entry in journal if not entry.offsets}
    return (
        [record for record in log.read(topic, log.bounds(topic)) if record.at.offset in named]
        if named
        else []
    )


def _cut(entry: JournalEntry, start: int, end: int) -> JournalEntry:
    """The part of a batch that lies within the stretch."""
    return replace(entry, offsets=tuple(offset for offset in entry.offsets if start <= offset < end))
