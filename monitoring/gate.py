"""Who may ask the service's HTTP side, and how often.

Only names that are ours are served: a page of a stranger whose name resolves to this machine (DNS rebinding)
sends its own name as the host. And requests are paced: beyond a burst, each kind of request waits for its
turn, so that eager clients cost a bounded share of a core. Turns go round by address, so that one client with
many connections delays itself. A refusal comes late, too: one that comes at once is asked for again at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")
ANY = "*"
PROBES = ("/healthz", "/livez", "/readyz")
RATES = dict.fromkeys(("/metrics", *PROBES), (200.0, 50.0))
"""Path -> (requests a second, burst); everything else shares `OTHERS`."""
OTHERS = (50.0, 300.0)
"""A page with all its pictures is some two hundred requests."""
LONGEST_SECONDS = 3.0
"""A request waits so long for its turn, then it is refused."""

Count = Callable[[str], None]
"""Called with the reason of each refusal."""


class Hosts:
    """Refuses requests for a host that is not one of ours.

    The address that a client has reached us under is ours, whatever was bound: only names can be made to
    point somewhere else.

    Args:
        hosts: names besides this machine's local ones; "*" lets every host in.
        count: told "host" at each refusal.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = (), count: Count = lambda _: None) -> None:
        self.app, self._every, self._count = app, ANY in hosts, count
        self._hosts = {name.lower() for name in (*LOCAL, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._every:
            asked = Headers(scope=scope).get("host", "")
            name = host_of(asked)
            if name not in self._hosts and not _same_address(name, (scope.get("server") or ("",))[0]):
                self._count("host")
                refusal = PlainTextResponse(
                    f"the host {asked[:100]!r} is not served: name it in http.hosts\n", status_code=400
                )
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def host_of(header: str) -> str:
    """The host of a Host header without its port, "" for what is none: "[::1]:8765" -> "::1"."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _same_address(name: str, reached: str) -> bool:
    address = _address(name)
    return address is not None and address == _address(reached)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for what is no address; IPv4 as a socket for both shows it (::ffff:192.0.2.1) is IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def neighbourhood(client: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 host has to itself."""
    address = _address(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address or client)


class Bucket:
    """Tokens that come at a rate, up to a burst."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, time.monotonic()

    def take(self) -> bool:
        """Takes a token if there is one."""
        if self.wait_seconds() > 0.0:
            return False
        self._tokens -= 1.0
        return True

    def wait_seconds(self) -> float:
        """How long until there is a token: 0 when there is."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        # A token is whole where only rounding is missing, else the wait for it could be 0 seconds for ever.
        return 0.0 if self._tokens >= 1.0 - 1e-9 else (1.0 - self._tokens) / self._rate


class Turns:
    """Hands out places at a rate, going round by who asks; who does not wait any more costs nothing."""

    def __init__(self, rate: float, burst: float) -> None:
        self._bucket = Bucket(rate, burst)
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._next: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def free(self) -> bool:
        """Takes a place if nobody waits and there is one."""
        return not self._waiting and self._bucket.take()

    async def take(self, who: str) -> None:
        """Waits for a place."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        self._hand_out()
        try:
            await turn
        finally:
            if who in self._waiting and turn in self._waiting[who]:  # gave up
                self._waiting[who].remove(turn)
                if not self._waiting[who]:
                    del self._waiting[who]

    def _hand_out(self) -> None:
        while self._waiting and self._bucket.take():
            who = next(iter(self._waiting))
            queue = self._waiting.pop(who)
            turn = queue.popleft()
            if queue:
                self._waiting[who] = queue  # behind the others
            if not turn.done():
                turn.set_result(None)
        if self._waiting and self._next is None:
            self._next = asyncio.get_running_loop().call_later(self._bucket.wait_seconds(), self._again)

    def _again(self) -> None:
        self._next = None
        self._hand_out()


class Paced:
    """Lets requests wait for their turn, kind by kind, for a while; drops those whose client has left.

    Args:
        count: told "waited" where a request was refused because it waited too long, "left" where its client
            was gone.
    """

    def __init__(
        self,
        app: ASGIApp,
        count: Count = lambda _: None,
        longest_seconds: float = LONGEST_SECONDS,
        rates: Mapping[str, tuple[float, float]] = RATES,
        others: tuple[float, float] = OTHERS,
    ) -> None:
        self.app, self._count, self._longest = app, count, longest_seconds
        self._turns = {path: Turns(*rate) for path, rate in rates.items()}
        self._others = Turns(*others)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            turns = self._turns.get(scope["path"], self._others)
            if not turns.free():
                who = neighbourhood((scope.get("client") or ("",))[0])
                outcome = await self._wait(turns, who, receive)
                if outcome:
                    self._count(outcome)
                if outcome == "waited":
                    await PlainTextResponse(
                        "too many requests wait\n",
                        status_code=503,
                        headers={"retry-after": str(round(self._longest) + 1)},
                    )(scope, receive, send)
                if outcome:
                    return
        await self.app(scope, receive, send)

    async def _wait(self, turns: Turns, who: str, receive: Receive) -> str:
        turn, left = asyncio.ensure_future(turns.take(who)), asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({turn, left}, timeout=self._longest, return_when=asyncio.FIRST_COMPLETED)
            if left.done() and not left.cancelled():
                return "left"
            return "" if turn.done() else "waited"
        finally:
            for task in (turn, left):
                task.cancel()
            await asyncio.gather(turn, left, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Returns when the client has gone; a body is nothing that we read."""
    while (message := await receive())["type"] != "http.disconnect":
        if message.get("more_body", False):
            await asyncio.Event().wait()
