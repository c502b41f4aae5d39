"""Observers beside the loop: they may raise, hang or fall behind, and answers know nothing of it."""

import logging
import threading
import time
from typing import Any

import pytest

from core.types import Coordinates, Judgement, Record, Refusal
from monitoring.aside import Aside, Errors, SafeOperations


def label(number: int) -> Judgement:
    return Judgement(Coordinates("labels", 0, number), Coordinates("queries", 0, number), "cat")


def refusal(number: int) -> Refusal:
    return Refusal(Record(Coordinates("queries", 0, number), b""), "decode", "Refused", "why")


class Notes:
    """Writes down what it sees, and in which thread."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.threads: set[int] = set()

    def observe(self, outcome: Any) -> None:
        self._note(outcome)

    def judge(self, judgement: Any) -> None:
        self._note(judgement)

    def refuse(self, refusal: Any) -> None:
        self._note(refusal)

    def _note(self, what: Any) -> None:
        self.seen.append(what)
        self.threads.add(threading.get_ident())


class Broken(Notes):
    def _note(self, what: Any) -> None:
        raise ValueError("an observer's own mistake")


class Slow(Notes):
    """Waits at its first sight until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.may = threading.Event(), threading.Event()

    def _note(self, what: Any) -> None:
        self.entered.set()
        self.may.wait(10)
        super()._note(what)


def test_everything_is_seen_in_order_in_a_thread_of_its_own() -> None:
    notes = Notes()
    aside = Aside([notes], Errors())
    sent = [label(n) if n % 3 else refusal(n) for n in range(300)]
    for one in sent:
        aside.judge(one) if isinstance(one, Judgement) else aside.refuse(one)
    assert aside.drain(10)
    assert notes.seen == sent and notes.threads.isdisjoint({threading.get_ident()})
    aside.close()


def test_an_observer_that_raises_is_counted_and_the_others_see_everything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes, told = Notes(), []
    errors = Errors(told.append)
    aside = Aside([Broken(), notes], errors)
    with caplog.at_level(logging.ERROR):
        for number in range(50):
            aside.judge(label(number))
        assert aside.drain(10)
    assert len(notes.seen) == 50 and errors.counts == {"Broken": 50} and told == ["Broken"] * 50
    assert [record.getMessage() for record in caplog.records] == ["an observer failed"]  # not fifty times
    aside.close()


def test_one_that_hangs_never_blocks_and_what_is_dropped_is_counted() -> None:
    slow, dropped = Slow(), []
    errors = Errors()
    aside = Aside([slow], errors, dropped.append, most_labels=5, most_outcomes=3)
    aside.judge(label(0))
    assert slow.entered.wait(5)
    began = time.monotonic()
    for number in range(1, 11):
        aside.judge(label(number))
        aside.refuse(refusal(number))
    assert time.monotonic() - began < 1.0 and not aside.drain(0.0)
    slow.may.set()
    assert aside.drain(10)
    kept = [one for one in slow.seen if isinstance(one, Judgement)]
    assert [one.at.offset for one in kept] == [0, 1, 2, 3, 4, 5] and sum(dropped) == 5
    assert len(slow.seen) - len(kept) == 3 and errors.counts["queue"] == 7
    aside.close()


def test_close_shows_what_still_waits() -> None:
    notes = Notes()
    aside = Aside([notes], Errors())
    for number in range(100):
        aside.judge(label(number))
    aside.close()
    assert len(notes.seen) == 100 and not any(t.name == "qshift-observers" for t in threading.enumerate())


def test_operations_that_raise_are_counted() -> None:
    class Bad:
        def cut(self, size_bytes: int) -> None:
            raise OSError("full")

        restored = recovered = rebalanced = cut

    errors = Errors()
    safe = SafeOperations(Bad(), errors)  # type: ignore[arg-type]
    safe.cut(1)
    safe.restored(1.0)
    safe.recovered()
    safe.rebalanced()
    assert errors.counts == {"Bad": 4}
