"""What is shown from within the loop's own thread may fail without the loop."""

from typing import Any

import pytest

from core.records import Coordinates, Record
from monitoring.aside import Errors
from qshift.observers import Watched, count
from stream.events import Delivering, Event, Rebalanced, Recovered, Restored, Saved


class Source:
    """A source of one record that says how far it is behind."""

    def poll(self, budget_seconds: float) -> list[Record]:
        return [Record(Coordinates("queries", 0, 0), b"")]

    def lag(self) -> dict[tuple[str, int], int]:
        return {("queries", 0): 7}


class Shown:
    """Metrics of the lag alone."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[Any] = []
        self._error = error

    def lag(self, partition: str, records: int) -> None:
        if self._error is not None:
            raise self._error
        self.seen.append((partition, records))


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1), KeyboardInterrupt()])
def test_a_lag_that_cannot_be_shown_ends_nothing(error: BaseException) -> None:
    errors = Errors()
    watched = Watched(Source(), Shown(error), errors)  # type: ignore[arg-type]
    assert len(watched.poll(0.0)) == 1 and errors.counts == {"Shown": 1}


def test_the_lag_is_shown_by_partition() -> None:
    shown = Shown()
    Watched(Source(), shown, Errors()).poll(0.0)  # type: ignore[arg-type]
    assert shown.seen == [("queries/0", 7)]


def test_what_was_read_and_waits_counts_as_behind() -> None:
    """4,096 queries may wait for their answer: the lag was 0 meanwhile."""

    class Waiting:
        partition, pending = ("queries", 0), (1, 2, 3)

    shown = Shown()
    Watched(Source(), shown, Errors(), lambda: [Waiting()]).poll(0.0)  # type: ignore[arg-type, list-item]
    assert shown.seen == [("queries/0", 10)]


class Counters:
    """Metrics of events alone; those that are not here raise."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def saved(self, size_bytes: int) -> None:
        self.seen.append(size_bytes)

    def restored(self, seconds: float) -> None:
        raise SystemExit(1)

    def recovered(self) -> None:
        self.seen.append("recovered")


def test_events_are_counted_and_an_event_that_cannot_be_ends_nothing() -> None:
    errors, counters = Errors(), Counters()
    events: list[Event] = [Saved(7), Restored(1.0), Recovered(), Rebalanced(), Delivering(False)]
    for event in events:
        count(counters, errors, event)  # type: ignore[arg-type]
    assert counters.seen == [7, "recovered"] and errors.counts == {"Counters": 2}
