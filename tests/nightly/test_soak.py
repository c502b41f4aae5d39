"""R13: a service that works for an hour holds what it held after its first minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from resident import anonymous_mib, descriptors, threads
from scipy import stats
from traffic import Traffic

from tests.nightly.counts import count, say

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

MIB_PER_HOUR = 1.0
WHOLE_MINUTES = 60
"""A slope is not known to a MiB in an hour before; a shorter run may grow by `SHORT_MIB` altogether."""
SHORT_MIB = 3.0
WARM_QUERIES, TTL_QUERIES = 12_000, 2_000
"""All that is bounded is full by then: 720 points of the page are the most, of 16 queries each."""
BURST, EVERY_SECONDS, LOOK_SECONDS = 20, 2.0, 15.0
BLOCKS = 20
"""Samples that follow each other depend on each other; means of stretches hardly do."""


def test_an_hour_leaves_memory_where_it_was(broker: Any, uneven: Any, messages: Any) -> None:
    minutes = count("soak_minutes")
    site = uneven(
        broker, http={"enabled": True, "port": 0}, labels={"key": "of the tests", "ttl_queries": TTL_QUERIES}
    )
    traffic, worker = Traffic(site, messages, labels=True), site.worker()
    site.wait(lambda: "serving" in worker.output(), 300)
    page = worker.output().partition("live page ")[2].split()[0]
    for _ in range(WARM_QUERIES // 1_000):
        traffic.send(1_000)
        traffic.settle()
    family = [worker.pid, *children(worker.pid)]
    say(f"warm after {len(traffic.sent)} queries: process and children {family}")
    found, began, looked = list[list[float]](), time.monotonic(), float("-inf")
    while (gone := time.monotonic() - began) < 60 * minutes:
        assert worker.code is None, worker.output()
        traffic.send(BURST, bursts=1)
        traffic.answered()
        if gone - looked >= LOOK_SECONDS:
            looked = gone
            urlopen(f"{page}/metrics", timeout=30).close()
            if found:
                at, files, working, *memory = found[-1]
                say(f"{60 * at:.1f} min: {files:.0f} descriptors, {working:.0f} threads, {memory} MiB")
        found.append([gone / 3600, descriptors(worker.pid), threads(worker.pid), *map(anonymous_mib, family)])
        time.sleep(max(0.0, EVERY_SECONDS - (time.monotonic() - began - gone)))
    hours, opened, running, *held_mib = np.array(found).T
    half = len(hours) // 2
    say(f"{minutes} min, {len(traffic.sent)} queries with labels: ")
    for what, held in (("descriptors", opened), ("threads", running)):
        say(f"{what} {held.min():.0f} to {held.max():.0f}, at the end {held[-1]:.0f}")
        assert held[half:].max() <= held[:half].max(), f"more {what} in the second half"
    slopes = [slope(hours, held) for held in held_mib]
    for process, held, (found_slope, error) in zip(family, held_mib, slopes, strict=True):
        blocks = [f"{part.mean():.2f}" for part in np.array_split(held, BLOCKS)]
        say(f"process {process}: {found_slope:+.2f} +- {error:.2f} MiB an hour (95 %): {' '.join(blocks)}")
    traffic.settle()
    worker.terminate(60.0)
    traffic.figures(f"{minutes} minutes", states=False)
    for held, (found_slope, error) in zip(held_mib, slopes, strict=True):
        if minutes < WHOLE_MINUTES:
            assert held[-1] - held[0] <= SHORT_MIB
        else:
            assert found_slope + error < MIB_PER_HOUR


def children(process: int) -> list[int]:
    """Of all its threads; here the one that shows the page."""
    found = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return sorted(map(int, " ".join(found).split()))


def slope(hours: Any, held: Any) -> tuple[float, float]:
    """Of a line through means of stretches, in MiB an hour, and half its 95 % interval."""
    at, mib = (np.array([part.mean() for part in np.array_split(one, BLOCKS)]) for one in (hours, held))
    line = stats.linregress(at, mib)
    return float(line.slope), float(line.stderr * stats.t.ppf(0.975, BLOCKS - 2))


@pytest.mark.parametrize("growth", [0.0, 0.5, 20.0])
def test_a_slope_is_found_in_noise(growth: float) -> None:
    hours, rng = np.linspace(0, 1, 1800), np.random.default_rng(0)
    found, error = slope(hours, 200 + growth * hours + rng.normal(0, 0.5, 1800))
    assert abs(found - growth) < 2 * error < 0.5
