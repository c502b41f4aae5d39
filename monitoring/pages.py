"""The routes: metrics, health, state and the live page. They read only: there are no actions.

They run in the front, a process beside the service, and show what it answers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import ConfigError
from monitoring.formats import FORMATS, chosen_format, content_type
from monitoring.gate import Count, Hosts, Paced
from monitoring.questions import Kept, Questions, Unanswered
from monitoring.token import Token

PAGE = Path(__file__).parent / "page"
EVENT_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
MOST_STREAMS = 32
"""Pages that are kept up to date at once."""
READY_SECONDS = 0.1
"""So old may the conditions of /readyz be."""
DEAF_SECONDS = 10.0
"""A service that has answered nothing for so long is not well."""
KEPT_SECONDS = 3600
"""So long may a browser keep a picture."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        # The chart library writes style elements and data: pictures of its own.
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
)


def create_app(
    questions: Questions,
    ended: asyncio.Event,
    hosts: Sequence[str] = (),
    attribution: str = "",
    seconds: float = 1.0,
    count: Count = lambda _: None,
    token: str = "",
) -> Starlette:
    """The ASGI application.

    Args:
        questions: what the service is asked.
        ended: ends event streams.
        hosts: names that are served besides the local ones.
        attribution: of the pictures.
        seconds: how old what is shown may be.
        count: told why a client was refused.
        token: digest of what clients have to show, see `monitoring.token`; "" for nothing.
    """
    return Starlette(
        routes=_Pages(questions, ended, attribution, seconds, count).routes(),
        # Paced first: a refusal costs as much as an answer.
        middleware=[
            Middleware(_Headers),
            Middleware(Paced, count=count),
            Middleware(Hosts, hosts=hosts, count=count),
            Middleware(Token, expected=token, count=count),
        ],
        exception_handlers={Unanswered: _silent},
    )


async def _silent(request: Request, error: Exception) -> Response:
    return PlainTextResponse("the service does not answer\n", status_code=503)


class _Pages:
    """A method per route."""

    def __init__(
        self, questions: Questions, ended: asyncio.Event, attribution: str, seconds: float, count: Count
    ) -> None:
        self._questions, self._ended, self._attribution, self._count = questions, ended, attribution, count
        self._kept = {name: Kept(questions, name, seconds) for name in (*FORMATS, "state")}
        self._ready = Kept(questions, "ready", READY_SECONDS)
        self._snapshots = Kept(questions, "snapshot", EVENT_SECONDS, versioned=True)
        self._streams = asyncio.Semaphore(MOST_STREAMS)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.index),
            Route("/metrics", self.metrics),
            Route("/healthz", self.healthz),
            Route("/livez", self.healthz),
            Route("/readyz", self.readyz),
            Route("/state", self.state),
            Route("/snapshot", self.snapshot),
            Route("/events", self.events),
            Route("/plotly.js", self.plotly),
            Route("/attribution", self.attribution),
            Route("/picture/gallery/{name:path}", self.gallery_picture),
            Route("/picture/query/{name:path}", self.query_picture),
            Mount("/static", StaticFiles(directory=PAGE)),
        ]

    async def metrics(self, request: Request) -> Response:
        name = chosen_format(request.headers.get("accept", ""))
        return Response(await self._kept[name].get(), headers={"content-type": FORMATS[name]})

    async def healthz(self, request: Request) -> Response:
        deaf = time.monotonic() - self._questions.heard
        if deaf < DEAF_SECONDS:
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"the service has not answered for {deaf:.0f} s\n", status_code=503)

    async def readyz(self, request: Request) -> Response:
        try:
            conditions = await self._ready.get()
        except Unanswered:
            conditions = b'{"answering":false}'
        status = 200 if all(json.loads(conditions).values()) else 503
        return Response(conditions, status_code=status, media_type="application/json")

    async def state(self, request: Request) -> Response:
        return Response(await self._kept["state"].get(), media_type="application/json")

    async def snapshot(self, request: Request) -> Response:
        return Response(await self._snapshots.get(), media_type="application/json")

    async def events(self, request: Request) -> Response:
        if self._streams.locked():
            self._count("streams")
            return PlainTextResponse("too many pages are open\n", status_code=503)
        return StreamingResponse(
            _held(self._streams, _events(self._snapshots, self._ended)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def index(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    async def plotly(self, request: Request) -> Response:
        return FileResponse(plotly_file(), media_type="text/javascript")

    async def attribution(self, request: Request) -> Response:
        return PlainTextResponse(self._attribution + "\n")

    async def gallery_picture(self, request: Request) -> Response:
        return await self._picture("gallery", request.path_params["name"])

    async def query_picture(self, request: Request) -> Response:
        return await self._picture("query", request.path_params["name"])

    async def _picture(self, kind: str, name: str) -> Response:
        data = await self._questions.ask(kind, name)
        found = content_type(data) if data is not None else None
        if data is None or found is None:
            return PlainTextResponse("no such picture\n", status_code=404)
        return Response(data, media_type=found, headers={"cache-control": f"private, max-age={KEPT_SECONDS}"})


def plotly_file() -> Path:
    """The chart library's own JavaScript in its installed package.

    Raises:
        ConfigError: plotly is not installed.
    """
    found = importlib.util.find_spec("plotly")
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / "package_data" / "plotly.min.js"
        if file.is_file():
            return file
    raise ConfigError("the live page needs plotly's plotly.min.js, found none: install the package plotly")


async def _held(streams: asyncio.Semaphore, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with streams:
        async for event in events:
            yield event


async def _events(snapshots: Kept, ended: asyncio.Event) -> AsyncIterator[bytes]:
    """A snapshot whenever something changed, at most one per second, and a comment to keep proxies awake."""
    sent, silent_since = "", time.monotonic()
    yield b"retry: 2000\n\n"
    while not ended.is_set():
        try:
            shown = await snapshots.get()
        except Unanswered:
            shown = b""
        if shown and snapshots.version != sent:
            sent, silent_since = snapshots.version, time.monotonic()
            yield b"id: " + sent.encode() + b"\nevent: snapshot\ndata: " + shown + b"\n\n"
        elif time.monotonic() - silent_since > HEARTBEAT_SECONDS:
            silent_since = time.monotonic()
            yield b": still here\n\n"
        try:
            await asyncio.wait_for(ended.wait(), EVENT_SECONDS)
        except TimeoutError:
            continue


class _Headers:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
