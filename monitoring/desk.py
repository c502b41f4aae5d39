"""The service's end of its HTTP side: answers the few questions that the front asks, a second apart.

Each kind of question has a thread of its own, so that a picture that cannot be read makes no probe wait.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from monitoring.aside import Errors
from monitoring.frames import FAILED, FOUND, HEAD, LENGTH, NOTHING, VERSION
from monitoring.history import History

MOST_WAITING = 64
"""Questions of a kind that may wait behind one that hangs; who asked has given up long before."""
Picture = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class Views:
    """What the routes show, injected by the app.

    `ready` names each condition; the service is ready when all are true. `gallery_picture` takes an item's
    identifier, `query_picture` the coordinates of a recent query.
    """

    history: History
    registry: CollectorRegistry
    ready: Callable[[], Mapping[str, bool]] = dict
    state: Callable[[], Mapping[str, Any]] = dict
    gallery_picture: Picture = lambda _: None
    query_picture: Picture | None = None
    attribution: str = ""
    hosts: tuple[str, ...] = ()
    """Names that are served besides the local ones, see `monitoring.gate.Hosts`."""
    token: str = ""
    """Digest of the token that clients have to show, see `monitoring.token`; "" lets everybody look."""
    seconds: float = 1.0
    """How old metrics, state and snapshot may be that are given again."""
    refused: Callable[[str, int], None] = lambda reason, times: None
    """Told how many clients were refused, and why."""


class Desk:
    """Answers what is asked of views.

    Args:
        started: called when the front says that it serves.
        errors: where errors of views go.
    """

    def __init__(self, views: Views, started: Callable[[], None], errors: Errors) -> None:
        self._views, self._started, self._errors = views, started, errors
        pictures, figures, probes = (_Line(name) for name in ("pictures", "figures", "probes"))
        self._answers: dict[str, tuple[_Line, Callable[[str], bytes | None]]] = {
            "ready": (probes, lambda _: _json(dict(views.ready()))),
            "state": (figures, lambda _: _json(dict(views.state()))),
            "text": (figures, lambda _: generate_latest(views.registry)),
            "openmetrics": (figures, lambda _: generate_openmetrics(views.registry)),  # type: ignore[no-untyped-call]
            "snapshot": (figures, self._snapshot),
            "gallery": (pictures, views.gallery_picture),
            "query": (pictures, views.query_picture or views.history.picture),
        }

    def serve(self, channel: socket.socket) -> None:
        """Answers until the other end is closed."""
        sending = threading.Lock()
        with contextlib.suppress(OSError):
            while (frame := receive(channel)) is not None:
                number, name, argument = json.loads(frame)
                if name == "alive":
                    _answer(channel, sending, number, FOUND, b"")
                elif name == "started":
                    self._started()
                elif name == "refused":
                    for reason, times in json.loads(argument).items():
                        self._views.refused(reason, times)
                else:
                    line, find = self._answers[name]
                    task = partial(self._find, channel, sending, number, partial(find, argument))
                    if not line.put(task):
                        _answer(channel, sending, number, FAILED, b"")

    def close(self) -> None:
        """Ends the threads; one that hangs in a view is left behind."""
        for line, _ in self._answers.values():
            line.end()

    def _find(
        self,
        channel: socket.socket,
        sending: threading.Lock,
        number: int,
        find: Callable[[], bytes | None],
    ) -> None:
        try:
            found = find()
        except BaseException as error:  # noqa: BLE001  said and counted
            self._errors.tell("view", "what the HTTP side shows could not be made", error)
            _answer(channel, sending, number, FAILED, b"")
        else:
            _answer(channel, sending, number, NOTHING if found is None else FOUND, found or b"")

    def _snapshot(self, known: str) -> bytes | None:
        """The snapshot as JSON; nothing where the front has this version already."""
        if known == str(self._views.history.version):
            return None
        shown = self._views.history.snapshot()
        return VERSION.pack(shown["version"]) + _json(shown)


class _Line:
    """One thread that does one thing after the other."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"qshift-http-{name}", daemon=True).start()

    def put(self, task: Callable[[], None]) -> bool:
        """Returns False where too much waits already."""
        if self._tasks.qsize() >= MOST_WAITING:
            return False
        self._tasks.put(task)
        return True

    def end(self) -> None:
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


def receive(channel: socket.socket) -> bytes | None:
    """The next frame; None at the end."""
    head = _exactly(channel, LENGTH.size)
    return None if head is None else _exactly(channel, LENGTH.unpack(head)[0])


def _exactly(channel: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = channel.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _answer(channel: socket.socket, sending: threading.Lock, number: int, kind: int, body: bytes) -> None:
    """An answer that nobody waits for any more is none that failed."""
    with contextlib.suppress(OSError), sending:
        channel.sendall(LENGTH.pack(HEAD.size + len(body)) + HEAD.pack(number, kind) + body)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
