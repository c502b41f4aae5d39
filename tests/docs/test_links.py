"""Links of pages lead somewhere, and so do mentions of pages anywhere in the repository."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
MENTION = re.compile(r"(?<![\w/.-])docs/[\w/-]+(?:\.(?:md|png|svg|csv|py|toml)\b)?")
WRITTEN = {
    "qshift/benchmarks/suite/pair_base.py": {"docs/data.md"},
    "qshift/benchmarks/suite/text_base.py": {"docs/data.md"},
}
"""Written into the manifests of bases: another text would be another base, and void every state of it."""
HOW_TO = ("stream-queries", "watch", "replay", "own-loop")
TEXTS = {".md", ".py", ".toml", ".yml", ".yaml", ".js", ".html", ".css", ".json", ".cfg", ".txt", ""}


def files() -> Iterator[Path]:
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [
            one
            for one in inner
            if one == ".ci" or (one[0] != "." and one not in ("qshift-data", "__pycache__"))
        ]
        yield from (Path(folder, name) for name in names if Path(name).suffix in TEXTS)


DIARIES = ("log.md", "CHANGELOG.md")
"""Names in them are those of their day."""
OF_READERS = {"producer.py", "consumer.py"}
"""What a reader writes."""
MODULES = {path.name for path in files() if path.suffix == ".py"}
PACKAGES = {path.name for path in ROOT.iterdir() if path.is_dir()}
PAGES = sorted(path for path in files() if path.suffix == ".md")


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(name if not seen[name] else f"{name}-{seen[name]}")
        seen[name] += 1
    return found


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    wrong = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_broken_links_are_found() -> None:
    page = ROOT / "docs" / "index.md"
    text = (
        "[a](start.md) [b](gone.md) [c](start.md#what-you-see) [d](start.md#gone) [e](https://x.y) [f](#no)"
    )
    assert broken(page, text) == ["gone.md", "start.md#gone", "#no"]


def test_mentions_of_pages_lead_somewhere() -> None:
    wrong = {}
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name == "tests/docs/test_links.py":
            continue
        text = path.read_text(errors="replace").replace("\\.", ".")  # in patterns of tests
        named = set(MENTION.findall(text)) - WRITTEN.get(name, set())
        if gone := sorted(one for one in named if not (ROOT / one).exists()):
            wrong[name] = gone
    assert wrong == {}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in DIARIES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_code_named_on_pages_exists(page: Path) -> None:
    """Paths from a folder of ours on, and names of modules alone in backticks."""
    text = page.read_text()
    paths = re.findall(r"(?<![\w/.])((?:[a-z_]+/)+\w+\.(?:py|toml|yml|json))\b", text)
    assert [name for name in paths if name.split("/")[0] in PACKAGES and not (ROOT / name).exists()] == []
    names = set(re.findall(r"`(\w+\.py)`", text)) - OF_READERS
    assert names <= MODULES


def test_seams_are_the_protocols() -> None:
    """The table of docs/architecture.md has a row for each protocol, and for no other."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    seams = text[text.index("## The seams") :].partition("\n\n")[0].splitlines()[3:]
    shown = {name for row in seams for name in row.split("|")[1].strip().split(", ")}
    protocols = re.findall(
        r"^class (\w+)\((?:\w+, )?Protocol", (ROOT / "core" / "protocols.py").read_text(), re.MULTILINE
    )
    assert shown == set(protocols)


def test_exceptions_are_still_needed() -> None:
    for name, named in WRITTEN.items():
        assert named <= set(MENTION.findall((ROOT / name).read_text()))


def test_every_page_is_on_a_shelf() -> None:
    """From docs/index.md, link by link."""
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = (link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text())))
            targets = ((page.parent / link).resolve() for link in links if link.endswith(".md"))
            waiting += [target for target in targets if target.is_relative_to(ROOT / "docs")]
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} == reached


def test_first_page_is_short_and_opens_the_doors() -> None:
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) < 80
    shown = "\n".join(lines[:15])
    assert "![" in shown and "make demo" in shown
    for door in ("index", "start", "results", *(f"how-to/{name}" for name in HOW_TO)):
        assert f"(docs/{door}.md)" in text
