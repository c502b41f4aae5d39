"""What the front asks the service: once for all who wait, given up in time, kept for a moment."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry

from monitoring import questions as module
from monitoring.aside import Errors
from monitoring.desk import Desk, Views
from monitoring.formats import FORMATS, chosen_format
from monitoring.history import History
from monitoring.questions import Kept, Questions, Unanswered

Test = Callable[[Questions], Awaitable[None]]


def asking(views: Views, test: Test) -> Errors:
    """Runs a test at one end of a channel, with a desk at the other."""
    ours, theirs = socket.socketpair()
    errors = Errors()
    desk = Desk(views, lambda: None, errors)

    async def whole() -> None:
        closed = asyncio.Event()
        reader, writer = await asyncio.open_connection(sock=theirs)
        questions = Questions(reader, writer, closed.set)
        serving = asyncio.create_task(asyncio.to_thread(desk.serve, ours))
        listening = asyncio.create_task(questions.listen())
        try:
            await asyncio.wait_for(test(questions), 20)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            await asyncio.gather(serving, listening)
            writer.close()
            await asyncio.sleep(0)
        assert closed.is_set()

    try:
        asyncio.run(whole())
    finally:
        desk.close()
        ours.close()
    return errors


def test_all_who_wait_share_one_question_and_its_answer_is_kept() -> None:
    asked: list[int] = []
    views = Views(History(), CollectorRegistry(), state=lambda: {"n": len(asked) or asked.append(1) or 0})

    async def test(questions: Questions) -> None:
        kept = Kept(questions, "state", 60.0)
        assert {await one for one in [asyncio.ensure_future(kept.get()) for _ in range(200)]} == {b'{"n":0}'}
        assert await kept.get() == b'{"n":0}' and asked == [1]
        assert await Kept(questions, "state", 0.0).get() == b'{"n":1}'

    asking(views, test)


def test_who_goes_away_takes_the_answer_from_nobody() -> None:
    async def test(questions: Questions) -> None:
        kept = Kept(questions, "state", 60.0)
        first, second = (asyncio.ensure_future(kept.get()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"{}"

    asking(Views(History(), CollectorRegistry()), test)


def test_a_failure_is_kept_too() -> None:
    asked: list[int] = []

    def fails() -> dict[str, int]:
        asked.append(1)
        raise ValueError("broken")

    async def test(questions: Questions) -> None:
        kept = Kept(questions, "state", 60.0)
        for _ in range(3):
            with pytest.raises(Unanswered):
                await kept.get()

    errors = asking(Views(History(), CollectorRegistry(), state=fails), test)
    assert asked == [1] and errors.counts == {"view": 1}


def test_a_service_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 0.05)

    async def whole() -> None:
        silent, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        questions = Questions(reader, writer, lambda: None)
        for name in ["state", *["gallery"] * (module.MOST_PICTURES + 4)]:
            with pytest.raises(Unanswered):
                await questions.ask(name, "a")
        assert not questions._waiting
        writer.close()
        silent.close()

    asyncio.run(whole())


def test_an_unchanged_snapshot_is_not_made_again() -> None:
    history = History()

    async def test(questions: Questions) -> None:
        kept = Kept(questions, "snapshot", 0.0, versioned=True)
        first = await kept.get()
        assert json.loads(first) == history.snapshot() and kept.version == "0"
        assert await questions.ask("snapshot", kept.version) is None
        assert await kept.get() is first
        history.mark("noise")
        assert json.loads(await kept.get())["phases"][0]["text"] == "noise" and kept.version == "1"

    asking(Views(history, CollectorRegistry()), test)


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", "text"), ("*/*", "text"), ("text/plain", "text"),
        ("application/openmetrics-text", "openmetrics"),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", "openmetrics"),
        ("application/openmetrics-text;version=2.0.0", "text"),
        ("application/openmetrics-text;version=0.0.1", "text"),
        ("application/openmetrics-text;version=99.1.7", "text"), ("text/plain;version=99.1.7", "text"),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", "text"),
        ("application/openmetrics-text;q=0", "text"), ("application/openmetrics-text;q=x", "text"),
        (";;;,=,", "text"), ("A" * 10**5, "text"),
        # what Prometheus 2 and 3 send
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
         "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "openmetrics"),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
         "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
         "text/plain;version=0.0.4;q=0.3,*/*;q=0.2", "openmetrics"),
    ],
)  # fmt: skip
def test_there_are_two_formats_however_they_are_worded(accept: str, name: str) -> None:
    assert chosen_format(accept) == name and name in FORMATS
