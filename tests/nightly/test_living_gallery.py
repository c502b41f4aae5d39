"""10,000 changes of the gallery while queries run, and `kill -9` of the worker and of `gallery follow`.

`make nightly`. Prints its figures; the short form without Kafka is tests/qshift/test_living.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from changing_items import Changes, check_answers, check_from_scratch
from how_to import environment
from integration_fixtures import fixtures_of_integration
from kafka import KafkaProducer

from core.config import LimitConfig
from encoders.base_model import load_base
from index.folder import items_offset, newest
from qshift.build import engine, load_gallery
from qshift.demo.items_topic import Intake
from qshift.demo.versions import Recorded, one_by_one
from qshift.offline import run_offline
from qshift.replay.recorded import recorded
from stream.cluster import ensure_topics
from stream.items import items_settings
from stream.recording import KafkaLog

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

CHANGES = int(os.environ.get("QSHIFT_LIVING_CHANGES", "10000"))
EACH, QUERIES = 100, 40
"""Changes and queries between two looks at what is to be killed."""
WORKER_EVERY, FOLLOWER_EVERY = 12, 9
"""Rounds between two kills."""
LINGER_SECONDS = 0.2


class Follower:
    """`qshift gallery follow` as a process; what it prints goes on in one file, whoever dies."""

    def __init__(self, config: Path, log: Path) -> None:
        self._out = log.open("ab")
        code = "from qshift.entry import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "gallery", "follow", "--config", str(config)],
            env={**environment(), "OMP_NUM_THREADS": "1"}, stdout=self._out, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()


def test_ten_thousand_changes_while_queries_run_and_processes_die(
    broker: Any, make_site: Any, vector_world: Path, messages: Any, topics: Any, tmp_path: Path
) -> None:
    world, log = tmp_path / "world", tmp_path / "follow.log"
    folder = world / "gallery"
    shutil.copytree(vector_world, world)
    as_built = tmp_path / "as built"
    shutil.copytree(world / "gallery", as_built)
    base = load_base(world / "base")
    built = load_gallery(as_built, base)
    changes = Changes(
        [built.identifier(key) for key in built.keys().tolist()], fixtures_of_integration().items()
    )
    site = make_site(
        broker, world, kafka={"items": topics("items")}, batch={"linger_seconds": LINGER_SECONDS, "floor": 4}
    )
    ensure_topics(site.servers, items_settings(site.kafka))
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    worker, follower, sent = site.worker(), Follower(site.file, log), list[Any]()
    kills = {"worker": 0, "follower": 0}
    try:
        for turn in range(1, -(-CHANGES // EACH) + 1):
            for name, value in changes.next(EACH):
                producer.send(site.kafka.items, key=name.encode(), value=value)
            producer.flush()
            sent += site.send(messages(QUERIES, seed=turn)[0])
            # Whoever follows keeps up, so that answers come from many versions.
            site.wait(lambda least=(turn - 1) * EACH: items_offset(folder) > least, 120)
            if turn % WORKER_EVERY == 0:
                worker.kill()
                worker, kills["worker"] = site.worker(), kills["worker"] + 1
            if turn % FOLLOWER_EVERY == 0:
                follower.kill()
                follower, kills["follower"] = Follower(site.file, log), kills["follower"] + 1
        site.wait(lambda: items_offset(folder) == len(changes.sent), 300)
        site.wait(lambda: len(site.distinct()) == len(sent), 300)
        worker.terminate()
    finally:
        follower.kill()
        producer.close()

    answers = site.distinct()
    assert {len(values) for values in answers.values()} == {1}, "a repeated answer is another one"
    decoded = site.decoded()
    assert set(decoded) == set(sent), "no query is lost"
    with KafkaLog(site.servers, site.kafka.security) as topic:
        places = _places(topic, site, base, as_built, tmp_path, {a.gallery_version for a in decoded.values()})
        assert newest(tmp_path / "again") == newest(folder), "another process makes the same of the topic"
    versions = check_answers(changes, decoded.values(), places)
    gallery = load_gallery(folder, base)
    check_from_scratch(changes, gallery, built, base, built.codes_of(built.keys()))
    letters = {letter.key for letter in site.dead_letters()}
    assert letters == {name.encode() for name, value in changes.sent if value == b"{"}

    for place in (folder, as_built):
        said = list[str]()
        replayed = _replayed(site, place, said)
        differing = sum({replayed[key]} != values for key, values in answers.items())
        print(f"replay from {place.name}: {len(replayed)} answers, {differing} differ; {said}")
        assert replayed.keys() == answers.keys() and differing == 0
    repeated = len(site.answers()) - len(answers)
    print(
        f"{len(changes.sent)} changes, {len(sent)} queries of {versions} versions, {kills} killed, "
        f"{repeated} answers repeated, {len(gallery)} items at the end"
    )
    assert min(kills.values()) > 0 and versions > 5


def _places(
    topic: KafkaLog, site: Any, base: Any, as_built: Path, tmp_path: Path, wanted: set[str]
) -> dict[str, int]:
    """Where in the topic versions stand: by taking it in anew, record by record."""
    again = tmp_path / "again"
    shutil.copytree(as_built, again)
    intake = Intake(topic, site.config, base, again, lambda _: None)
    while intake.step() is not None:
        pass
    gallery = load_gallery(as_built, base)
    found = {gallery.version: 0}  # a version that comes back holds the same items
    kafka, limits = site.kafka, LimitConfig()
    for offset, after in enumerate(one_by_one(topic, kafka.items, limits, base, gallery, 0), 1):
        found.setdefault(after.version, offset)
    assert wanted <= found.keys()
    return found


def _replayed(site: Any, gallery: Path, said: list[str]) -> dict[bytes, bytes]:
    """The recording of the day, run again without workers from a folder of galleries."""
    config = site.config.model_copy(update={"gallery": gallery})
    found = recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries)
    made = engine(config)
    entries = [entry.gallery for entry in found.journal]
    Recorded(config, entries, lambda: KafkaLog(site.servers, site.kafka.security), said.append).attach(made)
    _, sink = run_offline(made, found.records, [], found.journal)
    return {record.key or b"": record.value or b"" for record in sink.records["answers"]}
