"""Connections, over real sockets: how many, who gives way, and how long one may hold its place."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from monitoring.crowd import ACCEPTED, GRACE_SECONDS, MOST_CONNECTIONS, Connection, Crowd

ASKED = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
OTHER = "127.0.0.2"


class Place:
    """A crowd in front of an application that answers at once, slowly or with more than anybody takes."""

    def __init__(self, **bounds: Any) -> None:
        self.counted: list[str] = []
        self.may = asyncio.Event()
        self.large = False
        config = uvicorn.Config(
            self._app, interface="asgi3", http="h11", ws="none", lifespan="off", log_config=None
        )
        config.load()
        state = uvicorn.Server(config).server_state
        self.crowd = Crowd(
            lambda: Connection(self.crowd, config=config, server_state=state, app_state={}),
            self.counted.append, **bounds,
        )  # fmt: skip
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.may.wait()
        length = str(2 + 10**8 * self.large).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        for _ in range(1000 * self.large):
            await send({"type": "http.response.body", "body": bytes(10**5), "more_body": True})
        await send({"type": "http.response.body", "body": b"ok"})

    async def come(self, source: str = "127.0.0.1", says: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        self._writers.append(writer)
        writer.write(says)
        return reader

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        self._writers: list[asyncio.StreamWriter] = []
        accepting = asyncio.create_task(self.crowd.accept(self.listener))
        try:
            yield
        finally:
            accepting.cancel()
            for writer in self._writers:
                writer.transport.abort()
            self.may.set()
            await asyncio.sleep(0.05)
            self.listener.close()


def run(test: Callable[[Place], Awaitable[None]], **bounds: Any) -> None:
    async def whole() -> None:
        place = Place(**bounds)
        async with place.open():
            await asyncio.wait_for(test(place), 20)

    asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


async def closed(reader: asyncio.StreamReader) -> bool:
    """Waits for the end of a connection that was told nothing."""
    try:
        return await asyncio.wait_for(reader.read(), 5.0) == b""
    except ConnectionError:
        return True


def test_idle_connections_give_way_to_newcomers() -> None:
    async def test(place: Place) -> None:
        place.may.set()
        idle = [await place.come() for _ in range(4)]
        await until(lambda: len(place.crowd) == 4)
        reader = await place.come(says=ASKED)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        assert await closed(idle[0]) and len(place.crowd) == 4 and place.counted == ["crowded"]

    run(test, most=4, grace_seconds=0.0)


def test_where_all_ask_the_newcomer_of_the_same_address_goes() -> None:
    async def test(place: Place) -> None:
        asking = [await place.come(says=ASKED) for _ in range(4)]
        await until(lambda: sum(one.asking for one in place.crowd._all) == 4)
        assert await closed(await place.come(says=ASKED)) and place.counted == ["crowded"]
        place.may.set()
        for reader in asking:
            assert b"200" in await reader.readuntil(b"ok")

    run(test, most=4, grace_seconds=0.0)


def test_an_address_that_holds_all_places_gives_one_to_another_address() -> None:
    async def test(place: Place) -> None:
        asking = [await place.come(says=ASKED) for _ in range(4)]
        await until(lambda: sum(one.asking for one in place.crowd._all) == 4)
        other = await place.come(OTHER, says=ASKED)
        assert await closed(asking[3])  # the one that came last
        place.may.set()
        assert b"200" in await other.readuntil(b"ok")

    run(test, most=4, grace_seconds=0.0)


def test_there_always_is_one_to_give_way_where_nobody_asks() -> None:
    """At a grace of 1 s a storm of 600 idle clients had probes of their own address refused, 15 in 100."""
    rate, burst = ACCEPTED
    assert rate * GRACE_SECONDS + burst < MOST_CONNECTIONS


def test_a_place_that_was_only_just_taken_is_kept() -> None:
    async def test(place: Place) -> None:
        first = await place.come()
        await until(lambda: len(place.crowd) == 1)
        assert await closed(await place.come())
        place.may.set()
        assert not first.at_eof() and len(place.crowd) == 1

    run(test, most=1, grace_seconds=60.0)


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.1\r\nX: "])
def test_who_does_not_come_to_the_point_is_closed(says: bytes) -> None:
    async def test(place: Place) -> None:
        reader = await place.come(says=says)
        await until(lambda: len(place.crowd) == 1)
        place.crowd.sweep()
        assert len(place.crowd) == 1
        for _ in range(3):  # dripping does not help
            place._writers[0].write(says[:1])
            await asyncio.sleep(0.1)
        place.crowd.sweep()
        assert await closed(reader) and place.counted == ["idle"] and not len(place.crowd)

    run(test, idle_seconds=0.2)


def test_a_connection_that_is_kept_alive_for_nothing_is_closed() -> None:
    async def test(place: Place) -> None:
        place.may.set()
        reader = await place.come(says=ASKED)
        await reader.readuntil(b"ok")
        await asyncio.sleep(0.3)
        place.crowd.sweep()
        assert await closed(reader) and place.counted == ["idle"]

    run(test, idle_seconds=0.2)


def test_a_request_in_progress_is_not_idle() -> None:
    async def test(place: Place) -> None:
        reader = await place.come(says=ASKED)
        await asyncio.sleep(0.3)
        place.crowd.sweep()
        place.may.set()
        assert b"200" in await reader.readuntil(b"ok") and place.counted == []

    run(test, idle_seconds=0.2)


def test_who_takes_nothing_of_what_is_sent_is_closed() -> None:
    async def test(place: Place) -> None:
        place.large = True
        place.may.set()
        await place.come(says=ASKED)
        await until(lambda: any(one.stalled for one in place.crowd._all))
        await asyncio.sleep(0.3)
        place.crowd.sweep()
        await until(lambda: not len(place.crowd))
        assert place.counted == ["stalled"]

    run(test, stalled_seconds=0.2)


def test_connections_are_accepted_at_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.crowd.ACCEPTED", (20.0, 3.0))

    async def test(place: Place) -> None:
        began = asyncio.get_running_loop().time()
        for _ in range(13):
            await place.come()
        await until(lambda: len(place.crowd) == 13)
        assert asyncio.get_running_loop().time() - began > 0.4  # ten of them at twenty a second

    run(test)
