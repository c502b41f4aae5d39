"""Recordings: every way to name a stretch; what is missing is said; labels and boundaries are the run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from core.checkpoints import JournalEntry
from core.config import KafkaConfig, LimitConfig
from core.errors import ConfigError, OffsetGoneError
from core.records import Coordinates, Record
from qshift.replay.recorded import Recording, mark, merged, read_recording
from stream import codec
from stream.states import entry_to_bytes

KAFKA = KafkaConfig()
TOPIC = "yesterday.queries"
SECOND = 1_700_000_000_000


class ListLog:
    """Topics as lists; `first` says how much of a partition retention has removed."""

    def __init__(self, records: list[Record], first: dict[tuple[str, int], int] | None = None) -> None:
        self.first = first or {}
        self.records = [r for r in records if r.at.offset >= self.first.get((r.at.topic, r.at.partition), 0)]
        self.reads = 0

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for record in self.records:
            if record.at.topic == topic:
                low, high = found.get(record.at.partition, (record.at.offset, 0))
                found[record.at.partition] = (low, max(high, record.at.offset + 1))
        for (name, number), offset in self.first.items():
            if name == topic:
                found.setdefault(number, (offset, offset))
        return found

    def at_time(self, topic: str, time_ms: int) -> dict[int, int | None]:
        return {
            number: min(
                (r.at.offset for r in self.of(topic, number) if r.timestamp_ms >= time_ms), default=None
            )
            for number in self.bounds(topic)
        }

    def of(self, topic: str, number: int) -> list[Record]:
        return [r for r in self.records if (r.at.topic, r.at.partition) == (topic, number)]

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        self.reads += 1
        return sorted(
            (
                r
                for n, (start, end) in ranges.items()
                for r in self.of(topic, n)
                if start <= r.at.offset < end
            ),
            key=lambda r: r.at,
        )


def query(offset: int, partition: int = 0, seconds: float | None = None) -> Record:
    value, headers = codec.text_query(f"query {offset}")
    stamp = SECOND + round(1000 * (offset if seconds is None else seconds))
    return Record(Coordinates(TOPIC, partition, offset), value, None, tuple(headers), stamp)


def label(offset: int, at: Coordinates, name: str, seconds: float = 0) -> Record:
    place = Coordinates(KAFKA.labels, 0, offset)
    return Record(place, codec.label(at, name), None, (), SECOND + round(1000 * seconds))


def entry(seq: int, offsets: tuple[int, ...], generation: int = 0, lane: str = "0:text") -> JournalEntry:
    return JournalEntry(TOPIC, 0, lane, seq, offsets, "state", 0, generation)


def journal(*entries: JournalEntry) -> list[Record]:
    return [Record(Coordinates(KAFKA.journal, 0, n), entry_to_bytes(e)) for n, e in enumerate(entries)]


def read(log: ListLog, start: str = "", end: str = "", partitions: tuple[int, ...] = ()) -> Recording:
    return read_recording(log, KAFKA, LimitConfig(), TOPIC, start, end, partitions)


def offsets(found: Recording) -> list[int]:
    return [record.at.offset for record in found.records]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", (0, None)),
        (" 1200 ", (1200, None)),
        ("99999999999", (99999999999, None)),
        ("100000000000", (None, 100000000000)),
        ("1700000000123", (None, 1700000000123)),
        ("2023-11-14T22:13:20Z", (None, SECOND)),
        ("2023-11-14T22:13:20", (None, SECOND)),
        ("2023-11-14T23:13:20.5+01:00", (None, SECOND + 500)),
        ("2023-11-14", (None, SECOND - (22 * 3600 + 13 * 60 + 20) * 1000)),
        ("0001-01-01", (None, 0)),
    ],
)
def test_marks(text: str, expected: tuple[int | None, int | None]) -> None:
    assert mark(text) == expected


@pytest.mark.parametrize("text", ["yesterday", "-5", "1.5", "2023-13-01", "9" * 30, "12:00"])
def test_marks_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected an offset \(1200\)"):
        mark(text)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("", "", list(range(10))),
        ("3", "", list(range(3, 10))),
        ("", "3", [0, 1, 2]),
        ("3", "7", [3, 4, 5, 6]),
        ("3", "10", list(range(3, 10))),
        (str(SECOND + 3000), str(SECOND + 7000), [3, 4, 5, 6]),
        (str(SECOND + 2500), str(SECOND + 6500), [3, 4, 5, 6]),
        ("2023-11-14T22:13:23Z", "2030-01-01", list(range(3, 10))),
        ("3", str(SECOND + 5000), [3, 4]),
        ("1980-01-01", "4", [0, 1, 2, 3]),
    ],
)
def test_stretches(start: str, end: str, expected: list[int]) -> None:
    assert offsets(read(ListLog([query(n) for n in range(10)]), start, end)) == expected


@pytest.mark.parametrize(
    ("start", "end", "error", "word"),
    [
        ("4", "", OffsetGoneError, "no longer holds offset 4"),
        ("2023-11-14T22:13:22Z", "", OffsetGoneError, "no longer reaches back"),
        ("15", "25", ConfigError, "ends before 25"),
        ("20", "", ConfigError, "ends before 20"),
        ("12", "8", ConfigError, "start 12 lies behind the end 8"),
        ("12", "12", ConfigError, "nothing was recorded"),
        ("2023-11-14T22:13:38Z", "2023-11-14T22:13:32Z", ConfigError, "does not lie before"),
        ("2030-01-01", "", ConfigError, "nothing was recorded from 2030-01-01"),
    ],
)
def test_a_truncated_recording_is_one_sentence_with_the_valid_range(
    start: str, end: str, error: type[Exception], word: str
) -> None:
    log = ListLog([query(n) for n in range(20)], {(TOPIC, 0): 10})
    with pytest.raises(error, match=word) as raised:
        read(log, start, end)
    text = str(raised.value)
    assert "yesterday.queries/0 holds offsets 10 to 19" in text
    assert "2023-11-14T22:13:30Z to 2023-11-14T22:13:39Z" in text
    assert "\n" not in text


def test_topics_and_partitions_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read(ListLog([]))
    with pytest.raises(ConfigError, match="holds no records"):
        read(ListLog([], {(TOPIC, 0): 5}))
    log = ListLog([query(n, part) for n in range(4) for part in (0, 1)])
    with pytest.raises(ConfigError, match="no partition 2: one of 0, 1"):
        read(log, partitions=(2,))
    with pytest.raises(ConfigError, match="--partition"):
        read(log, "1")
    assert {r.at.partition for r in read(log, "1", partitions=(1,)).records} == {1}


def test_records_lost_while_reading_are_noticed() -> None:
    class Shrinking(ListLog):
        def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
            found = super().read(topic, ranges)
            self.records = [r for r in self.records if r.at.offset >= 2]
            return found

    with pytest.raises(OffsetGoneError, match="while they were read"):
        read(Shrinking([query(n) for n in range(5)]))


def test_partitions_are_merged_by_time_and_keep_their_own_order() -> None:
    clocks = {0: [0, 9, 3, 4], 1: [1, 2, 8, 10]}
    log = ListLog([query(n, part, s) for part, stamps in clocks.items() for n, s in enumerate(stamps)])
    found = [(r.at.partition, r.at.offset) for r in read(log).records]
    assert found == [(0, 0), (1, 0), (1, 1), (1, 2), (0, 1), (0, 2), (0, 3), (1, 3)]
    assert merged([]) == []
    source = read(log).source()
    assert source.assignment() == {(TOPIC, 0), (TOPIC, 1)}
    assert [(r.at.partition, r.at.offset) for r in source.poll(0)] == found


def test_labels_are_joined_by_coordinates_and_the_last_one_counts() -> None:
    at = [Coordinates(TOPIC, 0, n) for n in range(10)]
    labels = [
        label(0, at[3], "early"),
        label(1, at[4], "kept"),
        label(2, at[3], "late"),
        label(3, at[9], "outside"),
        label(4, Coordinates("other", 0, 3), "other topic"),
        label(5, Coordinates(TOPIC, 5, 3), "other partition"),
        Record(Coordinates(KAFKA.labels, 0, 6), b"broken"),
    ]
    log = ListLog([*[query(n) for n in range(10)], *labels])
    assert read(log, "2", "6").labels == {at[3]: "late", at[4]: "kept"}
    assert read(ListLog([query(0)])).labels == {}
    # What may have steered: all that is about the topic, so that every position of the journal is reached.
    assert [record.at.offset for record in read(log, "2", "6").late] == [0, 1, 2, 3, 5]


def test_journal_is_cut_to_the_stretch() -> None:
    entries = [entry(0, (0, 1, 2)), entry(1, (3, 5)), entry(2, (6, 7, 8)), entry(3, (9,))]
    log = ListLog([*[query(n) for n in range(10)], *journal(*entries)])
    found = read(log, "2", "8")
    assert [e.offsets for e in found.journal] == [(2,), (3, 5), (6, 7)]
    assert found.notes == ()
    assert [e.offsets for e in read(log).journal] == [e.offsets for e in entries]


def test_entries_keep_the_versions_of_the_gallery() -> None:
    versions = ["a", "a", "b"]
    entries = [replace(entry(n, (n,)), gallery=version) for n, version in enumerate(versions)]
    log = ListLog([*[query(n) for n in range(3)], *journal(*entries)])
    assert [e.gallery for e in read(log).journal] == versions and read(log).notes == ()


def test_journal_of_zombies_and_other_topics_does_not_count() -> None:
    stranger = JournalEntry("other", 0, "0:text", 0, (0, 1, 2, 3), "s", 0, 0)
    entries = [entry(0, (0, 1)), stranger, entry(1, (2,), 1), entry(1, (2, 3), 0), entry(2, (3, 4), 1)]
    broken = Record(Coordinates(KAFKA.journal, 0, 9), b"{}")
    found = read(ListLog([*[query(n) for n in range(5)], *journal(*entries), broken]))
    assert [e.offsets for e in found.journal] == [(0, 1), (2,), (3, 4)]
    assert len(found.notes) == 1 and "journal entry" in found.notes[0]


def test_a_journal_without_its_beginning_is_left_out_and_said() -> None:
    entries = [entry(2, (4, 5)), entry(3, (6, 7)), entry(0, (1,), lane="0:image")]
    found = read(ListLog([*[query(n) for n in range(10)], *journal(*entries)]))
    assert [e.lane for e in found.journal] == ["0:image"]
    assert "lane 0:text" in found.notes[0]
    inside = read(ListLog([*[query(n) for n in range(10)], *journal(*entries[:2])]), "5")
    assert [e.offsets for e in inside.journal] == [(5,), (6, 7)]
    assert "cut by size" in read(ListLog([query(0)])).notes[0]


def test_commands_come_with_the_boundaries_that_name_them() -> None:
    """Also those before the stretch: what was said then may still hold."""
    orders = [Record(Coordinates(KAFKA.control, 0, n), b"{}") for n in range(4)]
    boundaries = (
        entry(0, (0, 1)),
        replace(entry(1, ()), control_offset=2),
        replace(entry(2, (2, 3)), gallery="g"),
        replace(entry(3, ()), control_offset=4),
        replace(entry(4, (4, 5)), gallery="g"),
    )
    log = ListLog([*map(query, range(6)), *orders, *journal(*boundaries)])
    found = read(log, "3", "5")
    assert [(e.seq, e.offsets, e.control_offset) for e in found.journal] == [
        (1, (), 2), (2, (3,), 0), (3, (), 4), (4, (4,), 0),
    ]  # fmt: skip
    assert [record.at.offset for record in found.late] == [1, 3]
    assert not any("gallery" in note for note in found.notes)
