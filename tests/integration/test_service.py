"""The service as an operator meets it: signals, pages over HTTP, late labels, lanes that do not touch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from core.records import Coordinates
from stream.changelog import ChangelogStore
from stream.codec import label, text_query

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def fetched(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def series(url: str) -> dict[str, float]:
    """Sample of /metrics, with its labels as written -> value."""
    lines = [line for line in fetched(f"{url}/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def newest_checkpoint(site: Any) -> Any:
    store = ChangelogStore(site.servers, site.kafka)
    try:
        return store.load((site.kafka.queries, 0))
    finally:
        store.close()


def test_sigterm_makes_a_cut_and_a_restart_goes_on(
    broker: Any, make_site: Any, vector_world: Any, messages: Any
) -> None:
    site = make_site(broker, vector_world)
    sent = site.send(messages(75)[0])  # four batches, and eleven that wait
    worker = site.worker()
    site.wait(lambda: len(site.answers()) >= 64)
    assert worker.terminate() < 10
    assert worker.counts() == (64, 0, 2)
    checkpoint = newest_checkpoint(site)
    assert (checkpoint.next_offset, [lane.next_seq for lane in checkpoint.lanes]) == (64, [4])

    sent += site.send(messages(21, seed=2)[0])
    worker = site.worker()
    site.wait(lambda: len(site.answers()) >= 96)
    assert worker.terminate() < 10
    assert [Coordinates(*_place(record.key)) for record in site.answers()] == sent  # once each, in order
    assert worker.counts() == (32, 0, 1)
    assert newest_checkpoint(site).parent_hash != ""


def _place(key: bytes) -> tuple[str, int, int]:
    topic, partition, offset = key.decode().split("/")
    return topic, int(partition), int(offset)


def test_clean_stops_make_no_duplicates(
    broker: Any, make_site: Any, vector_world: Any, messages: Any
) -> None:
    site, cycles = make_site(broker, vector_world), 5
    for cycle in range(cycles):
        site.send(messages(32, seed=cycle)[0])
        worker = site.worker()
        site.wait(lambda: len(site.answers()) > 32 * cycle)  # noqa: B023 (used within the turn)
        assert worker.terminate() < 10
    worker = site.worker()
    site.wait(lambda: "serving" in worker.output())
    time.sleep(1.5)  # long enough to join, and to answer again what it should not
    worker.terminate()
    keys = [record.key for record in site.answers()]
    assert len(keys) == len(set(keys)) == 32 * cycles


def test_a_worker_that_saw_nothing_writes_no_checkpoint(
    broker: Any, make_site: Any, vector_world: Any
) -> None:
    """A checkpoint at offset 0 would be refused where retention has removed the log's beginning."""
    site = make_site(broker, vector_world)
    worker = site.worker()
    site.wait(lambda: "serving" in worker.output())
    time.sleep(1.5)  # long enough to join
    worker.terminate()
    assert newest_checkpoint(site) is None


def test_the_installed_command_ends_with_zero(make_site: Any, broker: Any, vector_world: Any) -> None:
    site = make_site(broker, vector_world)
    command = [sys.executable, "-m", "qshift.cli", "serve", "--config", str(site.file)]
    log = site.file.with_name("command.log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], env={**os.environ, "COLUMNS": "200"},
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        site.wait(lambda: b"serving" in log.read_bytes(), 120)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
        assert "stopped after 0 queries" in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_pages_over_http_and_late_labels(
    broker: Any, make_site: Any, vector_world: Any, messages: Any, serving: Any
) -> None:
    site = make_site(broker, vector_world, http={"enabled": True, "port": 0}, labels={"rate": 0.5})
    service = serving(site)
    assert fetched(f"{service.url}/healthz") == (200, "ok\n")
    site.wait(lambda: fetched(f"{service.url}/readyz")[0] == 200)
    assert json.loads(fetched(f"{service.url}/readyz")[1]) == dict.fromkeys(
        ("running", "assigned", "partitions", "gallery", "delivering"), True
    )

    queries, classes = messages(96)
    sent = site.send(queries)
    site.wait(lambda: len(site.answers()) == 96)
    # The page is told beside the loop, after the answers.
    site.wait(
        lambda: (
            json.loads(fetched(f"{service.url}/state")[1])["lanes"].get("0:vector", {}).get("next_seq") == 6
        )
    )
    lane = json.loads(fetched(f"{service.url}/state")[1])["lanes"]["0:vector"]
    assert (lane["next_seq"], lane["next_offset"], lane["pending"]) == (6, 96, 0)
    assert lane["method"] == "rest" and lane["updates"] > 0

    answers = site.decoded()
    wanted = [number for number, at in enumerate(sent) if answers[at].label_wanted]
    assert 20 < len(wanted) < 76  # about half
    unwanted = next(number for number in range(96) if number not in wanted)
    before = series(service.url)
    assert before["qshift_labels_requested_total"] == len(wanted) == before["qshift_labels_pending"]
    client = site.client()
    for number in [*wanted, unwanted]:
        client.label(label(sent[number], classes[number]), str(sent[number]).encode())
    client.flush()
    client.close()
    site.wait(lambda: series(service.url)["qshift_labels_pending"] == 0)
    site.wait(lambda: series(service.url)['qshift_labels_ignored_total{reason="unsampled"}'] == 1)
    after = series(service.url)
    assert after["qshift_labels_arrived_total"] == len(wanted)
    quality = service.observers.judged.summary()
    assert quality.n == len(wanted)
    # Queries are near their items; a random order of 200 items in 20 classes has a mAP below 10.
    assert quality.map_served > 30
    shown = after['qshift_quality_map_ratio{answer="served",bound="value"}']
    assert 0.3 < shown <= 1
    assert service.stop().judgements == len(wanted) + 1


def test_lanes_do_not_touch(
    broker: Any, make_site: Any, clip_world: Any, messages: Any, serving: Any
) -> None:
    """Vectors are answered and learned from the same, whether texts stream in between or not."""
    vectors, texts = messages(64)[0], [text_query(f"word {number} of many") for number in range(64)]
    hashes = []
    for mixed in (False, True):
        site = make_site(broker, clip_world)
        both = [m for pair in zip(vectors, texts, strict=True) for m in pair] if mixed else vectors
        site.send(both)
        service = serving(site)
        site.wait(lambda: len(site.answers()) == len(both))  # noqa: B023 (used within the turn)
        report = service.stop()
        assert set(report.lanes) == ({"0:text", "0:vector"} if mixed else {"0:vector"})
        found = [a for a in site.decoded().values() if a.lane == "0:vector"]
        results = [answer.results for answer in sorted(found, key=lambda a: a.source)]
        hashes.append((report.lanes["0:vector"], results))
    assert hashes[0] == hashes[1]
