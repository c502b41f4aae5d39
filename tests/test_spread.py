"""Tests of a file run in one process, and those with servers in one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PLAIN = "import pytest\n@pytest.mark.parametrize('i', range(9))\ndef test_a(i): ...\n"
SERVED = PLAIN.replace("def", "@pytest.mark.kafka\ndef")


@pytest.mark.slow
def test_files_and_servers_stay_together(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = kafka: with a broker\n")
    texts = {"one": PLAIN, "two": PLAIN, "three": SERVED, "four": SERVED}
    for name, text in texts.items():
        (tmp_path / "tests" / f"test_{name}.py").write_text(text)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", "2", "tests"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    where = defaultdict[str, set[str]](set)
    for worker, name in re.findall(r"\[(gw\d)\].* PASSED tests/test_(\w+)\.py::", found.stdout):
        where[name].add(worker)
    assert set(where) == set(texts) and all(len(workers) == 1 for workers in where.values()), found.stdout
    assert where["three"] == where["four"]
    assert len(set.union(*where.values())) == 2, "both processes have work"
