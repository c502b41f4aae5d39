"""The routes: metrics, health, state and the live page. They read only: there are no actions.

They run in the front, a process beside the service, and show what it answers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import ConfigError
from monitoring.gate import Count, Hosts, Paced
from monitoring.questions import Kept, Questions, Unanswered

PAGE = Path(__file__).parent / "page"
EVENT_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
MOST_STREAMS = 32
"""Pages that are kept up to date at once."""
READY_SECONDS = 0.1
"""So old may the conditions of /readyz be."""
DEAF_SECONDS = 10.0
"""A service that has answered nothing for so long is not well."""
FORMATS = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
TYPES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"RIFF", "image/webp"),
    (b"GIF8", "image/gif"),
)
"""Pictures that are passed on, by their first bytes; anything else is not served."""
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
) -> Starlette:
    """The ASGI application.

    Args:
        questions: what the service is asked.
        ended: ends event streams.
        hosts: names that are served besides the local ones.
        attribution: of the pictures.
        seconds: how old what is shown may be.
        count: told why a client was refused.
    """
    kept = {name: Kept(questions, name, seconds) for name in (*FORMATS, "state")}
    ready = Kept(questions, "ready", READY_SECONDS)
    snapshots = Kept(questions, "snapshot", EVENT_SECONDS, versioned=True)
    streams = asyncio.Semaphore(MOST_STREAMS)

    async def metrics(request: Request) -> Response:
        name = chosen_format(request.headers.get("accept", ""))
        return Response(await kept[name].get(), headers={"content-type": FORMATS[name]})

    async def healthz(request: Request) -> Response:
        deaf = time.monotonic() - questions.heard
        if deaf < DEAF_SECONDS:
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"the service has not answered for {deaf:.0f} s\n", status_code=503)

    async def readyz(request: Request) -> Response:
        try:
            conditions = await ready.get()
        except Unanswered:
            conditions = b'{"answering":false}'
        status = 200 if all(json.loads(conditions).values()) else 503
        return Response(conditions, status_code=status, media_type="application/json")

    async def state(request: Request) -> Response:
        return Response(await kept["state"].get(), media_type="application/json")

    async def snapshot(request: Request) -> Response:
        return Response(await snapshots.get(), media_type="application/json")

    async def events(request: Request) -> Response:
        if streams.locked():
            count("streams")
            return PlainTextResponse("too many pages are open\n", status_code=503)
        return StreamingResponse(
            _held(streams, _events(snapshots, ended)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def index(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    async def plotly(request: Request) -> Response:
        return FileResponse(plotly_file(), media_type="text/javascript")

    async def shown_attribution(request: Request) -> Response:
        return PlainTextResponse(attribution + "\n")

    async def silent(request: Request, error: Exception) -> Response:
        return PlainTextResponse("the service does not answer\n", status_code=503)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/livez", healthz),
            Route("/readyz", readyz),
            Route("/state", state),
            Route("/snapshot", snapshot),
            Route("/events", events),
            Route("/plotly.js", plotly),
            Route("/attribution", shown_attribution),
            Route("/picture/gallery/{name:path}", _pictures(questions, "gallery", 3600)),
            Route("/picture/query/{name:path}", _pictures(questions, "query", 3600)),
            Mount("/static", StaticFiles(directory=PAGE)),
        ],
        # Paced first: a refusal costs as much as an answer.
        middleware=[
            Middleware(_Headers),
            Middleware(Paced, count=count),
            Middleware(Hosts, hosts=hosts, count=count),
        ],
        exception_handlers={Unanswered: silent},
    )


def chosen_format(accept: str) -> str:
    """Which of the two formats a client prefers: a name of FORMATS.

    OpenMetrics only for who asks for it in a version that 1.0.0 is right for; everybody understands text.
    """
    best, chosen = 0.0, "text"
    for entry in accept[:1000].split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        given = dict(part.partition("=")[::2] for part in parameters)
        try:
            quality = float(given.get("q", "1"))
        except ValueError:
            continue
        name = {"application/openmetrics-text": "openmetrics", "text/plain": "text"}.get(kind)
        if name == "openmetrics" and given.get("version", "1.0.0").strip('"') != "1.0.0":
            continue
        if name is not None and quality > best:
            best, chosen = quality, name
    return chosen


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


def content_type(picture: bytes) -> str | None:
    """MIME type by the first bytes, None for what is no picture we pass on."""
    for start, name in TYPES:
        if picture.startswith(start) and (start != b"RIFF" or picture[8:12] == b"WEBP"):
            return name
    return None


def _pictures(questions: Questions, kind: str, seconds: int) -> Callable[[Request], Awaitable[Response]]:
    async def picture(request: Request) -> Response:
        data = await questions.ask(kind, request.path_params["name"])
        found = content_type(data) if data is not None else None
        if data is None or found is None:
            return PlainTextResponse("no such picture\n", status_code=404)
        return Response(data, media_type=found, headers={"cache-control": f"private, max-age={seconds}"})

    return picture


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
