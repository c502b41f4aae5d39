"""The example of a client that knows nothing of qshift, beside a service with a small base."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "kafka_client.py"
TEXTS = ("a red seven", "a green two", " ", "a blue nine")


def test_it_needs_nothing_of_qshift_and_twelve_lines() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert named == {"json", "sys", "kafka"}
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    assert lengths["ask"] <= 12 and lengths["answers"] <= 12


@pytest.mark.kafka
@pytest.mark.slow
def test_it_is_answered(broker: Any, make_site: Any, clip_world: Any, serving: Any, tmp_path: Path) -> None:
    """As written, but for the names of the topics: the broker is shared by all tests."""
    site = make_site(broker, clip_world, batch={"linger_seconds": 0.2})
    serving(site)
    text = EXAMPLE.read_text()
    for usual, own in (
        ("qshift.queries", site.kafka.queries),
        ("qshift.answers", site.kafka.answers),
        ("qshift.dead-letters", site.kafka.dead_letters),
    ):
        assert f'"{usual}"' in text
        text = text.replace(f'"{usual}"', f'"{own}"')
    (tmp_path / "kafka_client.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "kafka_client.py", broker.bootstrap_servers, *TEXTS],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(said) == set(TEXTS)
    assert "empty" in said.pop(" ")
    answers = {tuple(name for name, _ in answer.results[:3]) for answer in site.decoded().values()}
    assert {tuple(found.split(", ")) for found in said.values()} == answers
