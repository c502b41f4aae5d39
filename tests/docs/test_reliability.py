"""Each test that the page of promises names is there: one that was renamed leaves it without its test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_promises_have_their_tests() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z0-9]+_){2,}[a-z0-9]+…?)`", page)) - {"per_tenant_lanes"}
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests = {name for text in files for name in re.findall(r"def test_(\w+)", text)}
    lost = {name for name in named if not any(_fits(test, name) for test in tests)}
    assert len(named) > 40 and lost == set()


def _fits(test: str, name: str) -> bool:
    return test.startswith(name[:-1]) if name.endswith("…") else test == name
