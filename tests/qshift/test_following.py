"""A service's gallery follows its folder, and what a crash makes it repeat is the same to the bit."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from toy_world import BITS, ITEMS, WIDTH, small_world

from core.artifacts import MANIFEST
from core.config import Config
from core.errors import ArtifactError, ConfigError, GalleryError
from core.filters import ANYTHING, wanted
from core.records import Coordinates, Judgement, Record, Refusal
from core.types import Outcome, Query, QueryBatch
from index.gallery import VersionedGallery
from index.merging import Tiers, tidied
from qshift.build import Engine, engine
from qshift.following import Following
from stream.codec import vector_query, wanting
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.preparation import Preparation
from stream.runner import run

SIZE, BATCHES, TOPIC = 16, 12, "qshift.queries"
Change = Callable[[VersionedGallery, int], VersionedGallery]


def records() -> list[Record]:
    """Each fourth one asks for items alone that have come since, which are others from batch to batch."""
    found, some = [], wanted(3, {"seq": {"from": 1}})
    for offset in range(SIZE * BATCHES):
        vector = np.random.default_rng(offset).normal(size=WIDTH) + 1.0
        value, headers = wanting(
            vector_query(vector.astype(np.float32)), ANYTHING if offset % 4 else some
        )  # fmt: skip
        found.append(Record(Coordinates(TOPIC, 0, offset), value, None, tuple(headers)))
    return found


def grown(gallery: VersionedGallery, seq: int) -> VersionedGallery:
    """Two items more, two fewer, one replaced: near what is asked, so that answers change."""
    rng = np.random.default_rng(seq)
    names = [f"new {seq} 0", f"new {seq} 1", f"item-{3 * seq}"]
    features = rng.normal(size=(3, WIDTH)) + 1.0
    codes = rng.integers(0, 256, (3, BITS // 8), dtype=np.uint8)
    said = [{"seq": seq}, {"seq": seq, "new": "yes"}, {}]
    more = gallery.upsert(names, codes, names, features, attributes=said)
    return more.remove([f"item-{3 * seq + i}" for i in (1, 2)])


@dataclass
class Site:
    """A folder with base and gallery, what workers there have answered, and what outlives them."""

    folder: Path
    change: Change = grown
    every: int = 2
    """Batches between two changes of the folder."""
    dies_after: tuple[int, ...] = ()
    """Batches behind which a worker crashes: answered, journalled, not in a checkpoint."""
    store: MemoryStore = field(default_factory=MemoryStore)
    sink: MemorySink = field(default_factory=MemorySink)
    died: set[int] = field(default_factory=set)
    versions: list[str] = field(default_factory=list)
    restarts: int = 0
    before_restart: Callable[[Path], None] = lambda _: None

    def config(self) -> Config:
        return Config.model_validate({
            "base": self.folder / "base", "gallery": self.folder / "gallery", "device": "cpu",
            "adapt": {"method": "rest"}, "batch": {"size": SIZE, "floor": 8},
            "state": {"every_batches": 4},
        })  # fmt: skip

    def work(self) -> Site:
        """Until all is answered, by as many workers as that takes."""
        source = MemorySource(records(), [TOPIC], step=SIZE)
        while True:
            made = engine(self.config())
            following = Following(made, self.folder / "gallery")
            try:
                run(
                    source, made.pipeline, made.codec, self.sink, self.store, [Changing(self, following)],
                    made.config, clock=lambda: 0.0, base_version=made.base.version,
                )  # fmt: skip
            except Crash:
                self.restarts += 1
                self.before_restart(self.folder)
                source.seek((TOPIC, 0), 0)
            else:
                self.versions.append(made.versions.current().version)
                return self

    def answers(self) -> dict[bytes, bytes]:
        """By query; a duplicate has to be its twin to the bit."""
        found: dict[bytes, bytes] = {}
        for record in self.sink.records["answers"]:
            assert record.key is not None and record.value is not None
            assert found.setdefault(record.key, record.value) == record.value, "a duplicate is another answer"
        return found

    def journal(self) -> list[str]:
        return [entry.gallery for entry in self.store.journalled((TOPIC, 0), {})]


class Changing:
    """An observer that changes the folder, as another process would, and crashes its worker."""

    def __init__(self, site: Site, following: Following) -> None:
        self.site, self.following = site, following

    def observe(self, outcome: Outcome) -> None:
        seq, site = outcome.batch.seq, self.site
        if not outcome.repeated and seq % site.every == site.every - 1:
            folder = site.folder / "gallery"
            site.change(VersionedGallery.load(folder), seq).save(folder)
            self.following.look()
        if seq in site.dies_after and seq not in site.died:
            site.died.add(seq)
            raise Crash

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """The same base and gallery as often as asked for."""
    small_world(tmp_path / "first")

    def copies() -> Iterator[Path]:
        number = 0
        while True:
            number += 1
            yield shutil.copytree(tmp_path / "first", tmp_path / f"copy {number}")

    return copies()  # type: ignore[return-value]


def test_every_batch_is_answered_from_the_version_that_the_journal_names(folders: Iterator[Path]) -> None:
    site = Site(next(folders)).work()
    answers = [json.loads(value) for value in site.answers().values()]
    assert len(answers) == SIZE * BATCHES
    assert [answer["gallery_version"] for answer in answers[::SIZE]] == site.journal()
    assert len(set(site.journal())) == BATCHES // 2
    # What is answered is what a gallery of that version holds, and nothing that came or went before.
    found = [{result["id"] for result in answer["results"]} for answer in answers]
    assert any(name.startswith("new 1 ") for name in set().union(*found[2 * SIZE :]))
    assert not any(name.startswith("new") for name in set().union(*found[: 2 * SIZE]))
    assert not any({"item-4", "item-5"} & names for names in found[2 * SIZE :])
    asked = [[result["id"] for result in answer["results"]] for answer in answers[::4]]
    last = asked[-1]
    assert len(last) == 3 and all(name.startswith("new ") for names in asked for name in names)
    assert not any(asked[: 2 * SIZE // 4]), "there was nothing yet that the filter lets through"


@pytest.mark.parametrize("dies_after", [(2, 6, 9), (0, 3, 7, 10), (5,), (1, 2, 4, 5, 6, 8, 9, 10)])
def test_crashes_across_changes_are_invisible(folders: Iterator[Path], dies_after: tuple[int, ...]) -> None:
    """The folder has moved on when a batch is repeated: by one version, or by several."""
    whole, crashed = Site(next(folders)).work(), Site(next(folders), dies_after=dies_after).work()
    assert crashed.restarts == len(dies_after) and whole.restarts == 0
    assert crashed.answers() == whole.answers()
    assert crashed.journal() == whole.journal() and crashed.versions == whole.versions


def test_a_merge_beside_is_invisible(folders: Iterator[Path]) -> None:
    def merging(gallery: VersionedGallery, seq: int) -> VersionedGallery:
        return tidied(grown(gallery, seq), Tiers(2, 8))

    whole, merged = Site(next(folders)).work(), Site(next(folders), merging, dies_after=(4, 5)).work()
    assert merged.answers() == whole.answers()


def test_a_whole_new_gallery_takes_its_place_between_two_batches(folders: Iterator[Path]) -> None:
    def another(gallery: VersionedGallery, seq: int) -> VersionedGallery:
        rng = np.random.default_rng(seq)
        names = [f"{seq} of {number}" for number in range(ITEMS)]
        codes = rng.integers(0, 256, (ITEMS, BITS // 8), dtype=np.uint8)
        rows = rng.normal(size=(ITEMS, WIDTH))
        return VersionedGallery(BITS, names, codes, names, rows, base_version=gallery.base_version)

    site = Site(next(folders), another, every=4, dies_after=(5, 10)).work()
    for answer in map(json.loads, site.answers().values()):
        kinds = {result["id"].partition(" of ")[0] for result in answer["results"]}
        assert len(kinds) == 1 or all(kind.startswith("item-") for kind in kinds), "a torn answer"
    assert len(set(site.journal())) == 3 and site.restarts == 2
    whole = Site(next(folders), another, every=4).work()
    assert site.answers() == whole.answers()


def test_where_a_version_is_gone_the_answers_go_on_and_it_is_said(
    folders: Iterator[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def forget(folder: Path) -> None:
        for path in (folder / "gallery").glob("manifest-*.json"):
            path.unlink()

    site = Site(next(folders), every=1, dies_after=(2,), before_restart=forget)
    with caplog.at_level(logging.ERROR, "qshift.gallery"):
        site.work()
    assert len({record.key for record in site.sink.records["answers"]}) == SIZE * BATCHES
    said = [record for record in caplog.records if record.name == "qshift.gallery"]
    assert said and all(record.message == "a batch is repeated from another gallery" for record in said)


def test_a_version_that_was_never_here_is_found_in_the_folder(made: Engine) -> None:
    """A label of an answer by it teaches whoever took over the same as whoever gave the answer."""
    folder, first = made.config.gallery, made.versions.current()
    grown(first, 1).save(folder)
    again = engine(made.config)
    assert again.versions.current().version != first.version
    assert again.versions.version(first.version) is None
    Following(again, folder)
    found = again.versions.version(first.version)
    assert found is not None and found.keys().tolist() == first.keys().tolist()
    assert again.versions.version(first.version) is found and again.versions.version("0" * 16) is None


# -- the folder -----------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Engine:
    small_world(tmp_path)
    return engine(Config(base=tmp_path / "base", gallery=tmp_path / "gallery", device="cpu"))


def test_what_does_not_fit_is_said_once_and_changes_nothing(
    made: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    folder, shown = made.config.gallery, list[VersionedGallery]()
    following = Following(made, folder, shown.append)
    first = made.versions.current()
    codes = np.zeros((1, BITS // 8), np.uint8)
    rows = np.ones((1, WIDTH))
    broken = (
        VersionedGallery(BITS, ["a"], codes, ["a"], rows, base_version="other"),
        VersionedGallery(BITS, ["a"], codes, ["a"], base_version=first.base_version),
        VersionedGallery(BITS, ["a"], codes, ["a"], rows[:, :3], base_version=first.base_version),
    )
    for number, gallery in enumerate(broken, 1):
        gallery.save(folder)
        for _ in range(2):
            following.look()
        assert following.turn("") == first.version and len(caplog.records) == number
    (folder / MANIFEST).write_text("{")
    following.look()
    assert following.turn("") == first.version and len(caplog.records) == 4
    (folder / MANIFEST).unlink()
    following.look()
    shutil.rmtree(folder)
    following.look()
    assert following.turn("") == first.version and len(caplog.records) == 4
    first.save(folder)
    following.look()
    assert following.turn("") == first.version and shown == []
    grown(first, 1).save(folder)
    following.look()
    assert made.versions.current().version == first.version, "only the loop turns"
    assert following.turn("") == grown(first, 1).version and [len(one) for one in shown] == [ITEMS]


def test_a_whole_gallery_is_put_in_place_or_nothing_is_changed(made: Engine, tmp_path: Path) -> None:
    folder, other = made.config.gallery, tmp_path / "other"
    following, first = Following(made, folder), made.versions.current()
    grown(first, 1).save(other)
    assert following.swap(other) == grown(first, 1).version
    assert made.versions.current().version == first.version, "only the loop turns"
    assert following.turn("") == grown(first, 1).version
    assert following.turn(first.version) == first.version, "a batch is repeated from the one before"
    codes, rows = np.zeros((1, BITS // 8), np.uint8), np.ones((1, WIDTH))
    before = (folder / MANIFEST).read_bytes()
    for width, base, error in (
        (WIDTH, "other", ArtifactError),
        (3, first.base_version, GalleryError),
    ):
        wrong = VersionedGallery(BITS, ["a"], codes, ["a"], rows[:, :width], base_version=base)
        wrong.save(other)
        with pytest.raises(error):
            following.swap(other)
        assert (folder / MANIFEST).read_bytes() == before
    with pytest.raises(ConfigError, match="is the gallery itself"):
        following.swap(folder)


def test_clean_composed_queries_that_stay_are_said_once(
    made: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    folder, first = made.config.gallery, made.versions.current()
    (reference,) = made.base.reference.values()
    made.base = replace(made.base, reference={"vector": reference, "composed": reference})
    following = Following(made, folder)
    with caplog.at_level(logging.INFO, "qshift.gallery"):
        following.look()
        assert not caplog.records
        for gallery in (grown(first, 1), grown(grown(first, 1), 2)):
            gallery.save(folder)
            following.look()
    assert [record.message for record in caplog.records] == [
        "clean composed queries stay those of the base: qshift fit calibrate measures new ones"
    ]


def test_a_version_that_a_command_names_at_once_is_followed_from_there(made: Engine) -> None:
    """The folder's newest is in use before the thread has looked, and "newest" goes back to no older one."""
    folder, first = made.config.gallery, made.versions.current()
    following = Following(made, folder)
    second, third = grown(first, 1), grown(grown(first, 1), 2)
    second.save(folder)
    assert following.turn(second.version) == second.version
    assert following.turn("") == second.version
    third.save(folder)
    assert following.turn("") == second.version, "nobody has looked"
    assert following.turn(third.version) == following.turn("") == third.version
    assert following.turn(first.version) == first.version and following.turn("") == third.version


def test_a_thread_looks_at_the_folder(made: Engine) -> None:
    following = Following(made, made.config.gallery)
    first = made.versions.current()
    following.start()
    try:
        grown(first, 1).save(made.config.gallery)
        deadline = time.monotonic() + 30
        while following.turn("") == first.version:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        following.close()
    assert made.versions.holding(4) is first and made.versions.holding(ITEMS) is made.versions.current()


def test_texts_are_mended_by_the_words_of_the_batch() -> None:
    """Whatever gallery was in use when they were admitted."""

    class Letters:
        def prepare(self, content: str) -> str:
            return content.upper()

    words = {"catt": "cat"}
    preparation = Preparation({"text": Letters()}, lambda text: words.get(text, text))  # type: ignore[dict-item]
    texts = ("catt", "dogg", "bird")
    admitted = tuple(
        preparation(Query(Coordinates(TOPIC, 0, i), "text", text)) for i, text in enumerate(texts)
    )
    batch = QueryBatch("0:text", 0, "text", admitted)
    assert preparation.again(batch).queries == admitted
    words.update(dogg="dog")
    del words["catt"]
    seen = [(q.content, q.repaired, q.meant) for q in preparation.again(batch).queries]
    assert seen == [("catt", "", "CATT"), ("dogg", "dog", "DOG"), ("bird", "", "BIRD")]
    fresh = tuple(preparation(Query(Coordinates(TOPIC, 0, i), "text", text)) for i, text in enumerate(texts))
    assert preparation.again(batch).queries == fresh
