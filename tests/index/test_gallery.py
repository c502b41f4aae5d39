"""A gallery version, its folder, and the versions a service keeps."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from core.errors import ArtifactError, GalleryError
from core.protocols import Gallery
from index.codes import NO_KEY
from index.gallery import Backend, Display, VersionedGallery
from index.versions import GalleryVersions

BACKENDS: list[Backend] = ["faiss", "exact"]


def build(count: int = 40, backend: Backend = "faiss", seed: int = 0, **changes: object) -> VersionedGallery:
    rng = np.random.default_rng(seed)
    given: dict[str, object] = {
        "ids": [f"item-{i}" for i in range(count)],
        "codes": rng.integers(0, 3, (count, 8), dtype=np.uint8),
        "labels": [("even", "small")[: 1 + (i < 5)] if i % 2 == 0 else "odd" for i in range(count)],
        "features": rng.normal(size=(count, 6)),
        "displays": [Display(f"Item {i}", f"{i}.png") for i in range(count)],
    }
    return VersionedGallery(64, **{**given, **changes}, backend=backend)  # type: ignore[arg-type]


def assert_equal(a: VersionedGallery, b: VersionedGallery) -> None:
    assert a.version == b.version and len(a) == len(b) and a.bits == b.bits
    keys = a.keys()
    assert np.array_equal(keys, b.keys())
    assert np.array_equal(a.codes_of(keys), b.codes_of(keys))
    if a.width:
        assert a.features(keys).tobytes() == b.features(keys).tobytes()
    for key in keys.tolist():
        assert a.identifier(key) == b.identifier(key)
        assert a.labels_of(key) == b.labels_of(key)
        assert a.display(key) == b.display(key)


def test_is_a_gallery() -> None:
    gallery: Gallery = build()
    assert gallery.bits == 64 and len(gallery) == 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_out_of_order_keep_every_column_together(backend: Backend) -> None:
    plain, order = build(40, backend), np.random.default_rng(1).permutation(40)
    rng = np.random.default_rng(0)
    codes, features = rng.integers(0, 3, (40, 8), dtype=np.uint8), rng.normal(size=(40, 6))
    mixed = VersionedGallery(
        64,
        [f"item-{i}" for i in order],
        codes[order],
        [plain.labels_of(int(i)) for i in order],
        features[order],
        [Display(f"Item {i}", f"{i}.png") for i in order],
        keys=order,
        backend=backend,
    )
    assert_equal(mixed, plain)
    queries = codes[:9]
    assert np.array_equal(mixed.search(queries, 12).keys, plain.search(queries, 12).keys)


def test_backends_agree() -> None:
    faiss, exact = build(60, "faiss"), build(60, "exact")
    assert faiss.version == exact.version
    queries = np.random.default_rng(3).integers(0, 3, (20, 8), dtype=np.uint8)
    for k, allowed in ((5, None), (70, None), (9, np.array([3, 50, 8, 8, 999]))):
        a, b = faiss.search(queries, k, allowed), exact.search(queries, k, allowed)
        assert np.array_equal(a.keys, b.keys) and np.array_equal(a.distances, b.distances)
    assert np.array_equal(faiss.distances(queries), exact.distances(queries))


def test_columns_by_key() -> None:
    gallery = build()
    assert gallery.identifier(7) == "item-7" and gallery.key_of("item-7") == 7
    assert gallery.labels_of(2) == ("even", "small") and gallery.labels_of(3) == ("odd",)
    assert gallery.display(3) == Display("Item 3", "3.png")
    assert build(displays=None).display(3) == Display("item-3")
    assert np.flatnonzero(gallery.relevant("small")).tolist() == [0, 2, 4]
    assert gallery.relevant("odd").tolist() == [i % 2 == 1 for i in range(40)]
    assert gallery.relevant("unheard of").tolist() == [False] * 40
    for call in (gallery.identifier, gallery.labels_of, gallery.display):
        for key in (40, -1):
            with pytest.raises(GalleryError, match="expected the key"):
                call(key)
    with pytest.raises(GalleryError, match="no item"):
        gallery.key_of("nobody")


def test_features_are_unit_and_zero_for_unused_places() -> None:
    rng = np.random.default_rng(0)
    raw = 5 * rng.normal(size=(40, 6))
    gallery = build(features=raw)
    keys = np.array([[3, NO_KEY, 39], [0, 0, NO_KEY]])
    features = gallery.features(keys)
    assert features.shape == (2, 3, 6) and features.dtype == np.float32
    assert not features[keys == NO_KEY].any()
    expected = raw[keys] / np.linalg.norm(raw[keys], axis=-1, keepdims=True)
    assert np.allclose(features[keys >= 0], expected[keys >= 0], atol=6e-4)  # half a float16 step below 1
    assert np.allclose(np.linalg.norm(features[keys >= 0], axis=-1), 1, atol=3e-7)
    codes = gallery.codes_of(keys)
    assert not codes[keys == NO_KEY].any()
    assert np.array_equal(codes[0, 2], gallery.codes_of(np.array(39)))
    for call in (gallery.features, gallery.codes_of):
        with pytest.raises(GalleryError, match="another version"):
            call(np.array([[1, 40]]))
    assert gallery.features(np.empty((0, 4), np.int64)).shape == (0, 4, 6)
    with pytest.raises(GalleryError, match="build it with features"):
        build(features=None).features(keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["same"] * 40}, "'same' 40 times"),
        ({"ids": ["a"]}, "expected 1 of everything"),
        ({"labels": ["a"]}, "expected 40 of everything"),
        ({"features": np.ones((39, 6))}, "expected 40 of everything"),
        ({"codes": np.zeros((40, 4), np.uint8)}, "of 64 bits"),
        ({"codes": np.zeros((40, 8))}, "uint8"),
        ({"keys": np.zeros(40, np.int64)}, "again"),
        ({"keys": np.arange(40) - 1}, "keys >= 0"),
        ({"features": np.zeros((40, 6))}, "none zero"),
        ({"features": np.full((40, 6), np.nan)}, "finite"),
        ({"backend": "annoy"}, "backend"),
    ],
)
def test_wrong_columns_are_refused(changes: dict[str, object], message: str) -> None:
    backend = changes.pop("backend", "exact")
    with pytest.raises(GalleryError, match=message):
        build(**changes, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("picture", ["/etc/x.png", "../x.png", "a/../../x.png", "..\\x.png"])
def test_pictures_stay_in_their_folder(picture: str) -> None:
    with pytest.raises(GalleryError, match="inside"):
        Display("x", picture)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_gallery(backend: Backend, tmp_path: Path) -> None:
    gallery = build(0, backend, displays=[], features=np.empty((0, 6)))
    hits = gallery.search(np.zeros((2, 8), np.uint8), 3)
    assert hits.keys.tolist() == [[NO_KEY] * 3] * 2
    assert not gallery.features(hits.keys).any() and gallery.features(hits.keys).shape == (2, 3, 6)
    assert not gallery.codes_of(hits.keys).any()
    assert gallery.relevant("odd").shape == (0,)
    gallery.save(tmp_path / "g")
    assert_equal(VersionedGallery.load(tmp_path / "g", backend=backend), gallery)
    grown = gallery.add(["a"], np.ones((1, 8), np.uint8), ["odd"], np.ones((1, 3)))
    assert grown.width == 3 and grown.keys().tolist() == [0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_add_and_remove_make_versions_and_never_reuse_a_key(backend: Backend) -> None:
    first = build(10, backend)
    rng = np.random.default_rng(5)
    second = first.add(
        ["x", "y"], rng.integers(0, 3, (2, 8), dtype=np.uint8), ["odd", []], rng.normal(size=(2, 6))
    )
    assert len(first) == 10 and len(second) == 12 and first.version != second.version
    assert second.key_of("y") == 11 and second.labels_of(11) == () and second.display(11) == Display("y")
    assert first.features(first.keys()).tobytes() == second.features(first.keys()).tobytes()
    third = second.remove(["y", "item-3"])
    assert third.keys().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert third.identifier(4) == "item-4" and np.flatnonzero(third.relevant("odd")).tolist() == [
        1,
        4,
        6,
        8,
        9,
    ]
    query = first.codes_of(np.array([3]))
    assert 3 in first.search(query, 1).keys and 3 not in third.search(query, 20).keys
    fourth = third.add(["z"], query, ["odd"], np.ones((1, 6)))
    assert fourth.key_of("z") == 12
    assert fourth.search(query, 1).keys.tolist() == [[12]]
    assert fourth.remove(["z"]).version == third.version
    for ids in (["item-4"], ["new", "new"]):
        with pytest.raises(GalleryError):
            third.add(ids, np.zeros((len(ids), 8), np.uint8), ["odd"] * len(ids), np.ones((len(ids), 6)))
    with pytest.raises(GalleryError, match="all items or for none"):
        third.add(["new"], query, ["odd"])
    with pytest.raises(GalleryError, match=r"\[B, 6\]"):
        third.add(["new"], query, ["odd"], np.ones((1, 5)))
    with pytest.raises(GalleryError, match="no item"):
        third.remove(["item-3"])
    assert len(first.remove([f"item-{i}" for i in range(10)])) == 0


def test_version_names_the_content() -> None:
    gallery = build()
    assert len(gallery.version) == 16 and gallery.version == build().version
    codes = gallery.codes_of(gallery.keys()).copy()
    codes[0, 0] ^= 1
    others = [
        build(codes=codes),
        build(labels=["other"] * 40),
        build(ids=[f"i{i}" for i in range(40)]),
        build(keys=np.arange(1, 41)),
        build(features=None),
    ]
    assert len({gallery.version, *(other.version for other in others)}) == 6
    assert build(displays=None).version == gallery.version


def test_version_does_not_depend_on_the_process() -> None:
    program = (
        "import numpy as np; from index.gallery import VersionedGallery;"
        "print(VersionedGallery(8, ['a', 'b'], np.array([[1], [2]], np.uint8), ['p', ('q', 'p')],"
        " backend='exact').version)"
    )
    root = Path(__file__).parents[2]
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=root, text=True, capture_output=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1 and len(seen.pop()) == 16


def test_what_it_hands_out_cannot_be_written_to() -> None:
    gallery = build()
    with pytest.raises(ValueError, match="read-only"):
        gallery.keys()[0] = 9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bare", [True, False])
def test_save_and_load(tmp_path: Path, backend: Backend, bare: bool) -> None:
    given: dict[str, Any] = {"features": None, "displays": None} if bare else {}
    gallery = build(
        30, backend, keys=np.random.default_rng(1).permutation(60)[:30], base_version="b1", **given
    )
    gallery = gallery.remove([gallery.identifier(int(gallery.keys()[-1]))])
    gallery.save(tmp_path / "g")
    gallery.save(tmp_path / "g")
    again = VersionedGallery.load(tmp_path / "g", base_version="b1", backend=backend)
    assert_equal(again, gallery)
    assert again.base_version == "b1"
    more = (["new"], np.zeros((1, 8), np.uint8), ["odd"], None if bare else np.ones((1, 6)))
    assert again.add(*more).key_of("new") == gallery.add(*more).key_of("new")
    VersionedGallery.load(tmp_path / "g")
    with pytest.raises(ArtifactError, match="rebuild the gallery"):
        VersionedGallery.load(tmp_path / "g", base_version="b2")


@pytest.mark.parametrize("name", ["gallery.safetensors", "items.json"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    build().save(tmp_path / "g")
    file = tmp_path / "g" / name
    content = file.read_bytes()
    for broken in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(broken)
        with pytest.raises(ArtifactError):
            VersionedGallery.load(tmp_path / "g")
    file.unlink()
    with pytest.raises(ArtifactError):
        VersionedGallery.load(tmp_path / "g")
    with pytest.raises(ArtifactError, match="build it first"):
        VersionedGallery.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "0" * 16},
        {"bits": 32},
        {"bits": "64"},
        {"files": {}},
        {"next_key": None},
        {"kind": "base"},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    build().save(tmp_path / "g")
    path = tmp_path / "g" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ArtifactError):
        VersionedGallery.load(tmp_path / "g")
    for name in ("version", "bits", "base_version", "next_key"):
        path.write_text(json.dumps({k: v for k, v in manifest.items() if k != name}))
        with pytest.raises(ArtifactError):
            VersionedGallery.load(tmp_path / "g")


def test_a_service_keeps_a_few_versions() -> None:
    galleries = [build(5, "exact", seed=i) for i in range(6)]
    versions = GalleryVersions(galleries[0])
    for old, new in pairwise(galleries):
        assert versions.current() is old
        assert versions.swap(new) is old
    assert versions.versions() == tuple(g.version for g in galleries[2:])
    assert versions.version(galleries[1].version) is None
    assert versions.version(galleries[2].version) is galleries[2]
    versions.release(galleries[2].version)
    versions.release(galleries[5].version)
    assert versions.version(galleries[2].version) is None and versions.current() is galleries[5]
    versions.swap(galleries[3])
    assert versions.versions() == tuple(galleries[i].version for i in (4, 5, 3))
    versions.swap(galleries[3])
    assert len(versions.versions()) == 3
    for wrong in (
        build(5, "exact", base_version="other"),
        VersionedGallery(8, [], np.empty((0, 1), np.uint8), []),
    ):
        with pytest.raises(GalleryError, match="rebuild"):
            versions.swap(wrong)
    assert versions.current() is galleries[3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_swap_while_another_thread_searches(backend: Backend) -> None:
    """Every search sees one whole version: its hits are those of that version alone."""
    galleries = [build(300, backend, seed=i) for i in range(4)]
    query = np.random.default_rng(7).integers(0, 3, (8, 8), dtype=np.uint8)
    expected = {g.version: g.search(query, 20).keys.tobytes() for g in galleries}
    assert len(set(expected.values())) == 4
    versions, done = GalleryVersions(galleries[0]), Event()
    wrong: list[str] = []
    seen: set[str] = set()

    def search() -> None:
        while not done.is_set():
            gallery = versions.current()
            seen.add(gallery.version)
            if gallery.search(query, 20).keys.tobytes() != expected[gallery.version]:
                wrong.append(gallery.version)

    threads = [Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(2000):
        versions.swap(galleries[turn % 4])
        if turn % 50 == 0:
            done.wait(0.005)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(seen) > 1
