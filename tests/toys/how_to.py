"""Blocks of the how-to pages, and how a reader runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "how-to"


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page in one language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE
    )


def commands(page: str) -> list[str]:
    """Lines of its sh blocks."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def page_rights() -> list[tuple[str, str, str, str]]:
    """(user, right, kind, name) of the table under Rights in operations."""
    table = (
        (ROOT / "docs/reference/operations.md")
        .read_text()
        .partition("\n## Rights\n")[2]
        .partition("\n## ")[0]
    )
    rows = re.findall(r"^\| (\w+)[^|]*\| ([\w, ]+) \| (topic|group) `([\w.-]+)` \|$", table, re.MULTILINE)
    return [(user, right, kind, name) for user, rights, kind, name in rows for right in rights.split(", ")]


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
