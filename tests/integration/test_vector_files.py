"""Vectors of a file through a live service: `qshift fit vectors`, `gallery build`, `serve`, `produce`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from how_to import run
from toy_embeddings import World, write

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
ITEMS = 300


def test_rows_of_a_file_are_answered(broker: Any, make_site: Any, serving: Any, tmp_path: Path) -> None:
    world = World(0, width=32, clusters=20)
    rows, labels = world.drawn(ITEMS, 0)
    write(tmp_path / "items.npy", rows, labels)
    (tmp_path / "items.ids.txt").write_text("".join(f"item {row}\n" for row in range(ITEMS)))
    run("qshift fit vectors items.npy --base base --bits 64", tmp_path)
    run("qshift gallery build items.npy --base base --out gallery", tmp_path)
    site = make_site(broker, tmp_path, batch={"linger_seconds": 0.2}, labels={"rate": 1.0})
    service = serving(site)

    asked = np.load(tmp_path / "items.npy")[:40]
    asked[5] = np.nan
    write(tmp_path / "asked.npy", asked, labels[:40])
    said = run(f"qshift produce asked.npy --config {site.file}", tmp_path)
    assert "row 5 is refused" in said and "39 of 39 queries answered" in said
    found = site.decoded()
    assert {answer.lane for answer in found.values()} == {"0:vector"}
    names = [found[at].results[0][0] for at in sorted(found, key=lambda at: at.offset)]
    assert names == [f"item {row}" for row in range(40) if row != 5]  # each finds itself
    assert not site.dead_letters()
    site.wait(lambda: service.observers.judged.summary().n == 39)  # and its label came with it
    assert service.observers.judged.summary().r1_served == 100.0
