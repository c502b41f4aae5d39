"""The items topic becomes versions of a gallery's folder: once each, in order, whatever happens between."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy_world import ITEMS, WIDTH, small_world

from core.artifacts import MANIFEST
from core.config import Config
from core.errors import ConfigError, DeliveryError
from core.filters import filter_of
from core.records import Coordinates, Record, Refusal
from encoders.base_model import Base, load_base
from index.folder import items_offset
from index.gallery import Display, VersionedGallery
from qshift.build import load_gallery
from qshift.demo import items_topic
from qshift.demo.galleries import add, remove
from qshift.demo.items_topic import Intake, Step
from stream.messages import item

TOPIC = "qshift.items"


class Topic:
    """A log in a list; compaction takes records away."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.end, self.partitions = 0, 1
        self.refused: list[Refusal] = []
        self.away = False

    def send(self, name: str, value: bytes | None) -> None:
        self.records.append(Record(Coordinates(TOPIC, 0, self.end), value, name.encode()))
        self.end += 1

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return dict.fromkeys(range(self.partitions), (0, self.end))

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        ((start, end),) = ranges.values()
        return [record for record in self.records if start <= record.at.offset < end]

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        if self.away:
            raise DeliveryError("Kafka is away")
        self.refused += refusals


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_world(tmp_path)
    return tmp_path / "gallery"


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(folder.parent / "base")


def made(topic: Topic, base: Base, folder: Path) -> Intake:
    return Intake(topic, Config(), base, folder, topic.refuse)


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


def drained(intake: Intake) -> list[Step]:
    steps = []
    while (one := intake.step()) is not None:
        steps.append(one)
    return steps


def contents(gallery: VersionedGallery) -> dict[str, object]:
    """All but keys."""
    return {
        gallery.identifier(key): (
            gallery.labels_of(key), gallery.display(key), gallery.features(np.array(key)).tobytes(),
            gallery.codes_of(np.array(key)).tobytes(), gallery.attributes_of(key),
        )
        for key in gallery.keys().tolist()
    }  # fmt: skip


def test_items_come_and_go_and_what_is_refused_is_a_dead_letter(
    topic: Topic, base: Base, folder: Path
) -> None:
    topic.send("new", item(vector(1), ["fresh"], "A new one", {"year": 2019}))
    topic.send("item-3", item(vector(2)))
    topic.send("item-4", None)
    topic.send("nobody", None)
    topic.send("words", item("words, which this base does not read"))
    topic.send("short", item(vector(3)[:3]))
    topic.send("broken", b"{")
    topic.send("said", item(vector(3), attributes={"year": None}))
    (one,) = drained(made(topic, base, folder))
    assert (one.put, one.taken_out, one.refused, one.offset) == (2, 2, 4, 8)
    gallery = load_gallery(folder, base)
    assert gallery.version == one.gallery.version and len(gallery) == ITEMS
    assert gallery.labels_of(gallery.key_of("new")) == ("fresh",) and not gallery.holds("item-4")
    assert gallery.display(gallery.key_of("new")) == Display("A new one")
    assert gallery.allowed(filter_of({"year": 2019})).tolist() == [gallery.key_of("new")]
    unit = vector(2) / np.linalg.norm(vector(2))
    assert np.allclose(gallery.features(np.array(gallery.key_of("item-3"))), unit, atol=1e-3)
    assert [refusal.record.key for refusal in topic.refused] == [b"words", b"short", b"broken", b"said"]
    assert "serves vector, not text items" in topic.refused[0].reason
    assert drained(made(topic, base, folder)) == [], "nothing is read twice"


def test_the_same_is_there_however_the_topic_was_cut_into_steps(
    topic: Topic, base: Base, folder: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    other = tmp_path / "other"
    load_gallery(folder, base).save(other)
    intake = made(topic, base, folder)
    for number in range(60):
        name = f"item-{rng.integers(20)}" if rng.random() < 0.5 else f"new {rng.integers(10)}"
        topic.send(
            name,
            None if rng.random() < 0.3 else item(vector(number), [f"label {number}"], "", {"number": number}),
        )
        if rng.random() < 0.3:
            drained(intake)
        if rng.random() < 0.1:
            intake = made(topic, base, folder)  # another process
    drained(intake)
    # Compacted, and in one go: what a folder of its own makes of it.
    last = {record.key: record for record in topic.records}
    topic.records = [record for record in topic.records if last[record.key] is record]
    drained(made(topic, base, other))
    assert contents(load_gallery(folder, base)) == contents(load_gallery(other, base))
    assert load_gallery(folder, base).version == load_gallery(other, base).version, "keys, too"
    assert items_offset(folder) == items_offset(other) == 60


def test_long_stretches_are_taken_in_by_steps(topic: Topic, base: Base, folder: Path) -> None:
    for number in range(items_topic.STEP + 10):
        topic.send(f"new {number % 7}", item(vector(number % 7)))
    assert [one.offset for one in drained(made(topic, base, folder))] == [
        items_topic.STEP,
        items_topic.STEP + 10,
    ]
    assert len(load_gallery(folder, base)) == ITEMS + 7


def test_a_step_that_fails_is_taken_again_as_a_whole(topic: Topic, base: Base, folder: Path) -> None:
    topic.send("new", item(vector(1)))
    topic.send("broken", b"{")
    before = (folder / MANIFEST).read_bytes()
    topic.away = True
    intake = made(topic, base, folder)
    with pytest.raises(DeliveryError):
        intake.step()
    assert (folder / MANIFEST).read_bytes() == before and items_offset(folder) == 0
    topic.away = False
    for again in (intake, made(topic, base, folder)):
        drained(again)
    assert [refusal.record.key for refusal in topic.refused] == [b"broken"]
    assert load_gallery(folder, base).holds("new") and items_offset(folder) == 2


def test_other_changes_of_the_folder_keep_the_place(topic: Topic, base: Base, folder: Path) -> None:
    topic.send("new", item(vector(1)))
    intake = made(topic, base, folder)
    drained(intake)
    quiet = Console(quiet=True)
    remove(["item-1"], folder, quiet)
    more = folder.parent / "more.jsonl"
    more.write_text(json.dumps({"id": "by hand", "vector": vector(3).tolist()}))
    add(more, folder, folder.parent / "base", False, quiet)
    assert items_offset(folder) == 1
    topic.send("newer", item(vector(2)))
    drained(intake)
    gallery = load_gallery(folder, base)
    assert all(map(gallery.holds, ("new", "newer", "by hand"))) and not gallery.holds("item-1")


def test_a_gallery_built_anew_takes_the_topic_in_from_its_beginning(
    topic: Topic, base: Base, folder: Path
) -> None:
    first = load_gallery(folder, base)
    topic.send("new", item(vector(1)))
    intake = made(topic, base, folder)
    drained(intake)
    first.save(folder)
    assert items_offset(folder) == 0 and not load_gallery(folder, base).holds("new")
    drained(intake)
    assert load_gallery(folder, base).holds("new") and items_offset(folder) == 1


def test_topics_that_cannot_be_meant(topic: Topic, base: Base, folder: Path) -> None:
    topic.send("new", item(vector(1)))
    drained(made(topic, base, folder))
    topic.records, topic.end = [], 0
    with pytest.raises(ConfigError, match="made anew"):
        made(topic, base, folder).step()
    for topic.partitions in (0, 2):
        with pytest.raises(ConfigError, match=f"has {topic.partitions} partitions"):
            made(topic, base, folder).step()
