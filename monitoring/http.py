"""The service's HTTP side, started and stopped: a process that serves, a thread that answers what it asks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

from core.errors import ConfigError
from monitoring.aside import Errors
from monitoring.desk import Desk
from monitoring.desk import Views as Views

BACKLOG = 1024
"""Connections that wait in the kernel, where they cost nothing."""
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from monitoring.front import main; main()"
"""The front finds its modules where the service has found them."""
MOST_PAUSE_SECONDS = 30.0
SILENT_SECONDS = 30.0
"""A front asks every few seconds; one that has said nothing for so long hangs, and is ended."""


class Serving:
    """A front that runs until `stop`; one that ends before is started again, with growing pauses."""

    def __init__(self, views: Views, listener: socket.socket, url: str, errors: Errors) -> None:
        self._views, self._listener, self._errors = views, listener, errors
        self._stopping, self._started = threading.Event(), threading.Event()
        self._desk = Desk(views, self._started.set, errors)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._change = threading.Lock()
        self.url, self.port = url, int(listener.getsockname()[1])
        self._thread = threading.Thread(target=self._work, name="qshift-http", daemon=True)
        self._thread.start()

    def wait(self, budget_seconds: float) -> bool:
        """Returns True when requests are answered, False when that is not so in time."""
        return self._started.wait(budget_seconds)

    @property
    def process_id(self) -> int:
        """Of the front."""
        return self._process.pid if self._process is not None else 0

    def stop(self, budget_seconds: float = 5.0) -> None:
        """Ends the event streams, closes the port and ends the front."""
        with self._change:
            self._stopping.set()
            channel = self._channel
        if channel is not None:
            _hang_up(channel)
        self._thread.join(budget_seconds)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            self._thread.join(budget_seconds)
        self._desk.close()
        self._listener.close()

    def _work(self) -> None:
        pause = 1.0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._once()
            except Exception as error:  # noqa: BLE001  said and counted, and tried again
                self._errors.tell("http", "the HTTP process cannot be started", error)
            else:
                if not self._stopping.is_set():
                    self._errors.tell("http", "the HTTP process has ended and is started again")
            if time.monotonic() - began > 60.0:
                pause = 1.0
            self._stopping.wait(pause)
            pause = min(2.0 * pause, MOST_PAUSE_SECONDS)

    def _once(self) -> None:
        """One front, from its start to its end."""
        ours, theirs = socket.socketpair()
        ours.settimeout(SILENT_SECONDS)
        with ours:
            with theirs:
                process = self._launch(theirs)
            with self._change:
                self._process, self._channel = process, ours
                stopping = self._stopping.is_set()
            try:
                if not stopping:
                    self._desk.serve(ours)
            finally:
                with self._change:
                    self._channel = None
                _hang_up(ours)  # that ends the front
                try:
                    process.wait(5.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _launch(self, channel: socket.socket) -> subprocess.Popen[bytes]:
        settings = {
            "listener": self._listener.fileno(), "channel": channel.fileno(), "service": os.getpid(),
            "hosts": self._views.hosts, "attribution": self._views.attribution,
            "seconds": self._views.seconds, "token": self._views.token,
        }  # fmt: skip
        # A session of its own: what a terminal sends to its group is for the service, which ends the front.
        return subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, json.dumps(settings), json.dumps(sys.path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            pass_fds=(self._listener.fileno(), channel.fileno()),
        )  # fmt: skip


def _hang_up(channel: socket.socket) -> None:
    """Ends what is said on both sides, whoever else has it open."""
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)


def serve(
    views: Views,
    host: str = "127.0.0.1",
    port: int = 8765,
    errors: Errors | None = None,
    budget_seconds: float = 30.0,
) -> Serving:
    """Starts serving and returns when requests are answered; port 0 takes a free one.

    Args:
        errors: told when the front had to be started again.

    Raises:
        ConfigError: the address is taken or not ours, or the server did not start in time.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): set http.port to another port, "
            "or to 0 for a free one"
        ) from error
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    serving = Serving(views, listener, f"http://{shown}:{listener.getsockname()[1]}", errors or Errors())
    if not serving.wait(budget_seconds):
        serving.stop()
        raise ConfigError(f"the HTTP server on {serving.url} did not start: see the log")
    return serving
