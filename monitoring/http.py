"""The service's HTTP side: metrics, health, state and the live page. It reads only: there are no actions."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import ConfigError
from monitoring.gate import Hosts, Paced
from monitoring.history import History

PAGE = Path(__file__).parent / "page"
EVENT_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
MOST_STREAMS = 32
"""Pages that are kept up to date at once."""
MOST_CONNECTIONS = 512
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

Picture = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class Views:
    """What the routes show, injected by the app.

    `ready` names each condition; the service is ready when all are true. `gallery_picture` takes an item's
    identifier, `query_picture` the coordinates of a recent query.
    """

    history: History
    registry: CollectorRegistry
    ready: Callable[[], Mapping[str, bool]] = dict
    state: Callable[[], Mapping[str, Any]] = dict
    gallery_picture: Picture = lambda _: None
    query_picture: Picture | None = None
    attribution: str = ""
    hosts: tuple[str, ...] = ()
    """Names that are served besides the local ones, see `monitoring.gate.Hosts`."""
    metrics_seconds: float = 1.0
    """How old an exposition may be that is given again."""


def create_app(views: Views) -> Starlette:
    """The ASGI application; setting `app.state.ended` ends its event streams."""
    ended = threading.Event()
    exposition = _Exposition(views.registry, views.metrics_seconds)
    streams = asyncio.Semaphore(MOST_STREAMS)

    async def metrics(request: Request) -> Response:
        body, kind = await exposition.get(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": kind})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        conditions = dict(views.ready())
        return JSONResponse(conditions, status_code=200 if all(conditions.values()) else 503)

    async def state(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(lambda: dict(views.state())))

    async def snapshot(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(views.history.snapshot))

    async def events(request: Request) -> Response:
        if streams.locked():
            return PlainTextResponse("too many pages are open\n", status_code=503)
        return StreamingResponse(
            _held(streams, _events(views.history, ended)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def index(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    async def plotly(request: Request) -> Response:
        return FileResponse(plotly_file(), media_type="text/javascript")

    async def attribution(request: Request) -> Response:
        return PlainTextResponse(views.attribution + "\n")

    query_picture = views.query_picture or views.history.picture
    app = Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/state", state),
            Route("/snapshot", snapshot),
            Route("/events", events),
            Route("/plotly.js", plotly),
            Route("/attribution", attribution),
            Route("/picture/gallery/{name:path}", _pictures(views.gallery_picture, 3600)),
            Route("/picture/query/{name:path}", _pictures(query_picture, 3600)),
            Mount("/static", StaticFiles(directory=PAGE)),
        ],
        middleware=[Middleware(_Headers), Middleware(Hosts, hosts=views.hosts), Middleware(Paced)],
    )
    app.state.ended = ended
    return app


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


def _pictures(find: Picture, seconds: int) -> Callable[[Request], Awaitable[Response]]:
    async def picture(request: Request) -> Response:
        data = await run_in_threadpool(find, request.path_params["name"])
        kind = content_type(data) if data is not None else None
        if data is None or kind is None:
            return PlainTextResponse("no such picture\n", status_code=404)
        return Response(data, media_type=kind, headers={"cache-control": f"private, max-age={seconds}"})

    return picture


class _Exposition:
    """The metrics as text: made once for all who ask within `seconds`, one at a time."""

    def __init__(self, registry: CollectorRegistry, seconds: float) -> None:
        self._registry, self._seconds = registry, seconds
        self._lock = asyncio.Lock()
        self._made: dict[str, tuple[float, bytes]] = {}

    async def get(self, accept: str) -> tuple[bytes, str]:
        encode, kind = choose_encoder(accept)
        async with self._lock:
            at, body = self._made.get(kind, (-math.inf, b""))
            if time.monotonic() - at >= self._seconds:
                body = await run_in_threadpool(encode, self._registry)
                self._made[kind] = (time.monotonic(), body)
        return body, kind


async def _held(streams: asyncio.Semaphore, events: AsyncIterator[str]) -> AsyncIterator[str]:
    async with streams:
        async for event in events:
            yield event


async def _events(history: History, ended: threading.Event) -> AsyncIterator[str]:
    """A snapshot whenever something changed, at most one per second, and a comment to keep proxies awake."""
    sent, silent_since = -1, time.monotonic()
    yield "retry: 2000\n\n"
    while not ended.is_set():
        if history.version != sent:
            shown = await run_in_threadpool(history.snapshot)
            sent, silent_since = shown["version"], time.monotonic()
            yield f"id: {sent}\nevent: snapshot\ndata: {json.dumps(shown, separators=(',', ':'))}\n\n"
        elif time.monotonic() - silent_since > HEARTBEAT_SECONDS:
            silent_since = time.monotonic()
            yield ": still here\n\n"
        for _ in range(10):  # short naps, so that a stop is not held up
            if ended.is_set():
                return
            await asyncio.sleep(EVENT_SECONDS / 10)


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


class Serving:
    """A server that runs in a daemon thread."""

    def __init__(
        self, server: uvicorn.Server, thread: threading.Thread, url: str, port: int, ended: threading.Event
    ) -> None:
        self._server, self._thread, self._ended = server, thread, ended
        self.url, self.port = url, port

    def stop(self, budget_seconds: float = 5.0) -> None:
        """Ends the event streams, closes the port and joins the thread."""
        self._ended.set()
        self._server.should_exit = True
        self._thread.join(budget_seconds)


def serve(app: Starlette, host: str = "127.0.0.1", port: int = 8765, budget_seconds: float = 10.0) -> Serving:
    """Starts serving an app of `create_app` and returns when requests are answered; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken or not ours, or the server did not start in time.
    """
    try:
        listener = socket.create_server((host, port), backlog=64)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): set http.port to another port, "
            "or to 0 for a free one"
        ) from error
    bound = int(listener.getsockname()[1])
    ended: threading.Event = app.state.ended
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
        limit_concurrency=MOST_CONNECTIONS,
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="qshift-http", daemon=True)
    thread.start()
    deadline = time.monotonic() + budget_seconds
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            listener.close()
            raise ConfigError(f"the HTTP server on {host}:{bound} did not start: see the log")
        time.sleep(0.01)
    return Serving(server, thread, f"http://{host}:{bound}", bound, ended)
