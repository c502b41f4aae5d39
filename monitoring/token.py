"""What a client has to show where the HTTP side has a token: queries and their answers are not for everybody.

A program sends `Authorization: Bearer TOKEN`, as Prometheus can. A browser is given `/?token=TOKEN` once, and
keeps a cookie of that name. There are no actions behind it: the token lets look. Probes and the
page's own files say nothing and stay open.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from monitoring.gate import PROBES, Count

COOKIE = "qshift-token"
OPEN = ("/static/", "/plotly.js")


def digest(token: str) -> str:
    """What the front is told instead of the token: its command line can be read by others."""
    return hashlib.sha256(token.encode()).hexdigest()


class Token:
    """Refuses requests without the token.

    Args:
        expected: its `digest`; "" lets everybody in.
        count: told "token" at each refusal.
    """

    def __init__(self, app: ASGIApp, expected: str = "", count: Count = lambda _: None) -> None:
        self.app, self._expected, self._count = app, expected, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: Response | None = None
        if scope["type"] == "http" and self._expected:
            answer = self._answer(Request(scope))
        await (self.app if answer is None else answer)(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        """None where the request may pass."""
        if request.url.path in PROBES or request.url.path.startswith(OPEN):
            return None
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is(shown.strip()):
            return None
        if self._is(unquote(request.cookies.get(COOKIE, ""))):
            return None
        asked = request.query_params.get("token", "")
        if request.url.path == "/" and self._is(asked):
            entered = RedirectResponse("/", status_code=303, headers={"cache-control": "no-store"})
            entered.set_cookie(COOKIE, quote(asked, safe=""), httponly=True, samesite="strict")
            return entered
        self._count("token")
        return PlainTextResponse(
            "a token is needed: send it as Authorization: Bearer, or open /?token=...\n",
            status_code=401,
            headers={"www-authenticate": "Bearer"},
        )

    def _is(self, shown: str) -> bool:
        return hmac.compare_digest(digest(shown), self._expected)
