"""Stands between clients and Kafka, and calls at the very request that is waited for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial

from stream.ports import HOST, free_port

PRODUCE, OFFSET_COMMIT = 0, 8
"""Kafka's numbers of requests."""
MANIFEST = b"/manifest"
"""The end of the key of a checkpoint's last record: what is committed next is what it covers."""


class Trap:
    """An address that Kafka announces as its own. All that clients say passes here, request by request.

    Args:
        port: where Kafka really listens.
    """

    def __init__(self, port: int) -> None:
        self._kafka, self.port = port, free_port(taken=port)
        self._armed: tuple[bool, Callable[[], None]] | None = None
        self._saved = False
        self.sprung = threading.Event()
        self._epoch = 0
        """Connections of an earlier one are cut: Kafka's last answers do not pass."""
        self._listening = socket.create_server((HOST, self.port))
        threading.Thread(target=self._take, daemon=True).start()

    def set(self, arrives: bool, then: Callable[[], None]) -> None:
        """Calls once, at the next commit of a checkpoint.

        Args:
            arrives: whether Kafka still gets that request: its answer is kept back.
            then: to do; nothing of this connection goes on meanwhile.
        """
        self.sprung.clear()
        self._saved, self._armed = False, (arrives, then)

    def close(self) -> None:
        self._listening.close()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    kafka = socket.create_connection((HOST, self._kafka), 5.0)
                except OSError:  # it is away
                    client.close()
                    continue
                kafka.settimeout(None)
                for work, ends in (
                    (self._requests, (client, kafka)),
                    (partial(self._answers, self._epoch), (kafka, client)),
                ):
                    threading.Thread(target=_until_closed, args=(work, *ends), daemon=True).start()

    def _requests(self, client: socket.socket, kafka: socket.socket) -> None:
        while True:
            head = _exactly(client, 4)
            request = _exactly(client, int.from_bytes(head, "big"))
            kind = int.from_bytes(request[:2], "big")
            self._saved |= kind == PRODUCE and MANIFEST in request
            if kind == OFFSET_COMMIT and self._saved and (armed := self._armed) is not None:
                self._armed = None
                self._epoch += 1
                if armed[0]:
                    kafka.sendall(head + request)
                armed[1]()
                self.sprung.set()
                return
            kafka.sendall(head + request)

    def _answers(self, epoch: int, kafka: socket.socket, client: socket.socket) -> None:
        while part := kafka.recv(1 << 16):
            if epoch != self._epoch:
                return
            client.sendall(part)


def _until_closed(
    work: Callable[[socket.socket, socket.socket], None], here: socket.socket, there: socket.socket
) -> None:
    """What ends one way ends the other."""
    with contextlib.suppress(OSError):
        work(here, there)
    for one in (here, there):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = channel.recv(count - len(parts))
        if not part:
            raise ConnectionError("closed")
        parts += part
    return bytes(parts)
