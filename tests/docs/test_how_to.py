"""The blocks of the how-to pages run as they are written; only ports are free ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from toy_vectors import shifted, write_vectors

from core.config import Config, LimitConfig
from qshift.replay.own_message import own_message

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "how-to"
NOT_RUN = {
    "qshift bench": "minutes to hours, on data of others; tests/qshift/test_suite_run.py",
    "qshift produce": "half a minute of shifted pictures; tests/qshift/test_produce.py",
    "qshift replay topic": "needs yesterday's topic; tests/integration/test_recording.py",
}
"""How commands begin that are not run here, why, and what runs them."""
RUN = (
    "qshift broker up", "qshift fit", "qshift gallery build", "qshift serve", "qshift labels",
    "qshift replay queries my.jsonl", "curl ",
)  # fmt: skip
TOO_LONG = "two-domains"
"""Trains for minutes; tests/qshift/test_domain_base.py, test_evaluate.py, tests/adapters/test_parallel.py."""
PICTURES = 130
COLOURS = {"red": (200, 30, 30), "green": (20, 140, 60), "blue": (30, 60, 200), "black": (20, 20, 20)}


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page in one language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE
    )


def commands(page: str) -> list[str]:
    """Lines of its sh blocks."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def environment() -> dict[str, str]:
    """That of a reader who has activated `.venv`: commands and modules are those of this checkout."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": places, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def run(command: str, folder: Path, seconds: float = 600) -> str:
    """What it prints. A PYTHONPATH of its own is put before this checkout's."""
    command = command.replace("PYTHONPATH=. ", f"PYTHONPATH=.:{ROOT} ")
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_is_run_or_excused() -> None:
    """Python of own-loop is compared with the examples, which run: tests/examples."""
    python = {page.stem: len(blocks(page.stem, "python")) for page in PAGES.glob("*.md")}
    assert python == {"stream-queries": 2, "own-loop": 3, "watch": 0, "replay": 0, TOO_LONG: 0}
    excused = set()
    for command in (command for page in sorted({*python} - {TOO_LONG}) for command in commands(page)):
        starts = {start for start in NOT_RUN if command.startswith(start)}
        excused |= starts
        assert starts or command.removeprefix("PYTHONPATH=. ").startswith(RUN), command
    assert excused == set(NOT_RUN)


def test_clients_are_twelve_lines_of_plain_kafka_python() -> None:
    for code in blocks("stream-queries", "python"):
        lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 12
        assert "qshift" not in "".join(line for line in lines if "import" in line)


def test_kinds_of_line_are_those_that_replay_reads(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "clip").mkdir()
    for name in ("photos/17.jpg", "clip/1.png", "clip/2.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    lines = [json.loads(line) for block in blocks("replay", "json") for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        own_message(line, "q", tmp_path, LimitConfig())


# -- replay ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and a gallery of vectors, queries, and the example of a method."""
    folder = tmp_path_factory.mktemp("asked")
    write_vectors(folder / "qshift-data")
    rows, chosen = shifted(128)
    lines = [json.dumps({"vector": row.tolist(), "label": f"item-{i}"}) for row, i in zip(rows, chosen)]
    (folder / "my.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(ROOT / "examples" / "own_method.py", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["own queries", "own method"])
def test_own_queries_are_replayed(asked: Path, number: int) -> None:
    found = [command for command in commands("replay") if "qshift replay queries" in command]
    said = run(found[number], asked)
    assert "frozen" in said and ("own_method:RunningMean" in said) == (number == 1)
    if number == 0:
        rows = json.loads((asked / "rows.json").read_text())
        assert rows and (asked / "rows.timings.json").exists()


# -- stream queries, and watch --------------------------------------------------------------------------


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
    (settings,) = blocks("stream-queries", "toml")
    Config.model_validate(tomllib.loads(settings))
    port = f"\n[http]\nport = {reader.ports['8765']}\n"
    (reader.folder / "qshift.toml").write_text(reader.own(settings) + port)
    reader.serve()
    return reader


@pytest.mark.kafka
@pytest.mark.slow
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


@pytest.mark.kafka
@pytest.mark.slow
def test_labels_are_sent(served: Reader) -> None:
    assert '`{"offset": 0, "label": "seven-red.png"}`' in (PAGES / "stream-queries.md").read_text()
    name = next((served.folder / "my-pictures").glob("*.png")).name
    (served.folder / "labels.jsonl").write_text(json.dumps({"offset": 0, "label": name}) + "\n")
    assert "1 labels sent" in served.run("qshift labels")


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_state_is_read_by_hand(served: Reader) -> None:
    ready, state = (served.run(command, "watch") for command in commands("watch"))
    assert all(json.loads(ready).values())
    assert "lanes" in json.loads(state)
