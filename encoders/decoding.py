"""Pictures of strangers, decoded in processes of their own: with a time-out, and with a limit of memory.

A decoder in a thread cannot be stopped, shares the service's memory, and what kills it kills the service. A
process can be ended. It is started once and knows Pillow and NumPy only; a picture costs it a pipe more. One
that was ended, by us or by its picture, is replaced when the next picture comes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import Refused
from encoders.images import Content, Pixels, Preprocess, prepare

log = logging.getLogger("qshift.decoding")
HEAD = struct.Struct(">IQ")
"""Lengths of the JSON and of the bytes behind it."""
BASE_BYTES = 256 << 20
PIXEL_BYTES = 24
"""A decoder may take so much for each pixel at the cap beside the base: WEBP takes most, 16.5."""
START_SECONDS = 30.0
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from encoders.decoding import main; main()"


class Decoders:
    """Decodes for several threads, each picture in one of so many processes.

    Args:
        count: of processes; whoever comes while all are busy waits.
        seconds: one picture may take.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self._seconds = seconds
        self._closed = False
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def prepare(self, content: Content, to: Preprocess, max_bytes: int, max_pixels: int) -> Pixels:
        """As `encoders.images.prepare`. Raises Refused, also for what takes too long or too much memory."""
        if not isinstance(content, bytes | bytearray) or len(content) > max_bytes:
            return prepare(content, to, max_bytes, max_pixels)
        process = self._idle.get()
        try:
            process = process or _Process()
        except OSError as error:  # no memory, no file: still better than to lose the query
            log.warning("no process for decoding", extra={"error": str(error)})
            self._idle.put(None)
            return prepare(content, to, max_bytes, max_pixels)
        request = {"to": to.document(), "max_bytes": max_bytes, "max_pixels": max_pixels}
        kept: _Process | None = None
        try:
            said, found = process.ask(request, bytes(content), self._seconds)
            kept = process
        except TimeoutError:
            raise Refused("image", f"decoding took more than {self._seconds:g} s: save it again") from None
        except OSError:
            raise Refused("image", "decoding ended its process: save it again") from None
        finally:
            if kept is None:
                process.end()
            elif self._closed:
                kept.end()
            self._idle.put(kept)
        if "reason" in said:
            raise Refused("image", said["reason"])
        return np.frombuffer(found, np.uint8).reshape(3, *to.size).copy()

    def close(self) -> None:
        """Ends the processes; one that is busy ends with its picture."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                if process is not None:
                    process.end()


class _Process:
    """One of them. Raises OSError where it cannot be started."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
                pass_fds=(theirs.fileno(),), env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        self._ready = False

    def ask(self, request: Mapping[str, Any], content: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Raises TimeoutError, and OSError where it has ended."""
        if not self._ready:  # what it imports is no picture's fault
            _receive(self._ours, time.monotonic() + START_SECONDS)
            self._ready = True
        deadline = time.monotonic() + seconds
        self._ours.settimeout(seconds)
        _send(self._ours, request, content)
        return _receive(self._ours, deadline)

    def end(self) -> None:
        self._ours.close()
        self._child.kill()
        self._child.wait()


def _send(channel: socket.socket, said: Mapping[str, Any], content: bytes) -> None:
    text = json.dumps(said).encode()
    channel.sendall(HEAD.pack(len(text), len(content)) + text + content)


def _receive(channel: socket.socket, deadline: float | None = None) -> tuple[dict[str, Any], bytes]:
    text, content = HEAD.unpack(_exactly(channel, HEAD.size, deadline))
    said: dict[str, Any] = json.loads(_exactly(channel, text, deadline))
    return said, _exactly(channel, content, deadline)


def _exactly(channel: socket.socket, count: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        if deadline is not None:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
        part = channel.recv(min(count - len(parts), 1 << 20))
        if not part:
            raise ConnectionError("the other end is closed")
        parts += part
    return bytes(parts)


def main() -> None:
    """The process: decodes what comes until the service has gone. It is ended by it, not by signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[2]))
    with contextlib.suppress(ConnectionError):
        _send(channel, {"started": True}, b"")
        while True:
            request, content = _receive(channel)
            _bound(request["max_pixels"])
            try:
                to = Preprocess.written(request["to"])
                pixels = prepare(content, to, request["max_bytes"], request["max_pixels"])
            except Refused as refused:
                _send(channel, {"reason": refused.reason}, b"")
            else:
                _send(channel, {}, pixels.tobytes())


def _bound(max_pixels: int) -> None:
    """Limits the address space to what it is now and what the largest picture may take, once."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return
    with contextlib.suppress(OSError, ValueError), pathlib.Path("/proc/self/statm").open() as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
        most = held + BASE_BYTES + PIXEL_BYTES * max_pixels
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
