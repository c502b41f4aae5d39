"""The front's end of what it asks the service: one question of a kind, shared by all who wait for it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable

from monitoring.frames import FAILED, FOUND, HEAD, LENGTH, VERSION

ASK_SECONDS = 4.0
READY_SECONDS = 0.8
"""A probe is given up after a second by who asks."""
MOST_PICTURES = 16
"""Questions about pictures at once."""


class Unanswered(Exception):
    """The service did not answer in time, or could not."""


class Questions:
    """Asks over a pair of streams; `heard` is when the service last answered.

    Args:
        closed: called when the service has closed its end.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, closed: Callable[[], None]
    ) -> None:
        self._reader, self._writer, self._closed = reader, writer, closed
        self._waiting: dict[int, asyncio.Future[bytes | None]] = {}
        self._number = 0
        self._pictures = asyncio.Semaphore(MOST_PICTURES)
        self.heard = time.monotonic()

    async def listen(self) -> None:
        """Takes answers in until the service closes."""
        try:
            while True:
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                frame = await self._reader.readexactly(length)
                number, kind = HEAD.unpack_from(frame)
                self.heard = time.monotonic()
                waiting = self._waiting.pop(number, None)
                if waiting is None or waiting.done():
                    continue
                if kind == FAILED:
                    waiting.set_exception(Unanswered("the service could not answer"))
                else:
                    waiting.set_result(frame[HEAD.size :] if kind == FOUND else None)
        except (OSError, asyncio.IncompleteReadError):
            self._closed()

    async def ask(self, name: str, argument: str = "") -> bytes | None:
        """Bytes, or None where there is nothing of that name.

        Raises:
            Unanswered: no answer in time, or the service failed at it.
        """
        try:
            async with asyncio.timeout(READY_SECONDS if name == "ready" else ASK_SECONDS):
                if name not in ("gallery", "query"):
                    return await self._ask(name, argument)
                async with self._pictures:
                    return await self._ask(name, argument)
        except TimeoutError:
            raise Unanswered(f"the service did not say its {name} in time") from None

    def tell(self, name: str, argument: str = "") -> int:
        """Says something that is not answered."""
        self._number = (self._number + 1) % 2**32
        frame = json.dumps([self._number, name, argument]).encode()
        self._writer.write(LENGTH.pack(len(frame)) + frame)
        return self._number

    async def _ask(self, name: str, argument: str) -> bytes | None:
        number = self.tell(name, argument)
        waiting: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            return await waiting
        finally:
            self._waiting.pop(number, None)


class Kept:
    """One answer for all who ask within `seconds`; a failure is kept as long.

    Args:
        versioned: the answer starts with its version; the service says nothing where it is the same still.
    """

    def __init__(self, questions: Questions, name: str, seconds: float, versioned: bool = False) -> None:
        self._questions, self._name, self._seconds, self._versioned = questions, name, seconds, versioned
        self._task: asyncio.Task[bytes] | None = None
        self._at = -math.inf
        self._body = b""
        self.version = ""

    async def get(self) -> bytes:
        """The newest answer, made at most `seconds` ago.

        Raises:
            Unanswered: as `Questions.ask`.
        """
        if self._task is None or (self._task.done() and time.monotonic() - self._at >= self._seconds):
            self._task = asyncio.create_task(self._ask())
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # it is seen
        # Shielded: who goes away must not take the answer from the others.
        return await asyncio.shield(self._task)

    async def _ask(self) -> bytes:
        try:
            found = await self._questions.ask(self._name, self.version)
        finally:
            self._at = time.monotonic()
        if found is None:
            return self._body
        if self._versioned:
            self.version = str(VERSION.unpack_from(found)[0])
            found = found[VERSION.size :]
        self._body = found
        return found
