"""Connections of the HTTP side: how many, how fast they come, and how long one may hold its place.

What a server is given to bound itself (uvicorn's `limit_concurrency`) is looked at when a request has been
read: a connection that asks nothing is not seen, and a refused one comes again at once. Here connections are
accepted one by one at a rate, and wait in the kernel before that, where they cost nothing. Where all places
are taken a newcomer gets the place of one that has only been holding it, of the address that holds most.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from monitoring.gate import Bucket, Count, neighbourhood

MOST_CONNECTIONS = 256
ACCEPTED = (600.0, 100.0)
"""Connections a second, and burst."""
IDLE_SECONDS = 10.0
"""A connection may be without a request in progress for so long: before the first, while its headers come,
between two."""
STALLED_SECONDS = 30.0
"""So long may a client take nothing of what is sent to it."""
GRACE_SECONDS = 0.25
"""A place is not taken from a connection that has held it for less. All places change hands in
MOST_CONNECTIONS / ACCEPTED seconds at the soonest: a grace that is longer would refuse who asks at once."""


class Connection(H11Protocol):
    """One connection that its crowd can look at."""

    def __init__(self, crowd: Crowd, **settings: Any) -> None:
        super().__init__(**settings)
        self._crowd = crowd
        self.who = ""
        self.since = time.monotonic()
        """When it last was without a request."""
        self.stalled = 0.0
        """Since when the client takes nothing; 0 while it does."""

    @property
    def asking(self) -> bool:
        """Whether a request is in progress."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.who, self.since = neighbourhood(self.client[0] if self.client else ""), time.monotonic()
        self._crowd.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._crowd.leave(self)

    def on_response_complete(self) -> None:
        self.since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.stalled = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stalled = 0.0
        super().resume_writing()

    def end(self) -> None:
        """Closes at once, whatever has not been sent."""
        self.transport.abort()


class Crowd:
    """All connections.

    Args:
        make: a connection for one that was accepted.
        count: told why each connection was closed: "crowded" (a newcomer, or the one that gave way to it),
            "idle", "stalled".
    """

    def __init__(
        self,
        make: Callable[[], Connection],
        count: Count = lambda _: None,
        most: int = MOST_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        stalled_seconds: float = STALLED_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._make, self._count, self._most = make, count, most
        self._idle, self._stalled, self._grace = idle_seconds, stalled_seconds, grace_seconds
        self._all: dict[Connection, None] = {}  # in the order in which they came

    def __len__(self) -> int:
        return len(self._all)

    async def accept(self, listener: socket.socket) -> None:
        """Accepts until it is cancelled."""
        loop, bucket = asyncio.get_running_loop(), Bucket(*ACCEPTED)
        while True:
            await asyncio.sleep(bucket.wait_seconds())
            if not bucket.take():
                continue
            try:
                came, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(self._make, came)
            except OSError:  # gone before it was accepted, or no file left: those that wait, wait
                await asyncio.sleep(0.05)

    def enter(self, newcomer: Connection) -> None:
        """Takes it in, and closes one where that is one too many."""
        self._all[newcomer] = None
        if len(self._all) > self._most:
            self._count("crowded")
            gone = self._superfluous(newcomer)
            self._all.pop(gone)  # its place is free now, not only when the loop comes round to it
            gone.end()

    def leave(self, connection: Connection) -> None:
        self._all.pop(connection, None)

    def sweep(self) -> None:
        """Closes those that hold their place for nothing; call it once a second."""
        now = time.monotonic()
        for connection in list(self._all):
            if not connection.asking and now - connection.since > self._idle:
                self._count("idle")
                connection.end()
            elif connection.stalled and now - connection.stalled > self._stalled:
                self._count("stalled")
                connection.end()

    def _superfluous(self, newcomer: Connection) -> Connection:
        """Of the address with most connections the one that has asked nothing for longest.

        Where all of them ask, the newcomer if it is one of them, else the one that came last.
        """
        held = Counter(connection.who for connection in self._all)
        greediest = max(held, key=lambda who: (held[who], who == newcomer.who))
        theirs = [connection for connection in self._all if connection.who == greediest]
        now = time.monotonic()
        quiet = [one for one in theirs if not one.asking and now - one.since >= self._grace]
        return min(quiet, key=lambda one: one.since, default=theirs[-1])
