"""The real engine in a simulated cluster: crashes at every call, fenced sleepers, torn and late writes."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from core.errors import ArtifactError
from stream.journal import Journal
from stream.session import Session
from tests.nightly.counts import count
from tests.toys.simulation import simulated

KINDS = ("crash", "fail", "late", "fenced", "stop", "compact")


def play(make_world: Any, seeds: range, **more: int) -> None:
    """A failing seed is named, and fails alone too: `simulated(make_world, seed, **more)`."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        try:
            seen.update(simulated(make_world, seed, **more).seen)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    print(f"{len(seeds)} histories, 0 violations: {dict(seen)}")
    assert all(seen[kind] > len(seeds) / 10 for kind in KINDS), seen


def test_no_history_breaks_a_promise(make_world: Any) -> None:
    play(make_world, range(16))


def test_no_history_breaks_a_promise_where_lanes_are_put_away(make_world: Any) -> None:
    """Who dies, sleeps or fails does so while a lane is written, fetched and erased, too."""
    play(make_world, range(500, 508), tenants=9, live=2)


@pytest.mark.parametrize("broken", ["obeys no journal", "restores no state"])
def test_an_engine_that_breaks_its_promises_is_found(
    make_world: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "obeys no journal":
        monkeypatch.setattr(Journal, "entries", lambda self, partition, since: [])
    else:
        monkeypatch.setattr(Session, "restore", lambda self, tensors, meta: None)
    with pytest.raises((AssertionError, ArtifactError)):
        for seed in range(30):
            simulated(make_world, seed)


@pytest.mark.nightly
@pytest.mark.slow
def test_ten_thousand_histories(make_world: Any) -> None:
    """R1. `QSHIFT_FIRST_SEED` goes on elsewhere."""
    first = int(os.environ.get("QSHIFT_FIRST_SEED", "1000"))
    play(make_world, range(first, first + int(os.environ.get("QSHIFT_SEEDS", str(count("histories"))))))


def test_a_seed_is_one_history(make_world: Any) -> None:
    first, second = (simulated(make_world, 7) for _ in range(2))
    assert first.topics == second.topics and first.calls == second.calls
