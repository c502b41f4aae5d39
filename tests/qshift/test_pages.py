"""Commands that pages show exist, with every option that stands there."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from qshift.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OLD = {"log.md"}
"""A diary: commands as they were then."""


def commands(text: str) -> list[str]:
    """What begins with qshift: lines of code blocks, and spans in backticks."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    lines = [line.split(" # ")[0] for line in fenced.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    pattern = re.compile(r"^\s*(?:[A-Z_]+=\S+ )*(?:\S*bin/)?qshift (?=[a-z-])(.*)")
    return [found[1] for line in (*lines, *spans) if (found := pattern.match(line))]


@cache
def tree() -> Any:
    """The command line with all its commands, which are made anew at every call of typer's."""
    return typer.main.get_command(app)


def mistake(command: str) -> str:
    """What is wrong with a command; "" where nothing is."""
    words = shlex.split(command)
    here = tree()
    while words and (inner := getattr(here, "commands", None)) is not None:
        name = words.pop(0)
        if name not in inner:
            return "" if name.startswith("-") and name in ("--help", "-h") else f"no command {name}"
        here = inner[name]
    if getattr(here, "commands", None) is not None:
        return "a command is missing"
    known = {flag for parameter in here.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    unknown = flags - known - {"--help", "-h"}
    return f"no option {', '.join(sorted(unknown))}" if unknown else ""


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OLD], ids=lambda page: page.name)
def test_commands_on_pages_exist(page: Path) -> None:
    wrong = {command: said for command in commands(page.read_text()) if (said := mistake(command))}
    allowed = {"replay", "gallery", "broker", "broker up|down|status|logs"}  # spoken of as a whole
    assert {command: said for command, said in wrong.items() if command not in allowed} == {}


def test_mistakes_are_found() -> None:
    shown = commands(
        "`qshift bench core --quick`\n```sh\nA=b qshift replay --suite core  # old\nqshift no\n```\n"
    )
    assert [mistake(command) for command in shown] == ["no command --suite", "no command no", ""]
