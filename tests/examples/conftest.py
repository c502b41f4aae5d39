"""Examples as a reader runs them: each in a process of its own, from a folder that holds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_vectors import write_vectors

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., str]:
    """example("own_loop.py", *arguments): what it prints."""

    def run(name: str, *arguments: object) -> str:
        (tmp_path / "empty").mkdir()
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
            cwd=tmp_path / "empty", env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base and gallery for vectors."""
    return write_vectors(tmp_path_factory.mktemp("vectors"))
