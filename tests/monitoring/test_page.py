"""The live page in a real Chromium: what it shows, that it follows events, that it keeps quiet and safe.

QSHIFT_SCREENSHOTS names a folder to keep pictures in.
"""

from __future__ import annotations

import base64
import colorsys
import contextlib
import fcntl
import functools
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from prometheus_client import CollectorRegistry

from core.commands import Command, Obeyed
from core.records import Coordinates, Judgement, Record, Refusal
from core.references import DriftReference
from core.types import AdaptationStep
from monitoring.cards import Item
from monitoring.drift import DriftMonitor
from monitoring.expected import ExpectedMonitor
from monitoring.history import History
from monitoring.http import Views, serve
from monitoring.judged import JudgedQuality
from monitoring.ranking import levels

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
--disable-background-networking --disable-component-update --disable-sync --remote-debugging-pipe""".split()  # noqa: SIM905
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
ITEMS, BATCH, PER_PHASE = 60, 64, 10
PHASES = (("clean", 0.02), ("noise", 0.3), ("sketch", 0.45), ("misspelt text", 0.2), ("mixed users", 0.35))
POOR_CONTRAST = r"""(() => {
  const parse = c => c.match(/[\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => [.2126, .7152, .0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const c = parse(getComputedStyle(node).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    const text = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!text || !node.getClientRects().length || node.closest('svg')) continue;
    const both = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (both[0] + .05) / (both[1] + .05);
    if (ratio < 4.5) poor.push(`${node.tagName} ${node.className} ${node.textContent.slice(0, 30)} ${ratio}`);
  }
  return poor;
})()"""
"""Elements with text of a contrast below 4.5 (WCAG 2.2, level AA)."""


class Browser:
    """Chromium over its debugging pipe: JSON messages that end in a zero byte."""

    def __init__(self, profile: str) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def place() -> None:
            # Chromium reads from 3 and writes to 4: out of the way first, neither may cover the other.
            safe = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in (theirs_in, theirs_out)]
            os.dup2(safe[0], 3)
            os.dup2(safe[1], 4)

        self.process = subprocess.Popen(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._rest = ours_in, ours_out, b""
        self._ids, self.session, self.events = itertools.count(1), None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params):
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self, seconds: float = 60.0):
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], seconds)[0]:
                raise TimeoutError("Chromium does not answer")
            self._rest += os.read(self._in, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def run(self, expression: str):
        result = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # the page is just changing
                if value := self.run(expression):
                    return value
            time.sleep(0.1)
        raise AssertionError(f"never true: {expression}")

    def open(self, url: str, width: int = 1280, scheme: str = "light") -> None:
        self("Page.navigate", url="about:blank")  # the page before may miss its server, loudly
        self.until("location.href === 'about:blank'")
        self.events.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self("Page.navigate", url=url)
        self.until("document.documentElement?.dataset.drawn && window.Plotly && true")

    def picture(self, name: str) -> Image.Image:
        # Pictures load lazily: walk down the page once.
        self.run(
            "(async () => { document.querySelectorAll('img').forEach(i => i.loading = 'eager');"
            "await Promise.all([...document.images].map(i => i.complete ||"
            "  new Promise(r => { i.onload = i.onerror = r })));"
            "await new Promise(r => setTimeout(r, 900)) })()"
        )
        data = base64.b64decode(
            self("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        )
        if folder := os.environ.get("QSHIFT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(data)
        return Image.open(io.BytesIO(data))

    def complaints(self) -> list[str]:
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self._in)
        os.close(self._out)


@functools.cache
def drawing(key: int, noise: float = 0.0, seed: int = 0) -> bytes:
    """A coloured shape, one per gallery item; noise makes a bad photo of it."""
    canvas = Image.new("RGB", (96, 96), "white")
    draw, shape = ImageDraw.Draw(canvas), key % 5
    ink = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(key / ITEMS, 0.65, 0.85))
    box = (14 + key % 7, 14, 82, 82 - key % 9)
    if shape == 0:
        draw.ellipse(box, fill=ink)
    elif shape == 1:
        draw.rounded_rectangle(box, 12, fill=ink)
    else:
        draw.regular_polygon((48, 48, 38), 3 + shape - 2 + key % 3, rotation=7 * key, fill=ink)
    draw.ellipse((40, 40, 56, 56), fill="white")
    pixels = np.asarray(canvas, np.float32)
    pixels = pixels + np.random.default_rng(seed).normal(0, 255 * noise, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Feed:
    """A plausible run: codes of a 60-item gallery, shifts that flip bits, an adapter that mends some."""

    def __init__(self, outcome) -> None:
        self.outcome, self.generator = outcome, np.random.default_rng(5)
        self.codes = self.generator.integers(0, 2, (ITEMS, 64))
        self.offset, self.seqs, self.late = 0, {}, []
        clean = self.codes[self.generator.integers(0, ITEMS, 1024)]
        clean = clean ^ (self.generator.random(clean.shape) < 0.31)
        reference = DriftReference(
            self.features(clean, 0.02), self.generator.gamma(4, 0.3, 1024).astype(np.float32),
            (self.codes[None] != clean[:, None]).sum(2).min(1).astype(np.float32), BATCH,
        )  # fmt: skip
        self.drift = DriftMonitor(
            {"image": reference, "text": reference}, np.full(8, 0.4, np.float32), null_windows=2000
        )
        self.expected = ExpectedMonitor(
            lambda seen: tuple(
                0.9 - twin.hits.distances[:, 0] / 30.0 for twin in (seen.frozen, seen.adapted)
            ),
        )
        self.judged = JudgedQuality("demo", 0.3, 20000, self.ranked)
        self.history = History(
            self.judged, self.drift, self.item, lambda _, label: {int(label)},
            subtitle="Finding emoji by bad photo, sketch and misspelt text, while the encoder adapts",
            attribution="Pictures in this demo are drawn by the test itself. <i>Nothing</i> is fetched.",
            expected=self.expected,
        )  # fmt: skip

    def features(self, codes, shift):
        base = self.generator.normal(0, 0.2, (len(codes), 8)) + 1.0
        base[:, 0] += 0.5 * shift
        return (base / np.linalg.norm(base, axis=1, keepdims=True)).astype(np.float32)

    def item(self, key):
        return Item(f"shape-{key}", f"shape number {key}", f"/picture/gallery/{key}")

    def ranked(self, _, kept, label):
        frozen, adapted = (
            (self.codes != np.unpackbits(c)).sum(1) for c in (kept.frozen_code, kept.adapted_code)
        )
        right = np.arange(ITEMS) == int(label)
        return tuple(levels(row, right) for row in (frozen, adapted, (frozen + adapted) / 2))

    def batch(self, shift: float, mend: float, lane: str = "0:image") -> None:
        labels = self.generator.integers(0, ITEMS, BATCH)
        truth = self.codes[labels]
        flips = self.generator.random(truth.shape) < 0.3 + 0.2 * shift
        frozen = truth ^ flips
        adapted = truth ^ (flips & (self.generator.random(truth.shape) > mend))
        far = {
            name: (self.codes[None] != code[:, None]).sum(2).astype(np.int32)
            for name, code in (("frozen", frozen), ("adapted", adapted))
        }
        order = {name: np.argsort(d, axis=1, kind="stable")[:, :10] for name, d in far.items()}
        served = np.argsort(far["frozen"] + far["adapted"], axis=1, kind="stable")[:, :10]
        offsets = list(range(self.offset, self.offset + BATCH))
        self.offset += BATCH
        text = lane.endswith("text")
        contents = [
            f"shpae nubmer {key}, {'roundd' if key % 5 < 2 else 'ponited'} <b>&amp;" if text
            else drawing(int(key), shift * 0.9)
            for key in labels
        ]  # fmt: skip
        seq = self.seqs[lane] = self.seqs.get(lane, -1) + 1
        learned = seq % 7 != 3
        noise = self.generator.gamma
        seen = self.outcome(
            offsets, lane=lane, seq=seq, contents=contents,
            frozen_codes=np.packbits(frozen, axis=1), adapted_codes=np.packbits(adapted, axis=1),
            features=self.features(frozen, shift), entropy=noise(4 + 1.6 * shift, 0.3, BATCH),
            keys=order["frozen"], distances=np.take_along_axis(far["frozen"], order["frozen"], 1),
            served_keys=served,
            step=AdaptationStep(
                learned, "" if learned else "entropy", diagnostics={"source_distance": 0.004 * seq}
            ),
            seconds={
                "collate": noise(4, 0.004), "encode_frozen": noise(9, 0.02), "encode_adapted": noise(9, 0.03),
                "search": noise(4, 0.005), "learn": noise(9, 0.045), "send": noise(4, 0.001),
            },
        )  # fmt: skip
        for observer in (self.judged, self.drift, self.expected, self.history):
            observer.observe(seen)
        due, self.late = self.late, list(zip(offsets, labels))
        for offset, label in due:
            at = Coordinates("qshift.queries", 0, offset)
            if self.judged.sampled(at):
                judgement = Judgement(Coordinates("qshift.labels", 0, offset), at, str(label))
                self.judged.judge(judgement)
                self.history.judge(judgement)

    def all(self) -> None:
        for name, shift in PHASES:
            self.history.mark(name)
            command = Command(Coordinates("qshift.control", 0, 0), "freeze", "<b>ann</b>")
            self.history.commanded(Obeyed(command, "0:image", 3, "applied", "", "", False))
            for step in range(PER_PHASE):
                mend = 0.0 if shift < 0.1 else 0.3 * (1 - np.exp(-step / 3))
                self.batch(shift, mend, "0:text" if "text" in name else "0:image")
        for offset, (stage, reason) in enumerate(
            [("image", "9000 x 9000 pixels: at most 40,000,000 are decoded")] * 3
            + [("decode", "<b>not</b> JSON")]
        ):
            record = Record(Coordinates("qshift.queries", 0, 9000 + offset), b"x")
            self.history.refuse(Refusal(record, stage, "Refused", reason))


@pytest.fixture(scope="module")
def browser():
    # Chromium's helpers may write into the profile for a moment after the end.
    with tempfile.TemporaryDirectory(prefix="qshift-chromium-", ignore_cleanup_errors=True) as profile:
        one = Browser(profile)
        yield one
        one.close()


@pytest.fixture
def feed(outcome):
    return Feed(outcome)


@pytest.fixture
def site(feed):
    views = Views(
        feed.history, CollectorRegistry(), gallery_picture=lambda name: drawing(int(name)), attribution="-"
    )
    serving = serve(views, port=0)
    yield serving
    serving.stop()


def test_an_empty_page_says_so(site, browser):
    browser.open(site.url)
    assert "labels" in browser.run("document.getElementById('gain').innerText")
    assert browser.run("document.querySelectorAll('.chart > .empty').length") == 3
    assert browser.run("document.getElementById('expected').textContent") == ""
    browser.picture("empty")
    assert browser.complaints() == []


def test_the_page_shows_the_run(site, feed, browser):
    feed.all()
    shown = feed.history.snapshot()
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 400), ("dark", 820)):
        browser.open(site.url, width, scheme)
        picture = browser.picture(f"page-{scheme}-{width}")
        assert browser.complaints() == []
        # Nothing sticks out to the right, and the background follows the scheme.
        assert browser.run("document.documentElement.scrollWidth") <= width
        corner = sum(picture.convert("RGB").getpixel((3, picture.height // 2))) / 3
        assert corner > 200 if scheme == "light" else corner < 60
    gain = browser.run("document.getElementById('gain-value').textContent")
    assert gain == f"{shown['headline']['gain']:+.1f}".replace("-", "−")
    assert browser.run("document.getElementById('verdict').textContent") == "adaptation helps"
    expected = browser.run("document.getElementById('expected').textContent")
    assert expected.startswith("Expected, without labels, of pictures: frozen ")
    assert f"adapted {shown['expected']['adapted']:.1f} mAP" in expected
    assert browser.run("document.querySelectorAll('#phases tbody tr').length") == len(PHASES)
    assert browser.run("document.querySelectorAll('.query').length") == len(shown["latest"]) == 8
    assert browser.run("document.querySelectorAll('.item.right').length") == sum(
        item["right"] for card in shown["latest"] for name in ("frozen", "served")
        for item in card["answers"][name]
    )  # fmt: skip
    assert browser.run("document.querySelectorAll('#quality .scatterlayer .trace').length") == 6
    assert browser.run("document.querySelectorAll('#latency .bars .point').length") == 6
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("document.getElementById('letters').textContent") == "4"
    # What came in as text stays text.
    assert (
        browser.run("document.querySelectorAll('main blockquote b, #letters-latest b, footer i').length") == 0
    )
    said = browser.run("document.getElementById('orders').textContent")
    assert "0:image · batch 3" in said and "freeze by <b>ann</b>: applied" in said
    lines = "document.getElementById('quality').layout.shapes.filter(s => s.name === 'freeze').length"
    assert browser.run(lines) == len(shown["commands"]) > 0
    assert "<b>not</b> JSON" in browser.run("document.getElementById('letters-latest').textContent")


def test_it_follows_events_and_the_theme_button(site, feed, browser):
    browser.open(site.url)
    browser.until("document.getElementById('status').dataset.state === 'live'")
    feed.batch(0.3, 0.5)
    feed.batch(0.3, 0.5)
    browser.until("document.getElementById('queries').textContent === '128'")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(paper)
    browser.run("document.getElementById('theme').click()")
    assert browser.run(paper) != light
    browser.open(site.url)
    assert browser.run(paper) != light  # remembered
    browser.run("document.getElementById('theme').click()")
    assert browser.run(paper) == light
    site.stop()
    browser.until("document.getElementById('status').dataset.state === 'lost'")


def test_text_has_contrast_in_both_schemes(site, feed, browser):
    feed.all()
    for scheme in ("light", "dark"):
        browser.open(site.url, scheme=scheme)
        assert browser.run(POOR_CONTRAST) == []
    assert browser.run("[...document.images].every(i => i.hasAttribute('alt'))")
    assert browser.run(
        "[...document.querySelectorAll('button, select')].every(b => b.ariaLabel || b.closest('label'))"
    )
