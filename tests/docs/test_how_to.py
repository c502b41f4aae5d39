"""The blocks of the how-to pages run as they are written: here, or where it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from how_to import PAGES, ROOT, blocks, commands, run
from PIL import Image
from toy_vectors import shifted, write_vectors

from core.config import LimitConfig
from qshift.replay.own_message import own_message

NOT_RUN = {
    "qshift bench": "minutes to hours, on data of others; tests/qshift/test_suite_run.py",
    "qshift replay topic": "needs yesterday's topic; tests/integration/test_recording.py",
}
"""How commands begin that are not run here, why, and what runs them."""
RUN = ("qshift replay queries my.jsonl",)
"""Here, and in test_filter_page.py."""
NIGHTLY = (
    "qshift broker up", "qshift fit", "qshift gallery build", "qshift serve", "qshift labels",
    "qshift produce", "curl ",
)  # fmt: skip
"""By tests/nightly/test_how_to_pages.py; the clients also by tests/integration/test_how_to_clients.py."""
TOO_LONG = "two-domains"
"""Trains for minutes; tests/qshift/test_domain_base.py, test_evaluate.py, tests/adapters/test_parallel.py."""


def test_every_block_is_run_or_excused() -> None:
    """Python of own-loop is compared with the examples, which run: tests/examples; filter has a test file."""
    python = {page.stem: len(blocks(page.stem, "python")) for page in PAGES.glob("*.md")}
    none = dict.fromkeys(("watch", "replay", TOO_LONG), 0)
    assert python == {"stream-queries": 2, "own-loop": 3, "filter": 1, **none}
    excused = set()
    for command in (command for page in sorted({*python} - {TOO_LONG}) for command in commands(page)):
        starts = {start for start in NOT_RUN if command.startswith(start)}
        excused |= starts
        assert starts or command.removeprefix("PYTHONPATH=. ").startswith(RUN + NIGHTLY), command
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
