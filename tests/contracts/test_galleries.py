"""What `core.protocols.Gallery` promises, of every gallery: against plain Python, item by item."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.errors import GalleryError
from core.filters import filter_of
from core.protocols import Gallery
from core.types import Codes, Hits
from index.codes import NO_DISTANCE, NO_KEY
from index.gallery import VersionedGallery
from index.merging import Tiers, tidied
from index.versions import GalleryVersions

BITS, ITEMS, WIDTH, ROWS = 16, 40, 8, 6
RNG = np.random.default_rng(0)
KEYS = np.sort(RNG.permutation(500)[:ITEMS]).astype(np.int64)
CODES = RNG.integers(0, 4, (ITEMS, BITS // 8)).astype(np.uint8)  # so few that most distances are ties
FEATURES = RNG.normal(size=(ITEMS, WIDTH)).astype(np.float32)
NAMES = [f"item {number}" for number in range(ITEMS)]
LABELS = [f"class {number % 3}" for number in range(ITEMS)]
QUERIES = RNG.integers(0, 4, (ROWS, BITS // 8)).astype(np.uint8)


def made(backend: str, count: int = ITEMS) -> VersionedGallery:
    order = np.random.default_rng(1).permutation(count)  # columns come in any order of keys
    return VersionedGallery(
        BITS, [NAMES[i] for i in order], CODES[order], [LABELS[i] for i in order], FEATURES[order],
        keys=KEYS[order], backend=backend, attributes=[{"part": int(i) % 4} for i in order],
    )  # fmt: skip


def reloaded(backend: str, folder: Path) -> VersionedGallery:
    return _reloaded(made(backend), folder, backend)


def _reloaded(gallery: VersionedGallery, folder: Path, backend: str = "faiss") -> VersionedGallery:
    gallery.save(folder)
    return VersionedGallery.load(folder, backend=backend)


def in_segments(backend: str) -> VersionedGallery:
    """The same items in segments, each with some that are gone; keys 0..500 stand for additions in turn."""
    every = VersionedGallery(BITS, ["0"], CODES[:1], [()], FEATURES[:1], backend=backend)
    at = {int(key): row for row, key in enumerate(KEYS)}
    for start in range(1 if 0 not in at else 0, 501, 125):
        keys = range(max(1, start), min(501, start + 125))
        names = [NAMES[at[key]] if key in at else f"gone {key}" for key in keys]
        rows = [at.get(key, 0) for key in keys]
        labels = [LABELS[at[key]] if key in at else "gone" for key in keys]
        said = [{"part": at[key] % 4} if key in at else {"part": 1} for key in keys]
        every = every.add(names, CODES[rows], labels, FEATURES[rows], attributes=said)
    return every.remove(["0", *(f"gone {key}" for key in range(1, 501) if key not in at)])


BATTERY: dict[str, Callable[[Path], Gallery]] = {
    "VersionedGallery exact": lambda _: made("exact"),
    "VersionedGallery faiss": lambda _: made("faiss"),
    "VersionedGallery exact, loaded": lambda folder: reloaded("exact", folder),
    "VersionedGallery faiss, loaded": lambda folder: reloaded("faiss", folder),
    "VersionedGallery grown and shrunk": lambda _: _changed(),
    "VersionedGallery of segments, exact": lambda _: in_segments("exact"),
    "VersionedGallery of segments, faiss": lambda _: in_segments("faiss"),
    "VersionedGallery of segments, loaded": lambda folder: _reloaded(in_segments("faiss"), folder),
    "VersionedGallery of segments, merged": lambda _: tidied(in_segments("faiss"), Tiers(2)),
    "VersionedGallery swapped in": lambda _: _swapped(),
}
"""Class, and how it came about."""


def _changed() -> VersionedGallery:
    more = made("faiss").add(["more"], CODES[:1], ["class 0"], FEATURES[:1])
    return more.remove(["more"])


def _swapped() -> VersionedGallery:
    versions = GalleryVersions(made("exact", 3))
    versions.swap(made("exact"))
    return versions.current()


@pytest.fixture(params=BATTERY)
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Gallery:
    made_one = BATTERY[request.param](tmp_path / "gallery")
    assert type(made_one).__name__ == request.param.split()[0]
    return made_one


def distance(query: np.ndarray, code: np.ndarray) -> int:
    return sum((int(x) ^ int(y)).bit_count() for x, y in zip(query, code, strict=True))


def slow(query: np.ndarray, k: int, allowed: set[int] | None = None) -> list[tuple[int, int]]:
    """(distance, key) of one query, as the definition has it."""
    items = [
        (distance(query, code), int(key))
        for key, code in zip(KEYS, CODES)
        if allowed is None or int(key) in allowed
    ]
    return (sorted(items)[:k] + [(NO_DISTANCE, NO_KEY)] * k)[:k]


def pairs(hits: Hits) -> list[list[tuple[int, int]]]:
    assert hits.keys.dtype == np.int64 and hits.distances.dtype == np.int32
    return [list(zip(*row)) for row in zip(hits.distances.tolist(), hits.keys.tolist())]


def test_it_is_described(gallery: Gallery, request: pytest.FixtureRequest) -> None:
    assert len(gallery) == ITEMS and gallery.bits == BITS and len(gallery.version) == 16
    # One that began with other items has a name of its own: index/lineage.py.
    assert (gallery.version == made("exact").version) is ("segments" not in request.node.name)
    assert gallery.keys().tolist() == KEYS.tolist()
    assert [gallery.identifier(key) for key in KEYS.tolist()] == NAMES


@pytest.mark.parametrize("k", [1, 7, ITEMS, ITEMS + 5])
def test_the_nearest_come_by_distance_and_then_by_key(gallery: Gallery, k: int) -> None:
    assert pairs(gallery.search(QUERIES, k)) == [slow(query, k) for query in QUERIES]


def test_only_what_is_allowed_is_found(gallery: Gallery) -> None:
    allowed = {*KEYS[::3].tolist(), 1_000_000}
    found = gallery.search(QUERIES, 20, np.array(sorted(allowed)))
    assert pairs(found) == [slow(query, 20, allowed) for query in QUERIES]
    nothing = gallery.search(QUERIES, 2, np.empty(0, np.int64))
    assert pairs(nothing) == [[(NO_DISTANCE, NO_KEY)] * 2] * ROWS


def test_a_filter_allows_what_it_says(gallery: Gallery) -> None:
    assert gallery.allowed(()).tolist() == KEYS.tolist()
    assert gallery.allowed(filter_of({"part": [1, 3]})).tolist() == KEYS[1::2].tolist()
    assert gallery.allowed(filter_of({"part": {"to": 0}})).tolist() == KEYS[::4].tolist()
    assert gallery.allowed(filter_of({"part": "1"})).tolist() == []


def test_one_query_and_none(gallery: Gallery) -> None:
    together = gallery.search(QUERIES, 5)
    for row in range(ROWS):
        assert np.array_equal(gallery.search(QUERIES[row : row + 1], 5).keys[0], together.keys[row])
    assert gallery.search(QUERIES[:0], 5).keys.shape == (0, 5)
    assert gallery.distances(QUERIES[:0]).shape == (0, ITEMS)


def test_distances_stand_in_position_order(gallery: Gallery) -> None:
    found = gallery.distances(QUERIES)
    assert found.dtype == np.int32
    assert found.tolist() == [[distance(query, code) for code in CODES] for query in QUERIES]


def test_columns_by_key(gallery: Gallery) -> None:
    asked = np.array([[KEYS[3], NO_KEY], [KEYS[3], KEYS[0]]])
    features, codes = gallery.features(asked), gallery.codes_of(asked)
    assert features.shape == (2, 2, WIDTH) and features.dtype == np.float32
    assert codes.shape == (2, 2, BITS // 8) and codes.dtype == np.uint8
    assert not features[0, 1].any() and not codes[0, 1].any()
    for place, item in (((0, 0), 3), ((1, 0), 3), ((1, 1), 0)):
        expected = FEATURES[item] / np.linalg.norm(FEATURES[item])
        np.testing.assert_allclose(features[place], expected, atol=2e-3)  # kept as float16
        np.testing.assert_allclose(np.linalg.norm(features[place]), 1.0, atol=1e-6)
        assert codes[place].tolist() == CODES[item].tolist()
    assert gallery.features(np.empty((0, 3), np.int64)).shape == (0, 3, WIDTH)


def test_carriers_of_a_label(gallery: Gallery) -> None:
    assert gallery.carriers("class 1").tolist() == list(range(1, ITEMS, 3))
    assert gallery.carriers("unheard of").tolist() == []


@pytest.mark.parametrize("codes", [np.zeros((2, 3), np.uint8), np.zeros(2, np.uint8)])
def test_codes_of_another_width_are_refused(gallery: Gallery, codes: Codes) -> None:
    for ask in (lambda: gallery.search(codes, 3), lambda: gallery.distances(codes)):
        with pytest.raises(GalleryError):
            ask()


def test_strangers_are_refused(gallery: Gallery) -> None:
    stranger = int(KEYS[-1]) + 1
    for ask in (
        lambda: gallery.features(np.array([stranger])),
        lambda: gallery.codes_of(np.array([stranger])),
        lambda: gallery.identifier(stranger),
        lambda: gallery.search(QUERIES, 0),
    ):
        with pytest.raises(GalleryError):
            ask()


def test_asking_changes_nothing(gallery: Gallery) -> None:
    version = gallery.version
    before = gallery.search(QUERIES, 9)
    before.keys[:], before.distances[:] = 0, 0  # what was handed out is the asker's
    gallery.distances(QUERIES)[:] = 0
    gallery.features(KEYS[:2])[:] = 0
    gallery.codes_of(KEYS[:2])[:] = 0
    gallery.carriers("class 1")
    test_the_nearest_come_by_distance_and_then_by_key(gallery, 9)
    test_columns_by_key(gallery)
    assert gallery.version == version
