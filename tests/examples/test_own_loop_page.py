"""docs/how-to/own-loop.md shows the code of the examples, and leads to them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent, indent

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "own-loop.md").read_text()


def test_its_code_is_that_of_the_examples() -> None:
    sections = PAGE.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [
        "Own loop", "Labels", "Own method", "Kafka client",
    ]  # fmt: skip
    for section in sections:
        (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
        (name,) = re.findall(r"Whole: \[examples/(\w+\.py)\]\(\.\./\.\./examples/\1\)", section)
        text = (ROOT / "examples" / name).read_text()
        assert code == dedent(code) and len(code.splitlines()) > 8
        assert code in text or indent(code, "    ") in text, f"{name} has changed: show it anew"
        assert len(section.splitlines()) < 60


def test_the_first_page_leads_to_it() -> None:
    assert "(docs/how-to/own-loop.md)" in (ROOT / "README.md").read_text()
