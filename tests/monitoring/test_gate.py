"""Who is served over HTTP, and how often."""

import asyncio
import http.client
import threading
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from starlette.types import Message, Receive, Scope, Send

from monitoring.gate import Bucket, Hosts, Paced, Turns, host_of, neighbourhood
from monitoring.history import History
from monitoring.http import Serving, Views, serve


@pytest.fixture(scope="module")
def serving():
    registry, reads = CollectorRegistry(), []
    Gauge("reads", "How often it was read.", registry=registry).set_function(
        lambda: reads.append(1) or len(reads)
    )
    one = serve(Views(History(), registry, hosts=("0.0.0.0", "qshift")), port=0)
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
    one = serve(Views(History(), CollectorRegistry(), hosts=("*",)), port=0)
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


def test_a_bucket_gives_a_burst_and_then_a_rate() -> None:
    bucket = Bucket(10.0, 3.0)
    assert [bucket.take() for _ in range(5)] == [True] * 3 + [False] * 2
    assert bucket.wait_seconds() == pytest.approx(0.1, abs=0.05)
    time.sleep(bucket.wait_seconds())
    assert bucket.take() and not bucket.take()


def test_turns_go_round_by_address() -> None:
    async def handed_out() -> list[str]:
        turns, order = Turns(1000.0, 1.0), []

        async def one(who: str) -> None:
            await turns.take(who)
            order.append(who)

        assert turns.free() and not turns.free()
        await asyncio.gather(*(one(who) for who in ["eager"] * 50 + ["other"] * 2))
        assert not len(turns)
        return order

    order = asyncio.run(handed_out())
    assert sorted(order) == ["eager"] * 50 + ["other"] * 2
    assert max(place for place, who in enumerate(order) if who == "other") <= 4


def test_who_gives_up_takes_no_turn() -> None:
    async def waited() -> float:
        turns = Turns(5.0, 1.0)
        assert turns.free()
        gone = [asyncio.create_task(turns.take("eager")) for _ in range(100)]
        await asyncio.sleep(0.01)
        assert len(turns) == 100
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert not len(turns)
        began = time.monotonic()
        await turns.take("eager")
        return time.monotonic() - began

    assert asyncio.run(waited()) < 2.0  # not after the twenty seconds of the others


class Site:
    """An application behind the pace, called without a socket."""

    def __init__(self, rate: float = 0.01, longest_seconds: float = 0.05) -> None:
        self.counted: list[str] = []
        self.served = 0
        self.paced = Paced(self._app, self.counted.append, longest_seconds, {}, (rate, 1.0))

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.served += 1

    async def ask(self, leaves: bool = False) -> list[Message]:
        sent: list[Message] = []
        came: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if came:
                return came.pop()
            if leaves:
                return {"type": "http.disconnect"}
            await asyncio.Event().wait()
            raise AssertionError("nothing sets it")

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/", "client": ("192.0.2.1", 1), "headers": [], "method": "GET"}
        await self.paced(scope, receive, send)
        return sent


def test_a_request_waits_for_a_while_and_is_told_when_to_come_again() -> None:
    async def asked() -> Site:
        site = Site()
        assert await site.ask() == [] and site.served == 1  # the burst
        began = time.monotonic()
        start = (await site.ask())[0]
        assert 0.05 <= time.monotonic() - began < 5.0
        assert start["status"] == 503 and int(dict(start["headers"])[b"retry-after"]) >= 1
        return site

    site = asyncio.run(asked())
    assert site.served == 1 and site.counted == ["waited"]


def test_a_request_whose_client_has_left_is_dropped() -> None:
    async def asked() -> Site:
        site = Site(longest_seconds=60.0)
        await site.ask()
        assert await asyncio.wait_for(site.ask(leaves=True), 5.0) == []
        return site

    site = asyncio.run(asked())
    assert site.served == 1 and site.counted == ["left"]


@pytest.mark.parametrize(
    ("client", "one"),
    [
        ("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("testclient", "testclient"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"), ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
    ],
)  # fmt: skip
def test_an_ipv6_host_is_its_whole_network(client: str, one: str) -> None:
    assert neighbourhood(client) == one


@pytest.mark.parametrize(
    ("host", "reached", "code"),
    [
        ("192.0.2.7:8765", "192.0.2.7", 0), ("192.0.2.7", "::ffff:192.0.2.7", 0),
        ("[2001:db8::7]", "2001:db8::7", 0), ("192.0.2.8", "192.0.2.7", 400),
        ("evil.example", "192.0.2.7", 400), ("192.0.2.7.evil.example", "192.0.2.7", 400), ("", "", 400),
        ("evil.example", "evil.example", 400),
    ],
)  # fmt: skip
def test_the_address_that_was_reached_is_ours_whatever_was_bound(host: str, reached: str, code: int) -> None:
    sent: list[Message] = []

    async def nothing(*_: Any) -> None:
        return None

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "server": (reached, 8765),
        "headers": [(b"host", host.encode())],
        "method": "GET",
    }
    asyncio.run(Hosts(nothing, ("0.0.0.0",))(scope, nothing, send))  # type: ignore[arg-type]
    assert (sent[0]["status"] if sent else 0) == code


def test_eager_clients_do_not_ask_the_service_and_probes_do_not_wait_for_them(serving: Serving) -> None:
    stop, codes = threading.Event(), []

    def client() -> None:
        while not stop.is_set():
            codes.append(status(serving, "localhost", "/metrics")[0])

    threads = [threading.Thread(target=client, daemon=True) for _ in range(60)]
    before, began = len(serving.reads), time.monotonic()
    for thread in threads:
        thread.start()
    waits = []
    for path in ("/readyz", "/healthz", "/livez", "/readyz"):
        asked = time.monotonic()
        assert status(serving, "localhost", path)[0] == 200
        waits.append(time.monotonic() - asked)
        time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join(10)
    seconds = time.monotonic() - began
    assert max(waits) < 1.0 and set(codes) == {200} and len(codes) > 60
    assert len(codes) <= 50 + 200 * seconds + 1  # the burst, and the rate
    assert len(serving.reads) - before <= 2 + seconds  # the service makes them once a second
