"""The front as a process: it ends with the service, comes again when it ends alone, and waits for nobody."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry
from waiting import eventually

from monitoring.aside import Errors
from monitoring.history import History
from monitoring.http import Serving, Views, serve
from monitoring.metrics import Metrics

SERVICE = """
import os, sys, time
from prometheus_client import CollectorRegistry
from monitoring.history import History
from monitoring.http import Views, serve
serving = serve(Views(History(), CollectorRegistry()), port=0)
forked = os.fork() if "forks" in sys.argv else -1
if forked:
    print(serving.port, serving.process_id, forked, flush=True)
time.sleep(600)
"""


def status(url: str, path: str, timeout: float = 10) -> int:
    """0 where nothing answers."""
    try:
        with urlopen(url + path, timeout=timeout) as reply:
            return int(reply.status)
    except HTTPError as error:
        with error:
            return error.code
    except (URLError, OSError):
        return 0


def free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def served(views: Views, errors: Errors | None = None) -> Iterator[Serving]:
    serving = serve(views, port=0, errors=errors)
    try:
        yield serving
    finally:
        serving.stop()


@pytest.mark.parametrize(
    ("number", "more"), [(signal.SIGKILL, "alone"), (signal.SIGTERM, "alone"), (signal.SIGKILL, "forks")]
)
def test_it_ends_with_the_service(number: int, more: str) -> None:
    """Also where something that the service has forked holds what it had open."""
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, more], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    with service:
        assert service.stdout is not None
        port, front, forked = (int(part) for part in service.stdout.readline().split())
        assert alive(front) and status(f"http://127.0.0.1:{port}", "/healthz") == 200
        os.kill(service.pid, number)
        service.wait(10)
        ended = eventually(lambda: not alive(front))
        if forked > 0:
            os.kill(forked, signal.SIGKILL)
        assert ended
    assert eventually(lambda: free(port))


def test_one_that_ends_alone_is_started_again_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    errors = Errors()
    with served(Views(History(), CollectorRegistry()), errors) as serving, caplog.at_level(logging.ERROR):
        first = serving.process_id
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: serving.process_id != first)
        assert eventually(lambda: status(serving.url, "/healthz") == 200)
        assert errors.counts == {"http": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "the HTTP process has ended and is started again"
    ]


def test_one_that_hangs_is_ended_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.http.SILENT_SECONDS", 3.0)
    errors = Errors()
    with served(Views(History(), CollectorRegistry()), errors) as serving:
        first = serving.process_id
        os.kill(first, signal.SIGSTOP)
        assert eventually(
            lambda: serving.process_id != first and status(serving.url, "/healthz", 1) == 200, 60
        )
        assert errors.counts["http"] >= 1 and not alive(first)


def test_signals_to_it_end_nothing() -> None:
    with served(Views(History(), CollectorRegistry())) as serving:
        front = serving.process_id
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(front, number)
        assert status(serving.url, "/healthz") == 200 and serving.process_id == front


def test_stop_ends_one_that_does_not_listen() -> None:
    serving = serve(Views(History(), CollectorRegistry()), port=0)
    front = serving.process_id
    os.kill(front, signal.SIGSTOP)
    began = time.monotonic()
    serving.stop(1.0)
    assert not alive(front) and time.monotonic() - began < 10
    assert free(serving.port)


def test_a_view_that_hangs_makes_no_probe_wait() -> None:
    may = threading.Event()

    def hangs(_: str = "") -> dict[str, object]:
        may.wait(30)
        return {}

    views = Views(
        History(), CollectorRegistry(), state=hangs, gallery_picture=lambda name: hangs(name) and None,
        ready=lambda: {"running": True},
    )  # fmt: skip
    with served(views) as serving:
        codes: list[int] = []
        waiting = [
            threading.Thread(target=lambda p=path: codes.append(status(serving.url, p)))  # type: ignore[misc]
            for path in ("/state", "/picture/gallery/a", "/state")
        ]
        for thread in waiting:
            thread.start()
        began = time.monotonic()
        assert [status(serving.url, path) for path in ("/healthz", "/livez", "/readyz")] == [200] * 3
        assert time.monotonic() - began < 3.0
        for thread in waiting:
            thread.join(20)
        assert codes == [503] * 3
        may.set()


@pytest.mark.parametrize("error", [ValueError("a view's own mistake"), SystemExit(1)])
def test_a_view_that_raises_is_unavailable(error: BaseException) -> None:
    def broken() -> dict[str, bool]:
        raise error

    errors = Errors()
    with served(Views(History(), CollectorRegistry(), ready=broken, state=broken), errors) as serving:
        assert [status(serving.url, path) for path in ("/state", "/readyz", "/healthz")] == [503, 503, 200]
    assert errors.counts == {"view": 2}


def test_refusals_are_counted_in_the_service() -> None:
    metrics = Metrics(CollectorRegistry())
    with served(Views(History(), metrics.registry, refused=metrics.refused)) as serving:
        connection = socket.create_connection(("127.0.0.1", serving.port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert b"400" in connection.recv(100)
        connection.close()
        count = lambda: metrics.registry.get_sample_value("qshift_http_refused_total", {"reason": "host"})  # noqa: E731
        assert eventually(lambda: count() == 1.0)


def test_ipv6_is_served() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    serving = serve(Views(History(), CollectorRegistry()), "::1", 0)
    try:
        assert serving.url.startswith("http://[::1]:") and status(serving.url, "/healthz") == 200
    finally:
        serving.stop()


def test_what_was_bound_for_all_is_served_under_the_address_that_was_reached() -> None:
    serving = serve(Views(History(), CollectorRegistry()), "0.0.0.0", 0)
    try:
        for host, code in (("127.0.0.3", 200), ("127.0.0.4", 400), ("evil.example", 400)):
            with socket.create_connection(("127.0.0.3", serving.port)) as connection:
                connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: {host}:1\r\n\r\n".encode())
                assert connection.recv(100).startswith(f"HTTP/1.1 {code}".encode())
    finally:
        serving.stop()
