"""verify-log and redrive on real topics: a killed service is clean, and what it refused goes back once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qshift.cli import app
from stream.history.findings import Verdict
from stream.history.verify import verify
from stream.recording import KafkaLog

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
GARBAGE = [(b"{}", [("x-tenant", b"a")]), (b"no query", [])]


def verdict(site: Any) -> Verdict:
    with KafkaLog(site.servers) as log:
        return verify(log, site.kafka)


def test_a_killed_service_has_kept_its_promises_and_letters_go_back_once(
    broker: Any, make_site: Callable[..., Any], vector_world: Path, messages: Any, tmp_path: Path
) -> None:
    site = make_site(
        broker, vector_world, kafka={"partitions": 2}, state={"every_batches": 2},
        batch={"linger_seconds": 0.2, "floor": 4},
    )  # fmt: skip
    worker, sent = site.worker(), 0
    for turn in range(3):
        site.wait(lambda: "serving" in worker.output())  # noqa: B023 (used within the turn)
        site.send([*messages(100, seed=turn)[0], *GARBAGE])
        sent += 100
        if turn < 2:
            worker.kill()
            worker = site.worker()
    site.wait(lambda: len(site.distinct()) == sent and len(site.dead_letters()) >= 6)
    assert verdict(site).status == 0, "while it runs"
    worker.terminate()
    found = verdict(site)
    assert found.status == 0, found.document()
    assert found.queries == sent + 6 and found.answers - found.repeated == sent and found.checkpoints > 3

    run, config = CliRunner(), ["--config", str(site.file)]
    told = run.invoke(app, ["verify-log", *config, "--json", str(tmp_path / "verdict.json")])
    assert told.exit_code == 0 and "broken-chain" in told.output and "clean" in told.output
    assert json.loads((tmp_path / "verdict.json").read_text())["read"]["queries"] == sent + 6

    said = run.invoke(app, ["redrive", *config, "--dry-run"])
    assert said.exit_code == 0 and "6 dead letters would be sent back" in said.output
    assert "6 dead letters sent back" in run.invoke(app, ["redrive", *config, "--rate", "1000"]).output
    again = run.invoke(app, ["redrive", *config])
    assert "0 dead letters sent back" in again.output and "6 left: already sent back" in again.output
    worker = site.worker()
    site.wait(lambda: len(site.dead_letters()) >= 12)
    worker.terminate()
    attempts = sorted({dict(letter.headers)["x-attempt"] for letter in site.dead_letters()})
    assert attempts == [b"1", b"2"]
    assert {letter.value for letter in site.dead_letters()} == {b"{}", b"no query"}
    assert verdict(site).status == 0
