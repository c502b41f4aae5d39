"""The HTTP side, over a real socket."""

import json
import threading
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry
from waiting import eventually

from core.errors import ConfigError
from monitoring.formats import content_type
from monitoring.history import History
from monitoring.http import Views, serve
from monitoring.metrics import Metrics

PNG = b"\x89PNG\r\n\x1a\nrest"


@pytest.fixture(scope="module")
def site():
    registry = CollectorRegistry()
    metrics, history, ready = Metrics(registry), History(), {"index": True, "state": False}
    pictures = {"a/b c": PNG, "page": b"<script>alert(1)</script>"}
    views = Views(
        history, registry, ready=lambda: ready, state=lambda: {"lanes": ["0:image"]},
        gallery_picture=pictures.get, attribution="Pictures: someone, CC BY-SA 4.0",
    )  # fmt: skip
    serving = serve(views, port=0)
    yield serving, metrics, history, ready
    serving.stop()


def get(url, **headers):
    try:
        with urlopen(Request(url, headers=headers), timeout=10) as reply:
            return reply.status, reply.headers, reply.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_health_readiness_and_state(site):
    serving, _, _, ready = site
    assert get(serving.url + "/healthz")[0] == 200
    status, _, body = get(serving.url + "/readyz")
    assert status == 503 and json.loads(body) == {"index": True, "state": False}
    ready["state"] = True
    assert eventually(lambda: get(serving.url + "/readyz")[0] == 200, seconds=10)
    assert get(serving.url + "/livez")[0] == 200
    assert json.loads(get(serving.url + "/state")[2]) == {"lanes": ["0:image"]}


def test_metrics_in_both_formats(site):
    serving, metrics, _, _ = site
    metrics.rebalanced()
    status, headers, body = get(serving.url + "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert b"qshift_rebalances_total 1.0" in body and b"_created" not in body
    _, headers, body = get(serving.url + "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["content-type"].startswith("application/openmetrics-text") and body.endswith(b"# EOF\n")


def test_page_and_its_files(site):
    serving = site[0]
    for path, kind in (
        ("/", "text/html"), ("/static/page.css", "text/css"), ("/static/page.js", "text/javascript"),
        ("/static/charts.js", "text/javascript"), ("/static/icon.svg", "image/svg+xml"),
    ):  # fmt: skip
        status, headers, body = get(serving.url + path)
        assert status == 200 and headers["content-type"].startswith(kind) and body
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
    assert b"plotly.js v" in get(serving.url + "/plotly.js")[2][:300]
    assert get(serving.url + "/static/..%2fhttp.py")[0] == 404
    assert b"CC BY-SA" in get(serving.url + "/attribution")[2]


def test_the_page_asks_nobody_else(site):
    serving = site[0]
    for path in ("/", "/static/page.css", "/static/page.js", "/static/charts.js", "/static/theme.js"):
        assert b"http://" not in get(serving.url + path)[2] and b"https://" not in get(serving.url + path)[2]


def test_only_pictures_are_served_as_pictures(site):
    serving = site[0]
    status, headers, body = get(serving.url + "/picture/gallery/a/b%20c")
    assert (status, headers["content-type"], body) == (200, "image/png", PNG)
    assert get(serving.url + "/picture/gallery/page")[0] == 404
    assert get(serving.url + "/picture/gallery/none")[0] == 404
    assert get(serving.url + "/picture/query/q/0/1")[0] == 404
    assert content_type(b"RIFF0000WEBPxx") == "image/webp" and content_type(b"RIFF0000WAVE") is None
    assert content_type(b"<svg") is None and content_type(b"") is None


def test_events_carry_a_snapshot_and_then_changes(site):
    serving, _, history, _ = site
    with urlopen(serving.url + "/events", timeout=10) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")

        def event():
            for line in stream:
                if line.startswith(b"data: "):
                    return json.loads(line[6:])
            raise AssertionError("the stream ended")

        first = event()
        history.mark("noise <b>")
        second = event()
    assert first["version"] < second["version"]
    assert second["phases"][-1]["text"] == "noise <b>"


def test_stop_ends_streams_and_frees_the_port():
    serving = serve(Views(History(), CollectorRegistry()), port=0)
    stream = urlopen(serving.url + "/events", timeout=10)
    stream.readline()
    started = time.monotonic()
    serving.stop()
    assert time.monotonic() - started < 4
    stream.close()
    assert not [t for t in threading.enumerate() if t is serving._thread]
    again = serve(Views(History(), CollectorRegistry()), port=serving.port)
    assert get(again.url + "/healthz")[0] == 200
    again.stop()


def test_a_snapshot_is_made_once_a_second_for_all():
    made = []

    class Counted(History):
        def snapshot(self):
            made.append(1)
            self.mark("changed again")
            return super().snapshot()

    serving = serve(Views(Counted(), CollectorRegistry()), port=0)
    try:
        began = time.monotonic()
        shown = {json.loads(get(serving.url + "/snapshot")[2])["version"] for _ in range(40)}
        assert len(shown) == len(made) <= 1 + time.monotonic() - began
    finally:
        serving.stop()


@pytest.mark.parametrize("version", ["2.0.0", "1.0.1", "0.0.1", "x"])
def test_no_version_that_a_client_words_is_a_format_of_its_own(site, version):
    for kind in ("application/openmetrics-text", "text/plain"):
        headers = get(site[0].url + "/metrics", Accept=f"{kind}; version={version}")[1]
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_taken_port_is_said_so(site):
    with pytest.raises(ConfigError, match=r"http\.port"):
        serve(Views(History(), CollectorRegistry()), port=site[0].port)
