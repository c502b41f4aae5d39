"""Who may ask the service's HTTP side, and how often: no client may slow the answers.

Only names that are ours are served: a page of a stranger whose name resolves to this machine (DNS rebinding)
sends its own name as the host. And requests are paced: beyond a burst, each kind of request waits for its
turn, because the answers' thread needs the interpreter, too, and two hundred eager clients would hold it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")
ANY = "*"
RATES = {"/metrics": (20.0, 20.0), "/healthz": (20.0, 20.0), "/readyz": (20.0, 20.0)}
"""Path -> (requests a second, burst); everything else shares `OTHERS`."""
OTHERS = (50.0, 300.0)
"""A page with all its pictures is some two hundred requests."""


class Hosts:
    """Refuses requests for a host that is not one of ours.

    Args:
        hosts: names besides this machine's local ones; "*" lets every host in.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self.app, self._every = app, ANY in hosts
        self._hosts = {name.lower() for name in (*LOCAL, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if scope["type"] == "http" and not self._every and host_of(asked) not in self._hosts:
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


class Bucket:
    """Tokens that come at a rate, up to a burst. `take` says how long to wait for the next one."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, time.monotonic()

    def take(self) -> float:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self._rate)


class Paced:
    """Lets requests wait for their turn, kind by kind."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._buckets = {path: Bucket(*rate) for path, rate in RATES.items()}
        self._others = Bucket(*OTHERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            wait = self._buckets.get(scope["path"], self._others).take()
            if wait:
                await asyncio.sleep(wait)
        await self.app(scope, receive, send)
