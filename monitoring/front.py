"""The process that clients meet. It knows HTTP and nothing else, and ends when the service does.

The answers' loop and a server in a thread of its process would share one interpreter lock: two hundred
clients took up to half of the loop. Here they take what is left of the machine, at a lower priority, and
the service is asked about once a second, however many there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn

from monitoring.crowd import IDLE_SECONDS, Connection, Crowd
from monitoring.logs import set_up
from monitoring.pages import create_app
from monitoring.questions import Questions, Unanswered

log = logging.getLogger("qshift.http")
NICE = 5
END_SECONDS = 3.0
"""What is not over so long after the service's end is cut off."""


class _Server(uvicorn.Server):
    """Signals are not for the front: it ends when the service closes their channel."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Front:
    """A server for clients, a channel to the service, and what ends the one with the other.

    Args:
        channel: reader and writer, to the service.
        service: its process, our parent. What it has forked may hold its end of the channel open.
        settings: arguments of `create_app`.
    """

    def __init__(
        self,
        channel: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        service: int,
        settings: Mapping[str, Any],
    ) -> None:
        self._service = service
        self._refused: Counter[str] = Counter()
        self._ended, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._questions = Questions(*channel, self._end)
        app = create_app(self._questions, self._ended, count=self._count, **settings)
        self._config = uvicorn.Config(
            app, http="h11", ws="none", log_config=None, access_log=False, lifespan="off",
            server_header=False, timeout_graceful_shutdown=1, timeout_keep_alive=int(IDLE_SECONDS),
            proxy_headers=False,  # or a client could take another address with every request
        )  # fmt: skip
        self._server = _Server(self._config)
        self._config.load()
        self._crowd = Crowd(self._connection, self._count)

    async def serve(self, listener: socket.socket) -> None:
        """Until the service closes the channel, or is gone."""
        parts = (
            self._questions.listen(),
            self._crowd.accept(listener),
            self._every_second(),
            _started(self._server, self._questions),
        )
        tasks = [asyncio.create_task(part) for part in parts]
        for task in tasks:
            task.add_done_callback(self._over)
        try:
            await self._server.serve(sockets=[])
        finally:
            listener.close()
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(error, Exception):  # the service starts another front
                    log.error("a part of the HTTP process failed", exc_info=error)

    def _connection(self) -> Connection:
        return Connection(
            self._crowd, config=self._config, server_state=self._server.server_state, app_state={},
            _loop=self._loop,
        )  # fmt: skip

    def _count(self, reason: str) -> None:
        self._refused[reason] += 1

    def _end(self) -> None:
        self._ended.set()
        self._server.should_exit = True
        self._loop.call_later(END_SECONDS, os._exit, 0)

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._end()

    async def _every_second(self) -> None:
        while True:
            if os.getppid() != self._service:
                self._end()
            self._crowd.sweep()
            if self._refused:
                self._questions.tell("refused", json.dumps(self._refused))
                self._refused.clear()
            with contextlib.suppress(Unanswered):
                await self._questions.ask("alive")
            await asyncio.sleep(1.0)


async def run(
    listener: socket.socket, channel: socket.socket, service: int, settings: Mapping[str, Any]
) -> None:
    """Serves until the service closes the channel, or is gone.

    Args:
        listener: bound and listening.
        channel: to the service.
        service: its process.
        settings: arguments of `create_app`.
    """
    reader, writer = await asyncio.open_connection(sock=channel)
    front = _Front((reader, writer), service, settings)
    listener.setblocking(False)
    try:
        await front.serve(listener)
    finally:
        writer.close()


async def _started(server: uvicorn.Server, questions: Questions) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    questions.tell("started")


def main() -> None:
    """Started by `monitoring.http`: file numbers of listener and channel, and the settings."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    given = json.loads(sys.argv[1])
    set_up("ERROR")  # a line for each refused request would be the clients' to write
    listener, channel = (socket.socket(fileno=given.pop(name)) for name in ("listener", "channel"))
    asyncio.run(run(listener, channel, given.pop("service"), given))
