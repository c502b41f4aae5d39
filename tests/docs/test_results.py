"""Figures of docs/results.md and docs/start.md are those of the tables in docs/lab, computed anew."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PEERS = (
    "centring", "training_free", "refinement", "tent", "eata", "sar", "read", "deyo", "shot", "tcr-paper",
)  # fmt: skip
JOINED = "emoji and pictures, domain shifts"
"""The average over two others."""
ROUNDED = 0.05 + 1e-9
Row = dict[str, str]


def read(name: str) -> list[Row]:
    with (DOCS / "lab" / "tables" / name).open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert rows and all(None not in row and None not in row.values() for row in rows), name
    return rows


def table(page: str, after: str) -> list[list[str]]:
    """Rows of the first table behind a heading."""
    lines = page[page.index(after) :].splitlines()
    end = next((at for at, line in enumerate(lines) if at > 2 and line.startswith("## ")), len(lines))
    found = [line for line in lines[:end] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2:]]


AVERAGES, STREAMS = read("core-averages.csv"), read("core-streams.csv")
SHOWN = table((DOCS / "results.md").read_text(), "## Eighteen methods")


def members(average: str) -> list[Row]:
    joined = ("emoji, domain shifts", "pictures across domains") if average == JOINED else (average,)
    return [row for row in STREAMS if row["average"] in joined or average == "every stream"]


def of(average: str, method: str) -> Row:
    (found,) = (row for row in AVERAGES if (row["average"], row["method"]) == (average, method))
    return found


@pytest.mark.parametrize("row", AVERAGES, ids=lambda row: f"{row['average']} {row['method']}")
def test_averages_are_those_of_the_streams(row: Row) -> None:
    """Streams are rounded, and their mean is rounded again."""
    gains = {f"{one['task']} {one['stream']}": float(one[row["method"]]) for one in members(row["average"])}
    assert min(gains.values()) == float(row["worst_gain"])
    if row["average"] == "every stream":
        assert gains[row["worst_stream"]] == min(gains.values())
    else:
        assert len(gains) == int(row["streams"])
        assert abs(sum(gains.values()) / len(gains) - float(row["gain"])) <= 2 * ROUNDED
        assert float(row["low"]) <= float(row["gain"]) <= float(row["high"])


def test_every_average_is_shown_once() -> None:
    named = [row[0].rsplit(" (", 1)[0] for row in SHOWN]
    assert len(set(named)) == len(named)
    assert set(named) == {row["average"] for row in STREAMS}


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown[0])
def test_the_page_shows_them(shown: list[str]) -> None:
    name, frozen, default, peer, rest, aligned, worst = shown
    average, streams = name.removesuffix(")").rsplit(" (", 1)
    rows, ours = members(average), of(average, "default")
    assert streams == ours["streams"]
    assert abs(sum(float(row["frozen_map"]) for row in rows) / len(rows) - float(frozen)) <= ROUNDED
    assert default == f"**{ours['gain']}** [{ours['low']}, {ours['high']}]"
    gain, method = peer.split()
    assert method in PEERS and gain == of(average, method)["gain"]
    assert float(gain) == max(float(of(average, one)["gain"]) for one in PEERS)
    assert (rest, aligned) == (of(average, "rest")["gain"], of(average, "aligned")["gain"])
    assert worst == ours["worst_gain"]


def test_streams_are_101_and_methods_18() -> None:
    assert len({(row["task"], row["stream"]) for row in STREAMS}) == len(STREAMS) == 101
    assert len({row["method"] for row in AVERAGES}) == 18


def test_the_demo_is_shown_as_it_was() -> None:
    shown = table((DOCS / "start.md").read_text(), "## What came out")
    expected = [
        [
            row["phase"], row["labels"], row["frozen_map"], row["adapted_map"], row["served_map"],
            f"**{row['served_minus_frozen']}** [{row['low']}, {row['high']}]",
        ]
        for row in read("demo.csv")
    ]  # fmt: skip
    assert shown == expected


@pytest.mark.parametrize("path", sorted((DOCS / "lab" / "tables").glob("*.csv")), ids=lambda path: path.name)
def test_every_table_reads_and_is_listed(path: Path) -> None:
    assert read(path.name)
    page = (DOCS / "lab" / "results.md").read_text()
    line = next(line for line in page.splitlines() if f"(tables/{path.name})" in line)
    assert re.search(r"\| [0-9a-f]{7}\b[^|]*\|$", line), "no commit beside it"
