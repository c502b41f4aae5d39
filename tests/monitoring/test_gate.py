"""Who is served over HTTP, and how often."""

import http.client
import threading
import time

import pytest
from prometheus_client import CollectorRegistry, Gauge

from monitoring.gate import Bucket, host_of
from monitoring.history import History
from monitoring.http import Serving, Views, create_app, serve


@pytest.fixture(scope="module")
def serving():
    registry, reads = CollectorRegistry(), []
    Gauge("reads", "How often it was read.", registry=registry).set_function(
        lambda: reads.append(1) or len(reads)
    )
    one = serve(create_app(Views(History(), registry, hosts=("0.0.0.0", "qshift"))), port=0)
    one.reads = reads
    yield one
    one.stop()


def status(serving: Serving, host: str | None, path: str = "/healthz") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    reply = connection.getresponse()
    found = reply.status, reply.read()
    connection.close()
    return found


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:8765", "LOCALHOST:1", "qshift:8765"])
def test_our_own_names_are_served(serving: Serving, host: str) -> None:
    assert status(serving, host) == (200, b"ok\n")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost@evil.example", "a[b", ""],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/state", "/events", "/static/page.js"])
def test_other_hosts_are_refused_everywhere(serving: Serving, host: str, path: str) -> None:
    code, body = status(serving, host, path)
    assert code == 400 and (b"http.hosts" in body or b"Invalid" in body)


def test_a_star_lets_every_host_in() -> None:
    one = serve(create_app(Views(History(), CollectorRegistry(), hosts=("*",))), port=0)
    try:
        assert status(one, "evil.example")[0] == 200
    finally:
        one.stop()


def test_hosts_are_read_without_their_port() -> None:
    assert [host_of(text) for text in ("a:1", "[::1]:8", "A.b", "", "[", "u@h:9")] == [
        "a", "::1", "a.b", "", "", "h",
    ]  # fmt: skip


def test_metrics_are_made_once_a_second_for_all(serving: Serving) -> None:
    time.sleep(1.1)
    before = len(serving.reads)
    began, bodies = time.monotonic(), []
    threads = [
        threading.Thread(target=lambda: bodies.append(status(serving, "localhost", "/metrics")))
        for _ in range(15)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    assert {code for code, _ in bodies} == {200}
    assert len(serving.reads) - before <= 1 + seconds


def test_a_bucket_paces_beyond_its_burst() -> None:
    bucket = Bucket(10.0, 3.0)
    waits = [bucket.take() for _ in range(8)]
    assert waits[:3] == [0.0] * 3
    assert waits[3:] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=0.05)


def test_eager_clients_wait_for_their_turn_and_probes_do_not_wait_for_them(serving: Serving) -> None:
    stop, count = threading.Event(), []

    def client() -> None:
        while not stop.is_set():
            status(serving, "localhost", "/metrics")
            count.append(1)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(30)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    began = time.monotonic()
    assert status(serving, "localhost", "/readyz")[0] == 200
    probe = time.monotonic() - began
    time.sleep(1.0)
    stop.set()
    assert probe < 1.0
    assert len(count) <= 20 + 3 * 20 + 5  # the burst, and the rate for three seconds
    for thread in threads:
        thread.join(10)
