"""Observers beside the loop: they may raise, hang or fall behind, and answers know nothing of it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.records import Coordinates, Judgement, Record, Refusal
from core.types import Outcome
from monitoring.aside import Aside, Errors, held_bytes
from monitoring.history import History


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
    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self._error = error or ValueError("an observer's own mistake")

    def _note(self, what: Any) -> None:
        raise self._error


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
    assert len(notes.seen) == 50 and errors.counts == {"Broken": 20} and told == ["Broken"] * 20
    assert [record.getMessage() for record in caplog.records] == [
        "an observer failed", "observer switched off until the next start",
    ]  # fmt: skip
    aside.close()


def test_one_that_fails_now_and_then_is_not_switched_off_and_the_page_says_which_was() -> None:
    class Often(Notes):
        def judge(self, judgement: Judgement) -> None:
            super().judge(judgement)
            if len(self.seen) % 19:
                raise ValueError("not this one")

    often, history, errors = Often(), History(subtitle="items"), Errors()
    aside = Aside([Broken(), often, history], errors, switched_off=history.lacks)
    for number in range(100):
        aside.judge(label(number))
    assert aside.drain(10)
    aside.close()
    assert len(often.seen) == 100 and errors.counts["Often"] == 95
    assert history.snapshot()["subtitle"] == "items · Broken failed and was switched off"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_one_that_wants_to_end_the_process_ends_nothing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    notes, errors = Notes(), Errors()
    aside = Aside([Broken(error), notes], errors)
    with caplog.at_level(logging.ERROR):
        for number in range(3):
            aside.judge(label(number))
        assert aside.drain(10)
    assert len(notes.seen) == 3 and errors.counts == {"Broken": 3}
    assert [record.getMessage() for record in caplog.records] == ["an observer failed"]
    aside.close()


def test_an_error_that_cannot_be_counted_ends_nothing() -> None:
    def count(name: str) -> None:
        raise OSError("no more series")

    notes, errors = Notes(), Errors(count)
    aside = Aside([Broken(), notes], errors)
    aside.judge(label(0))
    aside.judge(label(1))
    assert aside.drain(10) and len(notes.seen) == 2 and errors.counts["Broken"] == 2
    aside.close()


def test_what_waits_is_bounded_by_bytes_and_said_once(
    outcome: Callable[..., Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    slow, dropped = Slow(), []
    aside = Aside([slow], Errors(), dropped.append, most_bytes=10 * 2**20)
    batch = [outcome([n], contents=[bytes(2**20)]) for n in range(20)]
    with caplog.at_level(logging.ERROR):
        for one in batch:
            aside.observe(one)
        assert slow.entered.wait(5)
        held = aside.held_bytes
    assert 8 * 2**20 < held <= 10 * 2**20 and dropped == ["outcome"] * 11
    assert [record.getMessage() for record in caplog.records] == [
        "observers are too slow: what they should see is dropped"
    ]
    slow.may.set()
    assert aside.drain(10) and slow.seen == batch[:9] and aside.held_bytes == 0
    aside.observe(outcome([99], contents=[bytes(20 * 2**20)]))  # larger than all, and alone
    assert aside.drain(10) and len(slow.seen) == 10
    aside.close()


def test_bytes_are_those_that_are_kept_alive(outcome: Callable[..., Outcome]) -> None:
    whole = np.zeros((64, 1000, 1000), np.uint8)
    shown = outcome([0, 1], features=np.zeros((2, 512), np.float32))
    plain = held_bytes(shown)
    assert plain >= 2 * 512 * 4 and plain < 2 * 512 * 4 + 3000  # both twins show the same features
    queries = tuple(replace(q, prepared=whole[n]) for n, q in enumerate(shown.batch.queries))
    views = replace(shown, batch=replace(shown.batch, queries=queries))
    assert held_bytes(views) == plain + whole.nbytes  # two views keep all of it alive, once
    large = Judgement(Coordinates("l", 0, 0), Coordinates("q", 0, 0), "x" * 10**6)
    assert held_bytes(large) > 10**6
    assert held_bytes(Refusal(Record(Coordinates("q", 0, 0), bytes(10**6)), "decode", "", "")) > 10**6


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
    assert [one.at.offset for one in kept] == [0, 1, 2, 3, 4, 5] and dropped.count("label") == 5
    assert len(slow.seen) - len(kept) == 3 and dropped.count("refusal") == 7
    aside.close()


def test_close_shows_what_still_waits() -> None:
    notes = Notes()
    aside = Aside([notes], Errors())
    for number in range(100):
        aside.judge(label(number))
    aside.close()
    assert len(notes.seen) == 100 and not any(t.name == "qshift-observers" for t in threading.enumerate())
