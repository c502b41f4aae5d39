"""Where a token is set nobody without it sees queries, answers or figures; probes stay open."""

from __future__ import annotations

import http.client
import pathlib
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from core.config import Config
from core.errors import ConfigError
from core.secrets import http_token
from monitoring.history import History
from monitoring.http import Serving, Views, serve
from monitoring.token import COOKIE, digest

SECRET = "a token; with, odd=signs"
PATHS = ("/", "/metrics", "/state", "/snapshot", "/events", "/attribution", "/picture/query/q/0/1")


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    one = serve(Views(History(), CollectorRegistry(), token=digest(SECRET)), port=0)
    yield one
    one.stop()


def ask(serving: Serving, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    connection.close()
    return reply


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_shown_without_it(serving: Serving, path: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Cookie": f"{COOKIE}=wrong"},
        {"Authorization": SECRET},
    ):
        assert ask(serving, path, **headers).status == 401
    assert ask(serving, "/?token=wrong").status == 401


def test_probes_are_open(serving: Serving) -> None:
    assert [ask(serving, path).status for path in ("/healthz", "/livez", "/readyz")] == [200, 200, 200]


def test_programs_and_browsers_are_let_in(serving: Serving) -> None:
    assert ask(serving, "/metrics", Authorization=f"Bearer {SECRET}").status == 200
    entered = ask(serving, "/?token=a%20token%3B%20with%2C%20odd%3Dsigns")
    cookie = entered.getheader("Set-Cookie") or ""
    assert (entered.status, entered.getheader("Location")) == (303, "/")
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert ask(serving, "/", Cookie=cookie.split(";")[0]).status == 200
    assert ask(serving, "/snapshot", Cookie=cookie.split(";")[0]).status == 200


def test_the_command_line_of_the_front_does_not_hold_it(serving: Serving) -> None:
    with pathlib.Path(f"/proc/{serving.process_id}/cmdline").open("rb") as file:
        assert SECRET.encode() not in file.read()


def test_it_stands_in_a_file_or_in_the_environment(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http_token(Config().http) is None
    monkeypatch.setenv("OF_THE_PAGE", SECRET)
    assert http_token(Config.model_validate({"http": {"token_env": "OF_THE_PAGE"}}).http) == SECRET
    missing = Config.model_validate({"http": {"token_file": f"{tmp_path}/none"}}).http
    with pytest.raises(ConfigError, match=r"http\.token_file: "):
        http_token(missing)
