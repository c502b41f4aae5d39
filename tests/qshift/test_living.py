"""Items come and go in a topic while queries are answered and processes die; then the day is replayed.

The same with a real Kafka, real processes and 10,000 changes: tests/nightly/test_living_gallery.py.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from changing_items import Changes, check_answers, check_from_scratch
from toy_world import ITEMS, WIDTH, small_world

from core.config import Config
from core.errors import BrokerError
from core.records import Coordinates, Judgement, Record, Refusal
from core.types import Outcome
from encoders.base_model import load_base
from index import folder as folders
from index.folder import newest
from index.gallery import VersionedGallery
from qshift.build import engine, load_gallery, put_in_place
from qshift.demo.items_topic import Intake
from qshift.demo.versions import Recorded
from qshift.following import Following
from qshift.offline import run_offline
from stream.codec import decode_answer, vector_query
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run

SIZE, BATCHES, EACH, TOPIC = 16, 10, 30, "qshift.queries"
"""Queries of a batch, batches, changes between two."""


class Killed(BaseException):
    """kill -9: no handler sees it."""


class Items:
    """The items topic in a list."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.places: dict[str, int] = {}
        """Where each version of the folder stands."""

    def send(self, changes: Sequence[tuple[str, bytes | None]]) -> None:
        for name, value in changes:
            at = Coordinates("qshift.items", 0, len(self.records))
            self.records.append(Record(at, value, name.encode()))

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {0: (0, len(self.records))}

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        ((start, end),) = ranges.values()
        return [record for record in self.records if start <= record.at.offset < end]


class Day:
    """A worker and a follower over one folder; either may be killed, and starts again."""

    def __init__(self, folder: Path) -> None:
        small_world(folder)
        self.folder, self.items, self.died, self.away = folder, Items(), set[int](), False
        self.reachable = set[str]()
        self.base, self.kept = load_base(folder / "base"), folder / "as built"
        shutil.copytree(folder / "gallery", self.kept)
        built = load_gallery(folder / "gallery", self.base)
        self.built = built
        names = [built.identifier(key) for key in built.keys().tolist()]
        self.changes = Changes(names, built.features(built.keys()))
        self.items.places[built.version] = 0
        self.sink, self.store = MemorySink(), MemoryStore()
        rng = np.random.default_rng(1)
        rows = built.features(rng.integers(ITEMS, size=SIZE * BATCHES)) + 0.3 * rng.normal(
            size=(SIZE * BATCHES, WIDTH)
        )
        self.records = []
        for offset, row in enumerate(rows.astype(np.float32)):
            value, headers = vector_query(row)
            self.records.append(Record(Coordinates(TOPIC, 0, offset), value, None, tuple(headers)))

    def config(self, gallery: Path | None = None) -> Config:
        return Config.model_validate({
            "base": self.folder / "base", "gallery": gallery or self.folder / "gallery", "device": "cpu",
            "adapt": {"method": "rest"}, "batch": {"size": SIZE, "floor": 8}, "state": {"every_batches": 4},
        })  # fmt: skip

    def intake(self) -> Intake:
        return Intake(self.items, self.config(), self.base, self.folder / "gallery", lambda _: None)

    def live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = MemorySource(self.records, [TOPIC], step=SIZE)
        while True:
            made = engine(self.config())
            following = Following(made, self.folder / "gallery")
            try:
                run(
                    source, made.pipeline, made.codec, self.sink, self.store,
                    [_Between(self, following, monkeypatch)], made.config, clock=lambda: 0.0,
                    base_version=made.base.version,
                )  # fmt: skip
                return
            except Killed:
                source.seek((TOPIC, 0), 0)

    def taken_in(self) -> None:
        intake = self.intake()
        while (step := intake.step()) is not None:
            self.items.places[step.gallery.version] = step.offset

    def answers(self) -> dict[bytes, bytes]:
        """By query; a duplicate has to be its twin to the bit."""
        found: dict[bytes, bytes] = {}
        for record in self.sink.records["answers"]:
            assert record.key is not None and record.value is not None
            assert found.setdefault(record.key, record.value) == record.value, "a duplicate is another answer"
        return found

    def replayed(self, gallery: Path, *former: Path) -> tuple[dict[bytes, bytes], list[str]]:
        """The answers of a run without Kafka, from a folder; and what was said of versions."""
        entries, said = self.store.journalled((TOPIC, 0), {}), list[str]()

        @contextmanager
        def topic() -> Iterator[Items]:
            if self.away:
                raise BrokerError("Kafka is away")
            yield self.items

        config, made = self.config(gallery), engine(self.config(gallery))
        Recorded(config, [entry.gallery for entry in entries], topic, said.append, former).attach(made)
        _, sink = run_offline(made, self.records, [], entries)
        self.reachable = set(made.versions.versions())
        return {record.key or b"": record.value or b"" for record in sink.records["answers"]}, said


class _Between:
    """Behind each batch: changes, a follower that may be killed while it writes, a worker that may be."""

    def __init__(self, day: Day, following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
        self._day, self._following, self._patch = day, following, monkeypatch

    def observe(self, outcome: Outcome) -> None:
        day, seq = self._day, outcome.batch.seq
        if not outcome.repeated:
            day.items.send(day.changes.next(EACH))
            if seq % 3 == 1:
                self._killed_while_writing()
            day.taken_in()
            self._following.look()
        if seq % 5 == 3 and seq not in day.died:
            day.died.add(seq)
            raise Killed

    def _killed_while_writing(self) -> None:
        """Files of the next version are there, its manifest is not."""

        def dies(*_: object) -> None:
            raise Killed

        with self._patch.context() as patch, pytest.raises(Killed):
            patch.setattr(folders, "_replace", dies)
            self._day.intake().step()

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


def aged(folder: Path) -> None:
    """Two hours pass, and one more version."""
    for path in folder.glob("manifest-*.json"):
        os.utime(path, (time.time() - 7200,) * 2)
    gallery = VersionedGallery.load(folder)
    gallery.remove([gallery.identifier(int(gallery.keys()[0]))]).save(folder)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    made = Day(tmp_path_factory.mktemp("day"))
    with pytest.MonkeyPatch.context() as patch:
        made.live(patch)
    return made


def test_no_answer_names_what_is_gone_and_a_replay_is_the_same_bytes(day: Day) -> None:
    answers = day.answers()
    assert len(answers) == SIZE * BATCHES and day.died == {3, 8}
    decoded = [decode_answer(value) for value in answers.values()]
    assert check_answers(day.changes, decoded, day.items.places) >= BATCHES - len(day.died)
    folder = day.folder / "gallery"
    gallery = load_gallery(folder, day.base)
    codes = day.built.codes_of(day.built.keys())
    check_from_scratch(day.changes, gallery, day.built, day.base, codes)
    # Taken in at once, by another process, into the gallery as it was built: the same version.
    other = day.folder / "other"
    shutil.copytree(day.kept, other)
    again = Intake(day.items, day.config(), day.base, other, lambda _: None)
    while again.step() is not None:
        pass
    assert newest(other) == newest(folder)

    named = {entry.gallery for entry in day.store.journalled((TOPIC, 0), {})}
    versions = len(named)
    replayed, said = day.replayed(folder)
    assert replayed == answers
    assert said == [
        f"gallery versions of the recording: {versions} kept in {folder}, 0 made again from qshift.items, "
        "0 not found"
    ]
    replayed, said = day.replayed(day.kept)
    assert replayed == answers, "made again from the topic"
    assert named <= day.reachable, "labels of all batches can be judged at the end"
    assert f"1 kept in {day.kept}, {versions - 1} made again" in said[0] and len(said) == 1


def test_versions_are_found_where_a_whole_new_gallery_has_taken_the_place(day: Day, tmp_path: Path) -> None:
    """In the folder that is named beside it, or made again from the topic into what is there."""
    folder, other = tmp_path / "gallery", tmp_path / "other"
    shutil.copytree(day.folder / "gallery", folder)
    aged(folder)
    gallery = VersionedGallery.load(folder)
    names = [f"another {key}" for key in range(len(gallery))]
    codes, rows = gallery.codes_of(gallery.keys()), gallery.features(gallery.keys())
    new = VersionedGallery(gallery.bits, names, codes, names, rows, base_version=gallery.base_version)
    new.save(other)
    put_in_place(other, folder)
    answers = day.answers()
    replayed, said = day.replayed(folder, day.kept)
    assert replayed == answers and "made again from qshift.items, 0 not found" in said[0]
    day.away = True
    replayed, said = day.replayed(folder, day.folder / "gallery")
    day.away = False
    assert replayed == answers and said[0].endswith("0 made again from qshift.items, 0 not found")


def test_versions_that_are_nowhere_are_said(day: Day, tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    shutil.copytree(day.folder / "gallery", folder)
    aged(folder)
    replayed, said = day.replayed(folder)
    assert replayed.keys() == day.answers().keys() and replayed != day.answers()
    assert "not found" in said[0] and "give a copy of the gallery as it was built" in said[1]
    day.away = True
    assert day.replayed(folder) == (
        replayed,
        ["qshift.items cannot be read: Kafka is away", *said],
    ), "a replay needs no right to the items topic"
