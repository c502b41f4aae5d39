"""The real engine in a simulated cluster: crashes at every call, fenced sleepers, torn and late writes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from core.errors import QshiftError
from index.versions import GalleryVersions
from stream import chunks
from stream.commands import Commands
from stream.journal import Journal
from stream.session import Session
from stream.steering import Steering
from tests.nightly.counts import count
from tests.toys.simulation import simulated

KINDS = ("crash", "fail", "late", "fenced", "stop", "compact", "returned", "label", "command", "gallery")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is several records, so that it can be torn at each."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 3000)


def play(seeds: range, **more: int) -> None:
    """A failing seed is named, and fails alone too: `simulated(seed, **more)`."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        try:
            seen.update(simulated(seed, **more).seen)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    print(f"{len(seeds)} histories, 0 violations: {dict(seen)}")
    assert all(seen[kind] > len(seeds) / 10 for kind in KINDS if not (more and kind == "command")), seen


def test_no_history_breaks_a_promise() -> None:
    play(range(8))


def test_no_history_breaks_a_promise_where_lanes_are_put_away() -> None:
    """Who dies, sleeps or fails does so while a lane is written, fetched and erased, too."""
    play(range(500, 508), tenants=9, live=2)


@pytest.mark.parametrize(
    "seed", [10, 26, 47, 1014, 1021, 1051, 1064, 2114, 2191, 2223, 2232, 2251, 2319, 2381, 2420, 2490]
)
def test_histories_that_once_broke_one(seed: int) -> None:
    """docs/lab/log.md, what wider simulated histories found."""
    simulated(seed)


def obeys_no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "entries", lambda self, partition, since: [])


def restores_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "restore", lambda self, tensors, meta: None)


def takes_labels_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = Steering.apply

    def at_once(self: Steering, planned: Mapping[str, int] | None = None, teach: bool = True) -> bool:
        return apply(self, None, teach)

    monkeypatch.setattr(Steering, "apply", at_once)


def repeats_from_the_newest_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Session.answer
    monkeypatch.setattr(Session, "answer", lambda self, batch, repeated=False: answer(self, batch))


def waits_for_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Commands, "get", lambda self, offset: None)


def judges_by_the_galleries_it_was_there_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GalleryVersions, "version", lambda self, version: self._versions.get(version))


@pytest.mark.parametrize(
    "broken",
    [
        obeys_no_journal, restores_no_state, takes_labels_when_they_come, repeats_from_the_newest_gallery,
        waits_for_no_command, judges_by_the_galleries_it_was_there_for,
    ],
)  # fmt: skip
def test_an_engine_that_breaks_its_promises_is_found(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    broken(monkeypatch)
    with pytest.raises((AssertionError, QshiftError)):
        for seed in range(30):
            simulated(seed)


@pytest.mark.nightly
@pytest.mark.slow
def test_ten_thousand_histories() -> None:
    """R1. `QSHIFT_FIRST_SEED` goes on elsewhere."""
    first = int(os.environ.get("QSHIFT_FIRST_SEED", "1000"))
    play(range(first, first + int(os.environ.get("QSHIFT_SEEDS", str(count("histories"))))))


def test_a_seed_is_one_history() -> None:
    first, second = (simulated(7) for _ in range(2))
    assert first.topics == second.topics and first.calls == second.calls
