"""R15: one, two and four workers answer alike and learn the same."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from traffic import saved_lanes, saved_to

from stream.client import read_all
from stream.cluster import group_members
from stream.sink import KafkaSink
from tests.nightly.counts import Told, count, say

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

WORKERS, PARTITIONS, SIZE = (1, 2, 4), 4, 16
ROUNDS = 3
"""The queries come in so many parts, the next one when the last is saved."""
WAIT_SECONDS = 300.0


def test_workers_change_nothing(
    broker: Any, make_site: Any, vector_world: Any, messages: Any, topics: Any
) -> None:
    """Three services side by side read one log. Full batches alone: boundaries are a function of the log."""
    part = SIZE * max(1, count("batches_of_partition") // ROUNDS)
    queries, told = topics("queries"), Told("workers", ROUNDS)
    sites = [
        make_site(broker, vector_world, queries=queries, kafka={"partitions": PARTITIONS}) for _ in WORKERS
    ]
    crews = [
        [site.worker(f"worker-{number}") for number in range(workers)]
        for site, workers in zip(sites, WORKERS, strict=True)
    ]
    for site, workers in zip(sites, WORKERS, strict=True):
        site.wait(lambda: joined(site) == workers, WAIT_SECONDS)  # noqa: B023 (used within the turn)
    for turn in range(ROUNDS):
        with closing(KafkaSink(sites[0].servers, sites[0].kafka)) as sink:
            for number in range(PARTITIONS):
                for value, headers in messages(part, seed=PARTITIONS * turn + number)[0]:
                    sink.emit_to(queries, value, None, headers, partition=number)
            sink.flush(60.0)
        # Not only answered: who ends before all is saved leaves something to be done again.
        for site in sites:
            site.wait(lambda: saved_to(site) == [part * (turn + 1)] * PARTITIONS, WAIT_SECONDS)  # noqa: B023
        told(turn + 1)
    found = []
    for site, crew in zip(sites, crews, strict=True):
        for worker in crew:
            worker.terminate(60.0)
        shares = [worker.counts()[0] for worker in crew]
        records, answers = read_all(site.servers, site.kafka.answers, WAIT_SECONDS), dict[bytes, bytes]()
        for record in records:
            key, value = record.key or b"", record.value or b""
            assert answers.setdefault(key, value) == value
        say(f"{len(crew)} workers: {shares} queries, {len(records)} answers")
        assert min(shares) > 0, "a worker had nothing to do: the test shows nothing"
        found.append((answers, saved_lanes(site)))
    assert len(found[0][0]) == ROUNDS * part * PARTITIONS
    assert sorted(found[0][1]) == [f"{number}:vector" for number in range(PARTITIONS)]
    assert all(one == found[0] for one in found)
    say(f"{WORKERS} workers: {len(found[0][0])} equal answers, {len(found[0][1])} equal lanes")


def joined(site: Any) -> int:
    """Members of the group that have partitions."""
    members = group_members(site.servers, site.kafka.group, site.kafka.security)
    return sum(bool((one.get("member_assignment") or {}).get("assigned_partitions")) for one in members)
