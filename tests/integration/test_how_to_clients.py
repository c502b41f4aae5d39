"""Producer and consumer of docs/how-to/stream-queries.md, beside a service with a small base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from how_to import blocks, run
from PIL import Image

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_they_are_answered(
    broker: Any, make_site: Any, clip_world: Any, serving: Any, tmp_path: Path
) -> None:
    """As written, but for the address and the names of the topics: the broker is shared by all tests."""
    site = make_site(broker, clip_world, batch={"linger_seconds": 0.2})
    serving(site)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    for code in blocks("stream-queries", "python"):
        for usual, own in (
            ("127.0.0.1:9092", broker.bootstrap_servers),
            ("qshift.queries", site.kafka.queries),
            ("qshift.answers", site.kafka.answers),
            ("qshift.dead-letters", site.kafka.dead_letters),
        ):
            code = code.replace(f'"{usual}"', f'"{own}"')
        (tmp_path / code.split("\n")[0].removeprefix("# ")).write_text(code)
    run("python producer.py", tmp_path)
    found = dict(line.split(" ", 1) for line in run("python consumer.py", tmp_path).splitlines())
    assert sorted(found) == ["0", "1", "2", "3"]
    assert found["2"].startswith("refused: ") and "empty" in found["2"]
    assert all(found[place].startswith("found: item-") for place in "013")
