"""A gallery that changes: against one built from nothing of the same items, after every change."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from core.errors import ArtifactError, GalleryError
from index.folder import changing, newest
from index.gallery import Backend, Display, VersionedGallery
from index.lineage import Lineage
from index.living import SPARE
from index.merging import Tiers, merge, tidied

BITS, WIDTH, SMALL = 16, 5, Tiers(3, 8)
QUERIES = np.random.default_rng(1).integers(0, 4, (7, BITS // 8)).astype(np.uint8)
BACKENDS: list[Backend] = ["exact", "faiss"]


@dataclass
class Model:
    """What a gallery has to hold, as a plain dictionary: name -> key, code, label, feature, title."""

    items: dict[str, tuple[int, np.ndarray, str, np.ndarray, Display]] = field(default_factory=dict)
    next_key: int = 0

    def built(self, backend: Backend) -> VersionedGallery:
        names = list(self.items)
        keys, codes, labels, features, displays = (
            list(column) for column in zip(*self.items.values(), strict=True)
        )
        return VersionedGallery(
            BITS, names, np.array(codes), labels, np.array(features), displays, np.array(keys),
            backend=backend, base_version="b", next_key=self.next_key,
        )  # fmt: skip


class Changed:
    """A gallery and its model, changed together."""

    def __init__(self, count: int, backend: Backend, seed: int = 0) -> None:
        self.rng, self.backend, self.model, self._named = np.random.default_rng(seed), backend, Model(), 0
        self.gallery = VersionedGallery(
            BITS, *self.more([self.name() for _ in range(count)]), backend=backend, base_version="b"
        )

    def name(self) -> str:
        self._named += 1
        return f"item {self._named}"

    def more(self, names: list[str]) -> tuple[list[str], np.ndarray, list[str], np.ndarray, list[Display]]:
        """Columns of items with these names, which the model now holds, too."""
        codes = self.rng.integers(0, 4, (len(names), BITS // 8)).astype(np.uint8)  # so few: mostly ties
        labels = [f"class {number}" for number in self.rng.integers(0, 3, len(names))]
        features = self.rng.normal(size=(len(names), WIDTH)).astype(np.float32)
        features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
        displays = [Display(f"{name}, {self.model.next_key}") for name in names]
        for row, name in enumerate(names):
            key = self.model.next_key + row
            self.model.items[name] = (key, codes[row], labels[row], features[row], displays[row])
        self.model.next_key += len(names)
        return names, codes, labels, features, displays

    def some(self, most: int) -> list[str]:
        names = list(self.model.items)
        return [names[i] for i in self.rng.permutation(len(names))[: self.rng.integers(1, most + 1)]]

    def add(self, count: int) -> None:
        self.gallery = self.gallery.add(*self.more([self.name() for _ in range(count)]))

    def upsert(self, names: list[str]) -> None:
        self.gallery = self.gallery.upsert(*self.more(names))

    def remove(self, names: list[str]) -> None:
        self.gallery = self.gallery.remove(names)
        for name in names:
            del self.model.items[name]

    def check(self) -> None:
        same_answers(self.gallery, self.model.built(self.backend))


def same_answers(a: VersionedGallery, b: VersionedGallery) -> None:
    keys = a.keys()
    assert keys.tolist() == b.keys().tolist() and len(a) == len(b)
    for k in (1, 6, len(b), len(b) + 3):
        for allowed in (None, keys[::3], np.array([0, 3, 3, 10**6])):
            x, y = a.search(QUERIES, k, allowed), b.search(QUERIES, k, allowed)
            assert x.keys.tolist() == y.keys.tolist() and x.distances.tolist() == y.distances.tolist(), k
    assert a.distances(QUERIES).tolist() == b.distances(QUERIES).tolist()
    asked = np.append(keys, -1)[np.random.default_rng(2).permutation(len(keys) + 1)]
    assert a.features(asked).tobytes() == b.features(asked).tobytes()
    assert a.codes_of(asked).tolist() == b.codes_of(asked).tolist()
    for label in ("class 0", "class 1", "class 2", "unheard of"):
        assert a.carriers(label).tolist() == b.carriers(label).tolist()
        assert a.relevant(label).tolist() == b.relevant(label).tolist()
    assert a.titles() == b.titles()
    for key in keys.tolist():
        assert a.identifier(key) == b.identifier(key) and a.key_of(a.identifier(key)) == key
        assert a.labels_of(key) == b.labels_of(key) and a.display(key) == b.display(key)
        assert a.codes_of(np.array(key)).tolist() == b.codes_of(np.array(key)).tolist()
        assert a.features(np.array(key)).tobytes() == b.features(np.array(key)).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_changes_answer_like_a_gallery_built_from_nothing(
    backend: Backend, seed: int, tmp_path: Path
) -> None:
    """Adds, removals, upserts, merges, saving and loading, in any order."""
    changed = Changed(30, backend, seed)
    done, most = set(), 1
    for _ in range(40):
        what = changed.rng.choice(["add", "remove", "upsert", "both", "merge", "save"])
        done.add(str(what))
        before, count = changed.gallery.version, len(changed.model.items)
        match what:
            case "add":
                changed.add(int(changed.rng.integers(1, 9)))
            case "remove" if len(changed.gallery) > 9:
                changed.remove(changed.some(8))
            case "upsert":
                changed.upsert(changed.some(5))
            case "both":
                changed.upsert([*changed.some(3), changed.name()])
            case "merge":
                changed.gallery = tidied(changed.gallery, SMALL)
            case "save":
                changed.gallery.save(tmp_path / "g")
                changed.gallery = VersionedGallery.load(tmp_path / "g", "b", backend=backend)
        same = what in ("merge", "save") or (what == "remove" and len(changed.model.items) == count)
        assert (changed.gallery.version == before) is same, what
        most = max(most, len(changed.gallery.parts))
        changed.check()
    assert len(done) == 6 and most > 2


def test_equal_items_have_an_equal_version_however_they_came_about() -> None:
    """Of one origin: grouping, order of removals, what came and went between, and merges do not count."""
    one, other = Changed(20, "exact"), Changed(20, "exact")
    assert one.gallery.version == one.model.built("exact").version
    start = one.gallery.version
    names, codes, labels, features, displays = one.more(["a", "b", "c"])
    whole = one.gallery.upsert(names, codes, labels, features, displays).remove(["item 3", "b"])
    step = other.gallery.remove(["item 3"])
    for i in range(3):
        step = step.add([names[i]], codes[i : i + 1], [labels[i]], features[i : i + 1])
    assert step.version != whole.version
    step = step.remove(["b"])
    assert step.version == whole.version == tidied(step, Tiers(2)).version != start
    assert whole.remove(["a"]).version != whole.remove(["c"]).version
    # As it was: by the name it was built with.
    assert one.gallery.add(["a"], codes[:1], [labels[0]], features[:1]).remove(["a"]).version == start
    # Any column counts, but not what pages show.
    given = {"ids": ["a"], "codes": codes[:1], "labels": ["x"], "features": features[:1]}
    versions = {
        one.gallery.add(**{**given, **other}).version
        for other in (
            {}, {"ids": ["b"]}, {"codes": codes[:1] ^ 1}, {"labels": ["y"]}, {"features": features[1:2]},
            {"displays": [Display("shown")]},
        )
    }  # fmt: skip
    assert len(versions) == 5


def test_items_of_a_log_have_its_keys_however_it_is_cut() -> None:
    lineage = Lineage("", 100)
    assert lineage.keys(100, 3).tolist() == [100, 101, 102]
    whole = lineage.keys(100, 4, [0, 2, 7, 8]).tolist()
    assert whole == [100, 102, 107, 108]
    parts = [*lineage.keys(100, 2, [0, 2]).tolist(), *lineage.keys(103, 2, [7, 8]).tolist()]
    assert parts == whole
    # 103 to 106 were given out by hand: no key twice, and the log catches up.
    assert lineage.keys(107, 4, [3, 4, 5, 20]).tolist() == [107, 108, 109, 120]


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_removed_neighbours_hide_nobody(backend: Backend) -> None:
    """More of the nearest are gone than a first search makes room for."""
    changed = Changed(0, backend)
    codes = np.zeros((5 * SPARE, BITS // 8), np.uint8)
    codes[4 * SPARE :, 0] = 1  # a little farther away
    names = [f"item {number}" for number in range(len(codes))]
    gallery = VersionedGallery(BITS, names, codes, names, backend=backend).remove(names[: 4 * SPARE - 2])
    queries = np.array([[0, 0], [255, 255]], np.uint8)
    hits = gallery.search(queries, 4)
    assert hits.keys[0].tolist() == [4 * SPARE - 2, 4 * SPARE - 1, 4 * SPARE, 4 * SPARE + 1]
    assert hits.distances[0].tolist() == [0, 0, 1, 1]
    assert hits.keys[1].tolist() == [4 * SPARE, 4 * SPARE + 1, 4 * SPARE + 2, 4 * SPARE + 3]
    assert changed.gallery.search(queries, 1).keys.tolist() == [[-1], [-1]]


def test_a_change_shares_what_it_does_not_change() -> None:
    changed = Changed(50, "exact")
    first = changed.gallery
    changed.add(3)
    changed.remove(["item 1"])
    assert [part.segment for part in changed.gallery.parts][:1] == [first.parts[0].segment]
    assert first.parts[0].dead is None and len(first) == 50, "the version before is as it was"
    assert len(changed.gallery.parts) == 2
    changed.remove(["item 51", "item 52", "item 53"])
    assert len(changed.gallery.parts) == 1, "a segment of which nothing is left goes"


def test_merging_keeps_few_segments_and_rewrites_the_large_one_rarely() -> None:
    changed = Changed(600, "exact")
    large, most = changed.gallery.parts[0].segment, 0
    for _ in range(60):
        changed.add(2)
        changed.gallery = tidied(changed.gallery, SMALL)
        most = max(most, len(changed.gallery.parts))
    assert changed.gallery.parts[0].segment is large
    assert most <= 1 + 4 * (SMALL.fan - 1)
    changed.remove([f"item {number}" for number in range(1, 200)])
    changed.gallery = tidied(changed.gallery, SMALL)
    assert changed.gallery.parts[0].segment is not large and not changed.gallery.parts[0].gone
    changed.check()


def test_a_merge_lands_on_whatever_version_there_is_by_then() -> None:
    changed = Changed(20, "exact")
    for _ in range(4):
        changed.add(2)
    begun = changed.gallery
    slow, quick = merge(begun, Tiers(4, 8)), merge(begun, Tiers(4, 8))
    assert slow is not None and quick is not None
    changed.remove(["item 2", "item 21"])
    changed.add(3)
    changed.upsert(["item 24"])
    version = changed.gallery.version
    changed.gallery = slow.into(changed.gallery)
    assert changed.gallery.version == version and len(changed.gallery.parts) == 4
    changed.check()
    # Another merge of the same segments comes too late, and does nothing.
    assert quick.into(changed.gallery).parts == changed.gallery.parts
    changed.remove([changed.gallery.identifier(key) for key in slow.after.keys.tolist() if key in
                    changed.gallery.keys().tolist()])  # fmt: skip
    changed.check()
    assert slow.into(changed.gallery) is changed.gallery


def test_merging_while_another_thread_changes_loses_nothing() -> None:
    changed = Changed(40, "faiss")
    for _ in range(30):
        changed.add(2)
        began = changed.gallery
        changed.remove(changed.some(2))
        changed.upsert(changed.some(2))
        merged = merge(began, SMALL)
        if merged is not None:
            changed.gallery = merged.into(changed.gallery)
        changed.check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g.add(["item 1"], np.zeros((1, 2), np.uint8), ["x"], np.ones((1, WIDTH))), "new id"),
        (lambda g: g.upsert(["n", "n"], np.zeros((2, 2), np.uint8), ["x"] * 2, np.ones((2, WIDTH))), "once"),
        (lambda g: g.upsert(["n"], np.zeros((1, 2), np.uint8), ["x"]), "for all items or for none"),
        (lambda g: g.upsert(["n"], np.zeros((1, 2), np.uint8), ["x"], np.ones((1, 3))), "features"),
        (lambda g: g.upsert(["n"], np.zeros((1, 3), np.uint8), ["x"], np.ones((1, WIDTH))), "of 16 bits"),
        (lambda g: g.upsert(["n"], np.zeros((1, 2), np.uint8), ["x"], np.zeros((1, WIDTH))), "none zero"),
        (lambda g: g.remove(["item 1", "nobody"]), "no item is called 'nobody'"),
    ],
)  # fmt: skip
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(change: object, said: str) -> None:
    changed = Changed(5, "exact")
    changed.add(2)
    with pytest.raises(GalleryError, match=said):
        change(changed.gallery)  # type: ignore[operator]
    changed.check()
    nothing = ([], np.empty((0, 2), np.uint8), [], np.empty((0, WIDTH)))
    assert changed.gallery.upsert(*nothing) is changed.gallery


# -- folders --------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_saving_writes_what_is_new_alone(tmp_path: Path) -> None:
    changed = Changed(30, "exact")
    changed.gallery.save(tmp_path / "g")
    plain = files(tmp_path / "g")
    assert set(plain) == {"manifest.json", "gallery.safetensors", "items.json"}
    changed.add(3)
    changed.remove(["item 7"])
    changed.gallery.save(tmp_path / "g")
    after = files(tmp_path / "g")
    assert all(after[name] == plain[name] for name in ("gallery.safetensors", "items.json"))
    kinds = sorted(name.split("-")[0] for name in set(after) - set(plain))
    assert kinds == ["gone", "manifest", "segment", "segment"]
    again = VersionedGallery.load(tmp_path / "g", "b", backend="exact")
    assert again.version == changed.gallery.version
    same_answers(again, changed.gallery)
    again.add(*changed.more(["late"])).save(tmp_path / "g")
    kept = {name: time for name, time in after.items() if name.startswith(("segment", "gallery", "items"))}
    assert kept.items() <= files(tmp_path / "g").items()


def age(folder: Path) -> None:
    """All that was replaced has been so for more than an hour."""
    for path in folder.glob("manifest-*.json"):
        os.utime(path, (1e9, 1e9))


def test_a_version_stays_for_an_hour_after_it_was_replaced(tmp_path: Path) -> None:
    changed, folder = Changed(30, "exact"), tmp_path / "g"
    made = [changed.gallery]
    made[0].save(folder)
    for _ in range(2):
        changed.add(3)
        changed.remove(changed.some(2))
        made.append(changed.gallery)
        made[-1].save(folder)
    made.append(tidied(made[-1], Tiers(2, 64)))
    made[-1].save(folder)
    assert len(made[-1].parts) == 1 and newest(folder) == made[-1].version == made[-2].version
    other = Changed(4, "exact", seed=9).gallery  # a whole new one
    other.save(folder)
    for gallery in (*made, other):
        again = VersionedGallery.load(folder, "b", backend="exact", version=gallery.version)
        assert again.version == gallery.version
        same_answers(again, gallery)
    same_answers(VersionedGallery.load(folder, "b", backend="exact"), other)
    before = files(folder)
    age(folder)
    other.add(*changed.more(["late"])).save(folder)
    # Gone are the aged manifests and what they alone have named; not yet what was just replaced.
    assert not {f"manifest-{gallery.version}.json" for gallery in made} & set(files(folder))
    assert not {name for name in before if name in ("gallery.safetensors", "items.json")} & set(files(folder))
    assert len(files(folder)) == 2 + 2 * 2, sorted(files(folder))
    VersionedGallery.load(folder, "b", backend="exact", version=other.version)
    with pytest.raises(ArtifactError, match="16 hex digits"):
        VersionedGallery.load(folder, "b", backend="exact", version="../../elsewhere")
    with pytest.raises(ArtifactError, match=f"manifest-{made[0].version}.json is missing"):
        VersionedGallery.load(folder, "b", backend="exact", version=made[0].version)


def test_what_is_in_memory_is_not_read_again(tmp_path: Path) -> None:
    changed, folder = Changed(30, "exact"), tmp_path / "g"
    changed.gallery.save(folder)
    here = VersionedGallery.load(folder, backend="exact")
    changed.add(3)
    changed.remove(["item 7"])
    changed.gallery.save(folder)
    (folder / "gallery.safetensors").write_bytes(b"nobody reads this")
    again = VersionedGallery.load(folder, backend="exact", beside=here)
    assert again.parts[0].segment is here.parts[0].segment and len(again.parts) == 2
    same_answers(again, changed.gallery)
    with pytest.raises(ArtifactError):
        VersionedGallery.load(folder, backend="exact")


def test_a_changed_gallery_goes_into_a_new_folder_and_another_one_over_it(tmp_path: Path) -> None:
    changed = Changed(30, "exact")
    changed.add(3)
    changed.remove(["item 7"])
    for name in ("first", "second"):
        changed.gallery.save(tmp_path / name)
        again = VersionedGallery.load(tmp_path / name, "b", backend="exact")
        assert again.version == changed.gallery.version
        same_answers(again, changed.gallery)
    other = Changed(4, "exact", seed=9).gallery
    other.save(tmp_path / "first")
    same_answers(VersionedGallery.load(tmp_path / "first", backend="exact"), other)
    # Of another base nothing may stay.
    foreign = VersionedGallery(
        BITS, ["a"], np.zeros((1, 2), np.uint8), ["x"], backend="exact", base_version="c"
    )
    foreign.save(tmp_path / "first")
    assert set(files(tmp_path / "first")) == {"manifest.json", "gallery.safetensors", "items.json"}


def test_a_save_that_is_cut_short_leaves_the_version_before(tmp_path: Path) -> None:
    """Everything but the last step: the manifest still names what it named."""
    changed = Changed(30, "exact")
    changed.gallery.save(tmp_path / "g")
    before, manifest = changed.gallery.version, (tmp_path / "g" / "manifest.json").read_bytes()
    changed.add(3)
    changed.gallery.save(tmp_path / "g")
    (tmp_path / "g" / "manifest.json").write_bytes(manifest)
    assert VersionedGallery.load(tmp_path / "g", backend="exact").version == before
    changed.gallery.save(tmp_path / "g")
    assert VersionedGallery.load(tmp_path / "g", backend="exact").version == changed.gallery.version


def test_damaged_segments_are_refused(tmp_path: Path) -> None:
    changed = Changed(30, "exact")
    changed.gallery.save(tmp_path / "g")
    changed.add(3)
    changed.remove(["item 7"])
    changed.gallery.save(tmp_path / "g")
    for path in sorted((tmp_path / "g").glob("*-*.*")):
        if path.name.startswith("manifest"):
            continue
        content = path.read_bytes()
        for broken in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), None):
            path.write_bytes(broken) if broken is not None else path.unlink()
            with pytest.raises(ArtifactError):
                VersionedGallery.load(tmp_path / "g", backend="exact")
        path.write_bytes(content)
    manifest = tmp_path / "g" / "manifest.json"
    document = json.loads(manifest.read_text())
    for change in (
        {"segments": document["segments"][::-1]}, {"segments": []}, {"segments": [["a", "b"]]},
        {"gone": ""}, {"gone": 7}, {"items": 31}, {"lineage": {}}, {"next_key": "x"}, {"bits": 8},
        {"lineage": {**document["lineage"], "added": "0"}}, {"segments": document["segments"][:1]},
    ):  # fmt: skip
        manifest.write_text(json.dumps({**document, **change}))
        with pytest.raises(ArtifactError):
            VersionedGallery.load(tmp_path / "g", backend="exact")
    manifest.write_text(json.dumps(document))
    VersionedGallery.load(tmp_path / "g", backend="exact")


def test_one_process_at_a_time_changes_a_folder(tmp_path: Path) -> None:
    Changed(3, "exact").gallery.save(tmp_path / "g")
    refused = pytest.raises(ArtifactError, match="another process")
    with changing(tmp_path / "g"), refused, changing(tmp_path / "g"):
        raise AssertionError("nobody gets here")
    with changing(tmp_path / "g"):
        pass
    with pytest.raises(ArtifactError, match="build it first"), changing(tmp_path / "nothing"):
        pass
