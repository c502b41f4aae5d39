"""Pages stream-queries and watch, from broker to state, as they are written; only ports are free ones."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from how_to import PAGES, blocks, commands, environment, run
from PIL import Image

from core.config import Config

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]
PICTURES = 130
COLOURS = {"red": (200, 30, 30), "green": (20, 140, 60), "blue": (30, 60, 200), "black": (20, 20, 20)}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Reader:
    """Someone who follows the pages in one folder. Ports are others: a reader's may be taken here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"9092": str(free_port()), "8765": str(free_port())}
        self.serving: subprocess.Popen[str] | None = None

    def own(self, text: str) -> str:
        for usual, free in self.ports.items():
            text = text.replace(usual, free)
        return text

    def run(self, start: str, page: str = "stream-queries") -> str:
        """The one command of a page that begins so."""
        (found,) = (command for command in commands(page) if command.startswith(start))
        return run(self.own(found), self.folder)

    def serve(self) -> None:
        (found,) = (command for command in commands("stream-queries") if command.startswith("qshift serve"))
        with (self.folder / "serve.log").open("w") as log:
            self.serving = subprocess.Popen(
                found.split(), cwd=self.folder, env=environment(), stdout=log, stderr=log, text=True
            )
        deadline = time.monotonic() + 300
        while not self.ready():
            assert self.serving.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.ports['8765']}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    def end(self) -> None:
        if self.serving is not None:
            self.serving.send_signal(signal.SIGTERM)
            self.serving.wait(60)
        run("qshift broker down", self.folder)


def draw(folder: Path) -> None:
    """Bars on two edges: every picture another one, its name its caption."""
    folder.mkdir()
    for number in range(PICTURES):
        pixels = np.full((48, 48, 3), 255, np.uint8)
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        high, wide = 4 + number // 12 * 4, 4 + number % 12 * 3
        pixels[2:high, 2:12] = colour
        pixels[36:44, 2 : 2 + wide] = colour
        Image.fromarray(pixels).save(folder / f"{name} bar {high} high {wide} wide {number}.png")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    one = Reader(tmp_path_factory.mktemp("reader"))
    draw(one.folder / "my-pictures")
    try:
        yield one
    finally:
        one.end()


@pytest.fixture(scope="module")
def served(reader: Reader) -> Reader:
    """Steps 1 to 4 of the page."""
    assert f"127.0.0.1:{reader.ports['9092']}" in reader.run("qshift broker up")
    reader.run("qshift fit")
    assert f"{PICTURES} items" in reader.run("qshift gallery build")
    reader.run("python -c")
    (settings,) = blocks("stream-queries", "toml")
    Config.model_validate(tomllib.loads(settings))
    port = f"\n[http]\nport = {reader.ports['8765']}\n"
    (reader.folder / "qshift.toml").write_text(reader.own(settings) + port)
    reader.serve()
    return reader


def test_clients_are_answered(served: Reader) -> None:
    shutil.copy(next((served.folder / "my-pictures").glob("*.png")), served.folder / "photo.png")
    for code in blocks("stream-queries", "python"):
        name = code.split("\n")[0].removeprefix("# ")
        (served.folder / name).write_text(served.own(code))
    run("python producer.py", served.folder)
    said = run("python consumer.py", served.folder).splitlines()
    found = dict(line.split(" ", 1) for line in said)
    assert sorted(found) == ["0", "1", "2", "3"]
    assert found["2"].startswith("refused: ") and "empty" in found["2"]
    photo = next((served.folder / "my-pictures").glob("*.png"))
    assert f"found: {photo.name}" in found["3"]  # it finds itself first


def test_labels_are_sent(served: Reader) -> None:
    assert '`{"offset": 0, "label": "seven-red.png"}`' in (PAGES / "stream-queries.md").read_text()
    name = next((served.folder / "my-pictures").glob("*.png")).name
    (served.folder / "labels.jsonl").write_text(json.dumps({"offset": 0, "label": name}) + "\n")
    assert "1 label sent" in served.run("qshift labels")


def test_shifted_pictures_are_answered(served: Reader) -> None:
    assert "128" in served.run("qshift produce")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_state_is_read_by_hand(served: Reader) -> None:
    ready, state = (served.run(command, "watch") for command in commands("watch"))
    assert all(json.loads(ready).values())
    assert "lanes" in json.loads(state)
