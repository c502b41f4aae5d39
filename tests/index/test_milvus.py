"""An index that Milvus searches: the same answers, also where it is away. Its embedded form is `slow`."""

import gc
import logging
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from toy_milvus import ToyMilvus

from core.config import Config, IndexKind
from core.errors import ConfigError, GalleryError, first_fault
from core.milvus import MilvusConfig
from core.types import Hits
from index.approximate import FEWEST
from index.binary import FaissIndex
from index.gallery import VersionedGallery
from index.milvus import REST_SECONDS, Milvus, collection
from index.remote import PROBES, MilvusIndex
from index.segment import Searched
from index.versions import GalleryVersions

BITS, ITEMS, K = 64, 600, 20
DRAW = np.random.default_rng(0)
KEYS = np.sort(DRAW.permutation(3 * ITEMS)[:ITEMS]).astype(np.int64)
CODES = DRAW.integers(0, 2, (ITEMS, BITS // 8), dtype=np.uint8)  # so few that most distances are ties
QUERIES = DRAW.integers(0, 2, (30, BITS // 8), dtype=np.uint8)
SETTINGS = MilvusConfig(address="http://milvus.test:19530")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def toy() -> ToyMilvus:
    return ToyMilvus()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(toy: ToyMilvus, clock: Clock) -> Milvus:
    return Milvus(SETTINGS, toy.library(), clock)


@pytest.fixture(scope="module")
def flat() -> FaissIndex:
    made = FaissIndex(BITS)
    made.add(KEYS, CODES)
    return made


def made(server: Milvus, kind: IndexKind = "milvus", effort: int | None = None) -> MilvusIndex:
    index = MilvusIndex(BITS, kind, server, effort, fewest=100)
    index.add(KEYS, CODES)
    return index


def same(one: Hits, other: Hits) -> bool:
    return np.array_equal(one.keys, other.keys) and np.array_equal(one.distances, other.distances)


def settled() -> None:
    for thread in threading.enumerate():
        if thread.name == "qshift-milvus":
            thread.join(10)


def test_what_milvus_finds_is_what_flat_finds_ties_included(
    server: Milvus, toy: ToyMilvus, flat: FaissIndex
) -> None:
    index = made(server)
    assert index.served and len(index) == ITEMS and index.bits == BITS
    for k in (1, K, ITEMS, ITEMS + 5):
        assert same(index.search(QUERIES, k), flat.search(QUERIES, k)), k
    assert toy.calls.count("search") == 4 and toy.made == [(BITS, "BIN_FLAT", 0)]
    assert index.search(QUERIES[:0], K).keys.shape == (0, K)
    few = KEYS[::3]
    assert same(index.search(QUERIES, K, few), flat.search(QUERIES, K, few))
    assert np.array_equal(index.distances(QUERIES), flat.distances(QUERIES))
    assert toy.calls.count("search") == 4, "filters and distances are ours"


def test_an_outage_changes_no_answer_and_ends_by_itself(
    server: Milvus, toy: ToyMilvus, clock: Clock, flat: FaissIndex, caplog: pytest.LogCaptureFixture
) -> None:
    index, exact = made(server), flat.search(QUERIES, K)
    toy.away = True
    with caplog.at_level(logging.WARNING):
        assert same(index.search(QUERIES, K), exact) and not index.served
    (said,) = [record.__dict__["error"] for record in caplog.records]
    assert said == f"Milvus at {SETTINGS.address} does not answer (search: no route with )"
    asked = len(toy.calls)
    assert same(index.search(QUERIES, K), exact) and len(toy.calls) == asked, "it is left alone"
    clock.now += REST_SECONDS[0] + 0.1
    assert same(index.search(QUERIES, K), exact)
    settled()
    assert len(toy.calls) == asked + 1 and not index.served
    clock.now += 1.5 * REST_SECONDS[0]
    index.search(QUERIES, K)
    settled()
    assert len(toy.calls) == asked + 1, "the second pause is longer than the first"
    toy.away = False
    toy.rows.clear()  # what came back has lost all
    clock.now += REST_SECONDS[1]
    assert same(index.search(QUERIES, K), exact)
    settled()
    assert index.served and same(index.search(QUERIES, K), exact) and toy.calls[-1] == "search"


def test_what_is_added_while_it_is_away_is_found_and_written_later(
    server: Milvus, toy: ToyMilvus, clock: Clock, flat: FaissIndex
) -> None:
    toy.away = True
    index = made(server)
    assert not index.served and same(index.search(QUERIES, K), flat.search(QUERIES, K))
    toy.away, clock.now = False, clock.now + REST_SECONDS[1]
    index.search(QUERIES, K)
    settled()
    assert index.served and same(index.search(QUERIES, K), flat.search(QUERIES, K))


def test_codes_are_written_once_and_a_half_written_collection_is_completed(
    server: Milvus, toy: ToyMilvus
) -> None:
    made(server)
    written = toy.calls.count("upsert")
    assert made(server).served and toy.calls.count("upsert") == written
    name = collection(KEYS, CODES, "BIN_FLAT")
    assert server.collections() == [name] == list(toy.rows)
    for key in KEYS[:50].tolist():
        del toy.rows[name][key]
    assert made(server).served and len(toy.rows[name]) == ITEMS


def test_a_collection_is_dropped_when_no_version_that_is_kept_uses_it(
    server: Milvus, toy: ToyMilvus, clock: Clock, flat: FaissIndex
) -> None:
    """Of four versions that are kept the newest three share what they hold."""
    codes = DRAW.integers(0, 256, (FEWEST, BITS // 8), dtype=np.uint8)
    names = [f"item {number}" for number in range(FEWEST)]

    def gallery(number: int) -> VersionedGallery:
        codes[0, 0] = number
        plain = VersionedGallery(BITS, names, codes.copy(), [()] * FEWEST, backend="exact")
        plain.searched = Searched("exact", "cpu", "flat", None, server)
        return plain.by("milvus")

    versions = GalleryVersions(gallery(0), older=1)
    (first,) = toy.rows
    versions.swap(gallery(1))
    gc.collect()
    server.sweep()
    assert len(toy.rows) == 2, "the one before is kept"
    versions.swap(versions.current().add(["one more"], codes[:1], [()]))
    gc.collect()
    toy.away = True
    server.sweep()
    assert first in toy.rows and server.away, "it is tried again"
    toy.away, clock.now = False, clock.now + REST_SECONDS[1]
    server.sweep()
    assert first not in toy.rows and len(toy.rows) == 1, "what both versions use is there"
    again = made(server), made(server)
    del again
    index = made(server)
    gc.collect()
    server.sweep()
    assert len(toy.rows) == 2 and same(index.search(QUERIES, K), flat.search(QUERIES, K))
    index.remove(KEYS[:1])
    server.sweep()
    assert collection(KEYS, CODES, "BIN_FLAT") not in toy.rows and len(toy.rows) == 2, "it holds another one"


def test_each_outage_is_counted_once(server: Milvus, toy: ToyMilvus, clock: Clock) -> None:
    outages: list[float] = []
    server.outage = lambda: outages.append(clock.now)
    index = made(server)
    assert not outages and not server.away
    for number in (1, 2):
        toy.away = True
        index.search(QUERIES, K)
        clock.now += REST_SECONDS[0] + 0.1
        index.search(QUERIES, K)  # a thread looks after it, in vain
        settled()
        assert len(outages) == number and server.away
        toy.away, clock.now = False, clock.now + REST_SECONDS[1]
        index.search(QUERIES, K)
        settled()
        assert index.served and not server.away


def test_what_is_removed_is_not_found(server: Milvus, flat: FaissIndex) -> None:
    index = made(server)
    gone = np.unique(index.search(QUERIES, 1).keys)
    assert index.remove(gone) == len(gone) and index.remove(gone) == 0 and index.served
    left = np.setdiff1d(KEYS, gone)
    assert same(index.search(QUERIES, K), flat.search(QUERIES, K, left))


def test_groups_are_asked_for_and_a_short_row_is_searched_exactly(
    server: Milvus, toy: ToyMilvus, flat: FaissIndex
) -> None:
    index = made(server, "milvus-ivf", effort=7)
    assert toy.made == [(BITS, "BIN_IVF_FLAT", round(4 * ITEMS**0.5))]
    index.search(QUERIES, K)
    made(server, "milvus-ivf").search(QUERIES, K)
    probes = [how["search_params"]["params"] for how in toy.asked]
    assert probes == [{"nprobe": 7}, {"nprobe": PROBES}]
    toy.shortest = 1
    assert same(index.search(QUERIES, K), flat.search(QUERIES, K))


def test_few_items_are_no_matter_for_a_server(server: Milvus, toy: ToyMilvus, flat: FaissIndex) -> None:
    index = MilvusIndex(BITS, "milvus", server)
    index.add(KEYS, CODES)
    assert same(index.search(QUERIES, K), flat.search(QUERIES, K)) and not toy.calls


def test_at_the_start_it_has_to_be_there_and_its_token_is_not_said(
    toy: ToyMilvus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_text("root:s3cret\n")
    settings = SETTINGS.model_copy(update={"token_file": tmp_path / "token"})
    server = Milvus(settings, toy.library())
    server.reach()
    assert toy.given["token"] == "root:s3cret" and "s3cret" not in repr(settings)
    away = Milvus(settings, toy.library())
    toy.away = True
    with pytest.raises(ConfigError) as caught:
        away.reach()
    assert str(caught.value) == (
        f"Milvus at {SETTINGS.address} does not answer (list_collections: no route with ***): start it, "
        'correct [milvus], or set answer.index = "flat"'
    )
    with pytest.raises(GalleryError):
        server.collections()
    assert "s3cret" not in caplog.text


def test_settings_that_cannot_work_are_refused() -> None:
    cases = [
        ({"answer": {"index": "milvus"}}, "names no server"),
        ({"answer": {"index": "milvus-ivf"}, "milvus": {"address": "a.db"}}, "no BIN_IVF_FLAT"),
        ({"milvus": {"address": "http://user:s3cret@host:1"}}, "without user and password"),
        ({"milvus": {"token": "s3cret"}}, "does not stand in the configuration"),
        ({"milvus": {"token_file": "a", "token_env": "B"}}, "leave one out"),
    ]
    for settings, message in cases:
        with pytest.raises(ValidationError) as caught:
            Config.model_validate(settings)
        said = first_fault(caught.value)[0]  # as the reader of the file says it
        assert message in said and "s3cret" not in said, settings
    with pytest.raises(ConfigError, match=r"set milvus\.address"):
        Searched("faiss", "cpu", "milvus").index(BITS, ITEMS)


def test_where_it_is_decides_no_answer_and_that_it_searches_does() -> None:
    one, other = (
        Config.model_validate({"answer": {"index": "milvus"}, "milvus": {"address": f"{name}.db"}})
        for name in "ab"
    )
    assert one.decisions() == other.decisions() != Config().decisions()


def test_without_pymilvus_one_sentence_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pymilvus'] = None\n"
        "from core.milvus import MilvusConfig\nfrom index.milvus import Milvus\n"
        "try: Milvus(MilvusConfig(address='a.db'))\nexcept Exception as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'qshift[milvus]'" in found.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("milvus_lite") is None, reason="no embedded Milvus: pip install 'qshift[milvus-embedded]'"
)
def test_the_embedded_form_answers_as_flat_does(tmp_path: Path) -> None:
    """A gallery in its folder: searched, changed, loaded again."""
    count, draw = 10_200, np.random.default_rng(1)
    codes = draw.integers(0, 4, (count, BITS // 8), dtype=np.uint8)
    queries = draw.integers(0, 4, (16, BITS // 8), dtype=np.uint8)
    names = [f"item {number}" for number in range(count)]
    VersionedGallery(BITS, names, codes, [()] * count, backend="exact").save(tmp_path / "gallery")
    server = Milvus(MilvusConfig(address=str(tmp_path / "milvus.db"), timeout_seconds=60))
    server.reach()
    flat = VersionedGallery.load(tmp_path / "gallery")
    gallery = VersionedGallery.load(tmp_path / "gallery", kind="milvus", server=server)
    assert len(server.collections()) == 1 and gallery.version == flat.version
    for step in range(3):
        assert same(gallery.search(queries, K), flat.search(queries, K)), step
        assert all(
            getattr(part.segment.index, "served", True) or len(part) < 10_000 for part in gallery.parts
        )
        if step == 0:
            gallery, flat = gallery.remove(names[:700]), flat.remove(names[:700])
        elif step == 1:
            gallery, flat = (made.add(names[:3], codes[:3], [()] * 3) for made in (gallery, flat))
    (used,) = {getattr(part.segment.index, "_name", "") for part in gallery.parts} - {""}
    gc.collect()
    server.sweep()
    assert server.collections() == [used], "what no version uses is gone"
    server.drop(used)
    assert same(gallery.search(queries, K), flat.search(queries, K)), "who dropped it changed no answer"


@pytest.mark.slow
def test_a_server_that_is_not_there_ends_the_start_in_one_sentence() -> None:
    pytest.importorskip("pymilvus", reason="no pymilvus: pip install 'qshift[milvus]'")
    settings = MilvusConfig(address="http://127.0.0.1:1", timeout_seconds=2)
    with pytest.raises(ConfigError) as caught:
        Milvus(settings).reach()
    said = str(caught.value)
    assert said.startswith("Milvus at http://127.0.0.1:1 does not answer (") and "\n" not in said
    assert said.endswith('start it, correct [milvus], or set answer.index = "flat"')
