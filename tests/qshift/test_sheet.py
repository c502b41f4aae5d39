"""Tables never cut a value, whatever the width; where room is short, the least important columns go."""

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from toy_world import small_world

from qshift.replay.own_run import OwnRow, own_table
from qshift.replay.table import PhaseRow, render
from qshift.terminal.sheet import WIDE, Head, Sheet, console

SCORES = (51.4, 72.1, 72.7, -21.3, -116.2, -126.8, 45.2, 67.0)
PHASES = [
    PhaseRow("mixed users", "image", 640, 197, *SCORES, 1530.0, 2890.4, 123.4),
    PhaseRow("clean", "image", 12800, 3178, *[100.0] * 3, 0.0, 0.0, 0.0, 100.0, 100.0, 15.0, 28.4, 45.5),
]
OWN = [
    OwnRow(
        "aligned-two-pass+fused", 12800, 3, 12345, 100.0, 100.0, -100.0, -100.1, -99.9, 2, 2, 100.0, 99.9,
        88.8, 0.25, 12799, 15.0,
    ),
    OwnRow("frozen", 12800, 3, 12345, 100.0, 100.0, 0.0, 0.0, 0.0, 1, 0, 100.0, 100.0, 100.0),
]  # fmt: skip


def printed(sheet: Sheet, width: int) -> str:
    out = io.StringIO()
    sheet.print(Console(file=out, width=width, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 160, WIDE])
@pytest.mark.parametrize(
    "sheet", [render(PHASES, "live"), render(PHASES, "replayed", False), own_table(OWN, "own")]
)
def test_nothing_is_cut(sheet: Sheet, width: int) -> None:
    text = printed(sheet, width)
    assert "…" not in text
    plain = " ".join(text.split())
    kept = [head for head in sheet.heads if not head.drop]
    for place, head in enumerate(sheet.heads):
        for row in sheet.rows:
            # The name of a row may go over lines; a number stands whole, or its column is said to be missing.
            missing = head.drop and " ".join(head.text.split()) in plain.partition("no room for")[2]
            assert str(row[place]) in text or missing or head.left
    assert len(kept) < len(sheet.heads)
    if width == WIDE:
        assert "no room for" not in plain
        assert all(str(value) in text for row in sheet.rows for value in row)


def test_own_queries_show_weight_and_repairs_where_there_are_any() -> None:
    both, plain = printed(own_table(OWN, "own"), WIDE), printed(own_table(OWN[1:], "own"), WIDE)
    cells = (
        "aligned-two-pass+fused 12800 12345 100.0 88.8 100.0 -100.0 [-100.1, -99.9] 0.25 12799 100.0, 99.9"
    )
    assert cells in " ".join(both.split())
    assert "weight" in both and "repaired" in both and "n/a" in both, "frozen has no weight"
    assert "weight" not in plain and "repaired" not in plain and "n/a" not in plain
    unlabelled = printed(own_table([replace(row, labels=0) for row in OWN], "own"), WIDE)
    assert "weight" in unlabelled and "mAP" not in unlabelled


def test_columns_go_by_importance() -> None:
    sheet = Sheet("t", [Head("name", left=True), Head("first to go", 2), Head("second", 1), Head("stays")])
    sheet.add("a", "1", "2", "3")
    assert [str(c.header) for c in sheet.table(80).columns] == ["name", "first to go", "second", "stays"]
    assert [str(c.header) for c in sheet.table(24).columns] == ["name", "second", "stays"]
    assert [str(c.header) for c in sheet.table(16).columns] == ["name", "stays"]
    assert "no room for: first to go, second" in " ".join(str(sheet.table(16).caption).split())


SCRIPT = "from qshift.terminal.sheet import console; print(console().width, console(stderr=True).width)"


def test_a_pipe_has_no_width_and_a_terminal_its_own() -> None:
    assert console().width == WIDE  # tests run without a terminal
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    piped = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert piped.stdout.split() == [str(WIDE), str(WIDE)], piped.stderr
    leader, follower = pty.openpty()
    environment |= {"COLUMNS": "80", "TERM": "xterm"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=follower, stderr=follower, env=environment, check=True
    )
    os.close(follower)
    assert os.read(leader, 100).split() == [b"80", b"80"]
    os.close(leader)


DEMO = f"""
from qshift.commands.options import CONSOLE
from qshift.replay.table import PhaseRow, render
render({PHASES!r}, "qshift demo").print(CONSOLE)
"""
"""What `qshift demo` prints its table with."""


def piped(*arguments: str) -> str:
    """Standard output of a process as `make demo | cat` gives it on a narrow terminal."""
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demos_table_comes_whole_through_a_pipe() -> None:
    text = piped("-c", DEMO)
    assert "…" not in text and "no room for" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for row in render(PHASES, "demo").rows:
        assert " ".join(str(value) for value in row) in lines, "a row stands on one line, every value whole"


@pytest.mark.slow
def test_a_replay_comes_whole_through_a_pipe(tmp_path: Path) -> None:
    small_world(tmp_path)
    rows, arguments = tmp_path / "rows.json", [f"--{part}={tmp_path / part}" for part in ("base", "gallery")]
    method = "--method=tcr+fused,default"
    text = piped(
        "-m", "qshift.cli", "replay", "queries", str(tmp_path / "queries.jsonl"), *arguments, method,
        f"--json={rows}",
    )  # fmt: skip
    assert "…" not in text and "no room for" not in text
    found = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    written = json.loads(rows.read_text())
    assert [row["method"] for row in written] == ["frozen", "tcr+fused", "default"]
    for row in written:
        figures = [f"{row[name]:.1f}" for name in ("map", "map_adapted", "r1")]
        expected = [row["method"], str(row["queries"]), str(row["labels"]), *figures]
        assert found[row["method"]][: len(expected)] == expected
