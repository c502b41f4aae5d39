"""Thousands of tenants over few live lanes: the answers and states of a run that keeps all of them."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from stream.directory import DirectoryStore
from stream.memory_store import MemoryStore
from tests.nightly.counts import count
from tests.stream import conftest, test_resting

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

make_world = conftest.make_world
QUERIES = 6
"""Of each tenant, on average."""


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_many_tenants_over_few_lanes(make_world: Any, tmp_path: Path) -> None:
    tenants = count("tenants")
    found: dict[int, Any] = {}
    for live in (tenants // 100, 0):  # the bounded one first: a peak does not go down
        world = make_world(batch=test_resting.batch(live, 4), state={"every_batches": 200})
        events = test_resting.of_tenants(world.queries(QUERIES * tenants), tenants)
        began, before = time.process_time(), peak_mib()
        store = DirectoryStore(tmp_path / "state") if live else MemoryStore()
        report, sink, _ = test_resting.go(world, events, store, step=256)
        seconds = time.process_time() - began
        print(
            f"{len(report.lanes)} lanes, {live} live: {report.batches} batches, {seconds:.0f} s CPU, ", end=""
        )
        print(f"{1000 * seconds / report.batches:.2f} ms a batch, peak +{peak_mib() - before:.0f} MiB")
        found[live] = test_resting.said(sink), report.lanes
        store.close()
    bounded, plain = found.values()
    assert bounded == plain
