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


async def run(
    listener: socket.socket, channel: socket.socket, service: int, settings: Mapping[str, Any]
) -> None:
    """Serves until the service closes the channel, or is gone.

    Args:
        listener: bound and listening.
        channel: to the service.
        service: its process, our parent. What it has forked may hold its end of the channel open.
        settings: arguments of `create_app`.
    """
    ended, refused, loop = asyncio.Event(), Counter[str](), asyncio.get_running_loop()

    def count(reason: str) -> None:
        refused[reason] += 1

    def end() -> None:
        ended.set()
        server.should_exit = True
        loop.call_later(END_SECONDS, os._exit, 0)

    reader, writer = await asyncio.open_connection(sock=channel)
    questions = Questions(reader, writer, end)
    app = create_app(questions, ended, count=count, **settings)
    config = uvicorn.Config(
        app, http="h11", ws="none", log_config=None, access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=1, timeout_keep_alive=int(IDLE_SECONDS),
        proxy_headers=False,  # or a client could take another address with every request
    )  # fmt: skip
    server = _Server(config)
    config.load()
    crowd = Crowd(
        lambda: Connection(crowd, config=config, server_state=server.server_state, app_state={}, _loop=loop),
        count,
    )

    async def every_second() -> None:
        while True:
            if os.getppid() != service:
                end()
            crowd.sweep()
            if refused:
                questions.tell("refused", json.dumps(refused))
                refused.clear()
            with contextlib.suppress(Unanswered):
                await questions.ask("alive")
            await asyncio.sleep(1.0)

    listener.setblocking(False)
    tasks = [
        asyncio.create_task(part)
        for part in (questions.listen(), crowd.accept(listener), every_second(), _started(server, questions))
    ]

    def over(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            end()

    for task in tasks:
        task.add_done_callback(over)
    try:
        await server.serve(sockets=[])
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(error, Exception):  # the service starts another front
                log.error("a part of the HTTP process failed", exc_info=error)
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
