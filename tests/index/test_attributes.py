"""Attributes of items and filters over them, against plain Python, item by item."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.attributes import CHARACTERS, MOST_ATTRIBUTES, MOST_VALUES, attributes_of
from core.config import IndexKind
from core.errors import ArtifactError, GalleryError
from core.filters import MOST_CONDITIONS, AnyOf, Between, document_of, filter_of, wanted
from index.approximate import FEWEST, KINDS
from index.attributes import KEPT, ItemAttributes
from index.gallery import Backend, VersionedGallery
from index.merging import Tiers, tidied

BACKENDS: list[Backend] = ["faiss", "exact"]
BITS, ITEMS = 16, 120
COLOURS, TAGS = ("red", "green", "blue", "żółty"), ("new", "sale", "old", "rare", "2019")


def drawn_item(rng: np.random.Generator) -> dict[str, Any]:
    """A text, a number, whole or not, some texts; an attribute may be missing, or of mixed kinds."""
    found: dict[str, Any] = {}
    if rng.random() < 0.8:
        found["colour"] = COLOURS[rng.integers(4)]
    if rng.random() < 0.8:
        year = int(rng.integers(2015, 2026))
        found["year"] = [year, float(year), year + 0.5, str(year)][rng.integers(4)]
    if rng.random() < 0.8:
        found["tags"] = [TAGS[i] for i in rng.integers(5, size=rng.integers(4))]
    return found


def drawn_condition(rng: np.random.Generator, name: str) -> Any:
    def value() -> Any:
        if name == "year":
            year = int(rng.integers(2014, 2027))
            return [year, year + 0.5, str(year)][rng.integers(3)]
        return (COLOURS if name == "colour" else TAGS)[rng.integers(4)]

    kind = rng.integers(3)
    if kind == 0:
        return value()
    if kind == 1:
        return [value() for _ in range(rng.integers(1, 4))]
    ends = [value(), value()]
    if isinstance(ends[0], str) != isinstance(ends[1], str):
        ends[1] = ends[0]
    low, high = sorted(ends)
    return [{"from": low, "to": high}, {"from": low}, {"to": high}][rng.integers(3)]


def drawn_filter(rng: np.random.Generator) -> dict[str, Any]:
    names = [name for name in ("colour", "year", "tags", "size") if rng.random() < (0.1, 0.5)[name != "size"]]
    return {name: drawn_condition(rng, name) for name in names}


def allows(condition: Any, value: Any) -> bool:
    """The definition, of one item's value."""
    several = value if isinstance(value, list) else [value]
    if isinstance(condition, list):
        return any(allows(one, value) for one in condition)
    if not isinstance(condition, dict):
        return any(isinstance(one, str) == isinstance(condition, str) and one == condition for one in several)
    text = any(isinstance(end, str) for end in condition.values())
    same = [one for one in several if isinstance(one, str) == text]
    low, high = condition.get("from"), condition.get("to")
    return any((low is None or low <= one) and (high is None or one <= high) for one in same)


def allowed(said: dict[str, Any], item: dict[str, Any]) -> bool:
    return all(name in item and allows(condition, item[name]) for name, condition in said.items())


def made(backend: Backend = "exact", seed: int = 0, count: int = ITEMS, **changes: Any) -> VersionedGallery:
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {
        "keys": np.sort(rng.permutation(1000)[:count]).astype(np.int64),
        "attributes": [drawn_item(rng) for _ in range(count)],
        **changes,
    }
    codes = rng.integers(0, 8, (count, BITS // 8), dtype=np.uint8)  # many ties
    names = [f"item {number}" for number in range(count)]
    return VersionedGallery(BITS, names, codes, names, rng.normal(size=(count, 4)), backend=backend, **given)


def items_of(gallery: VersionedGallery) -> list[dict[str, Any]]:
    keys = gallery.keys().tolist()
    return [json.loads(json.dumps(gallery.attributes_of(key))) for key in keys]  # tuples as lists


def in_segments(backend: Backend) -> VersionedGallery:
    """120 items left of 200 in five segments, each with some that are gone, and one that says nothing."""
    rng, gallery = np.random.default_rng(3), made(backend, count=40)
    for start in range(40, 200, 40):
        names = [f"item {number}" for number in range(start, start + 40)]
        said = None if start == 80 else [drawn_item(rng) for _ in names]
        codes = rng.integers(0, 8, (40, BITS // 8), dtype=np.uint8)
        gallery = gallery.add(names, codes, names, rng.normal(size=(40, 4)), attributes=said)
    gallery = gallery.remove([f"item {number}" for number in range(200) if number % 5 in (1, 3)])
    assert len(gallery) == ITEMS and [part.gone for part in gallery.parts] == [16] * 5
    return gallery


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", [made, in_segments], ids=["one", "several"])
def test_a_thousand_random_filters_find_what_brute_force_finds(
    form: Callable[[Backend], VersionedGallery], backend: Backend
) -> None:
    gallery, rng = form(backend), np.random.default_rng(1)
    keys, items, codes = gallery.keys().tolist(), items_of(gallery), gallery.codes_of(gallery.keys())
    sizes = set()
    for number in range(1000):
        said, k = drawn_filter(rng), int(rng.integers(1, 30))
        query = rng.integers(0, 8, (1, BITS // 8), dtype=np.uint8)
        found = gallery.search(query, k, gallery.allowed(filter_of(said)))
        right = [place for place, item in enumerate(items) if allowed(said, item)]
        near = sorted(
            (sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(query[0], codes[place])), keys[place])
            for place in right
        )[:k]
        pairs = list(zip(found.distances[0].tolist(), found.keys[0].tolist()))
        assert pairs[: len(near)] == near, (number, said)
        assert all(key == -1 for _, key in pairs[len(near) :]), (number, said)
        sizes.add(len(right))
    assert {0, ITEMS} <= sizes and len(sizes) > 40, "filters of all sizes were drawn"


@pytest.mark.parametrize("kind", KINDS)
def test_filters_are_exact_with_an_index_that_is_not(kind: IndexKind, tmp_path: Path) -> None:
    rng, count = np.random.default_rng(4), FEWEST + 200
    said = [{"part": int(part)} for part in rng.integers(0, 5, count)]
    codes = rng.integers(0, 256, (count, 8), dtype=np.uint8)
    names = [f"item {number}" for number in range(count)]
    VersionedGallery(64, names, codes, names, attributes=said, backend="exact").save(tmp_path / "g")
    near = VersionedGallery.load(tmp_path / "g", kind=kind, effort=1)
    exact = VersionedGallery.load(tmp_path / "g", backend="exact")
    asked = rng.integers(0, 256, (20, 8), dtype=np.uint8)
    assert near.search(asked, 5).distances.sum() > exact.search(asked, 5).distances.sum()
    near, exact = near.remove(names[::7]), exact.remove(names[::7])
    found = filter_of({"part": [1, 4]})
    assert near.allowed(found).tolist() == exact.allowed(found).tolist()
    a, b = (one.search(asked, 50, one.allowed(found)) for one in (near, exact))
    assert a.keys.tolist() == b.keys.tolist() and a.distances.tolist() == b.distances.tolist()


def test_no_condition_allows_all_and_a_stranger_none() -> None:
    gallery = made()
    assert np.array_equal(gallery.allowed(()), gallery.keys())
    assert gallery.allowed(filter_of({"size": 3})).tolist() == []
    plain = made(attributes=None)
    assert np.array_equal(plain.allowed(()), plain.keys()) and plain.attributes_of(int(plain.keys()[0])) == {}
    assert plain.allowed(filter_of({"colour": "red"})).tolist() == []


def test_whole_numbers_keep_their_last_digit_and_texts_are_no_numbers() -> None:
    most = 2**53
    rows = [{"n": most}, {"n": most - 1}, {"n": -0.0}, {"n": "0"}, {"n": 1e300}]
    found = ItemAttributes(rows)
    cases: list[tuple[Any, list[int]]] = [
        (most, [0]), (most - 1, [1]), (0, [2]), ("0", [3]), ([0, "0"], [2, 3]), ({"from": most}, [0, 4]),
        ({"from": "0"}, [3]), ({"to": 0}, [2]),
    ]  # fmt: skip
    for condition, places in cases:
        assert found.allowed(filter_of({"n": condition})).tolist() == places, condition


def test_what_is_remembered_is_bounded() -> None:
    found = ItemAttributes([{"n": 1}, {"n": 2}])
    for number in range(3 * KEPT):
        found.allowed(filter_of({f"name {number}": 1}))
        assert found.allowed(filter_of({"n": number})).tolist() == [number - 1] * (number in (1, 2))
    assert len(found._found) <= KEPT and set(found._columns) == {"n"} == found.names


def test_what_is_remembered_is_bounded_in_bytes_too() -> None:
    found = ItemAttributes([{"n": number} for number in range(8)], remembered=2)
    for first in range(4):
        assert found.allowed(filter_of({"n": {"from": first}})).tolist() == list(range(first, 8))
    assert list(found._found) == [filter_of({"n": {"from": first}}) for first in (2, 3)]


# -- galleries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_attributes_are_kept_in_the_folder_and_through_changes(backend: Backend, tmp_path: Path) -> None:
    gallery = made(backend)
    gallery.save(tmp_path / "g")
    loaded = VersionedGallery.load(tmp_path / "g", backend=backend)
    assert loaded.version == gallery.version and items_of(loaded) == items_of(gallery)
    wide = [{"colour": "red", "year": 7}]
    more = gallery.add(
        ["more"], gallery.codes_of(gallery.keys()[:1]), ["x"], np.ones((1, 4)), attributes=wide
    )
    key = more.key_of("more")
    assert more.allowed(filter_of({"year": 7})).tolist() == [key]
    assert items_of(more)[:-1] == items_of(gallery)
    fewer = more.remove(["item 0", "item 7"])
    kept = [item for place, item in enumerate(items_of(more)) if place not in (0, 7)]
    assert items_of(fewer) == kept and fewer.allowed(filter_of({"year": 7})).tolist() == [key]
    silent = more.add(["silent"], gallery.codes_of(gallery.keys()[:1]), ["x"], np.ones((1, 4)))
    assert silent.attributes_of(silent.key_of("silent")) == {}
    plain = made(attributes=None)
    first = plain.add(["more"], gallery.codes_of(gallery.keys()[:1]), ["x"], np.ones((1, 4)), attributes=wide)
    assert items_of(first) == [{}] * ITEMS + wide
    again = first.upsert(
        ["more"], gallery.codes_of(gallery.keys()[:1]), ["x"], np.ones((1, 4)), attributes=[{"year": 8}]
    )
    assert again.attributes_of(again.key_of("more")) == {"year": 8}
    for changed in (silent, first, again):
        changed.save(tmp_path / changed.version)
        back = VersionedGallery.load(tmp_path / changed.version, backend=backend)
        assert items_of(back) == items_of(changed) and back.version == changed.version


def test_merging_keeps_attributes() -> None:
    gallery = in_segments("exact")
    merged = tidied(gallery, Tiers(2, 8))
    assert len(merged.parts) < len(gallery.parts) and merged.version == gallery.version
    assert items_of(merged) == items_of(gallery)
    rng = np.random.default_rng(6)
    for said in (drawn_filter(rng) for _ in range(100)):
        assert merged.allowed(filter_of(said)).tolist() == gallery.allowed(filter_of(said)).tolist(), said


def test_the_version_of_a_changed_gallery_is_of_attributes_however_they_came() -> None:
    codes, ones = np.zeros((2, BITS // 8), np.uint8), np.ones((2, 4))

    def more(said: Any, at_once: bool = True) -> str:
        plain = made(attributes=None)
        if at_once:
            return plain.add(["a", "b"], codes, ["", ""], ones, attributes=said).version
        for row, name in enumerate("ab"):
            one = None if said is None or not said[row] else said[row : row + 1]
            plain = plain.add([name], codes[row : row + 1], [""], ones[row : row + 1], attributes=one)
        return plain.version

    for said in (None, [{}, {"x": 1}], [{"x": 1, "y": "z"}, {}]):
        assert more(said) == more(said, at_once=False), said
    assert more(None) == more([{}, {}]) != more([{}, {"x": 1}]) != more([{}, {"x": 2}])
    assert more([{"x": 1, "y": 2}, {}]) == more([{"y": 2, "x": 1}, {}])


def test_keys_in_any_order_keep_attributes_with_their_item() -> None:
    plain, order = made(), np.random.default_rng(5).permutation(ITEMS)
    rows = items_of(plain)
    mixed = VersionedGallery(
        BITS, [plain.identifier(plain.keys()[i]) for i in order], plain.codes_of(plain.keys()[order]),
        [plain.labels_of(plain.keys()[i]) for i in order], None, keys=plain.keys()[order],
        backend="exact", attributes=[rows[i] for i in order],
    )  # fmt: skip
    assert items_of(mixed) == rows


def test_a_version_is_of_its_attributes_too_and_of_none_as_before() -> None:
    assert made().version != made(attributes=None).version
    other = items_of(made())
    other[3] = {**other[3], "colour": "other"}
    assert made(attributes=other).version != made().version == made(attributes=items_of(made())).version
    # Of version 0.2, whose galleries have no attributes.
    old = VersionedGallery(8, ["a", "b"], np.array([[1], [2]], np.uint8), ["p", ("q", "p")], backend="exact")
    assert old.version == "7491971a44a55fa5"
    said = [{"colour": "red", "year": 7}, {"tags": ["new", "sale"]}]
    codes = np.array([[1], [2]], np.uint8)
    with_some = VersionedGallery(8, ["a", "b"], codes, ["p", ("q", "p")], backend="exact", attributes=said)
    assert with_some.version == "c2d5e4bfbc27950f"
    silent = VersionedGallery(
        8, ["a", "b"], codes, ["p", ("q", "p")], backend="exact", attributes=[{}, {}]
    )  # fmt: skip
    assert silent.version == old.version
    # Changed, as it was named before there were attributes.
    assert old.add(["c"], np.array([[3]], np.uint8), ["r"]).remove(["a"]).version == "c494f2d25164a0ed"


def test_a_gallery_saved_without_attributes_has_none(tmp_path: Path) -> None:
    made(attributes=None).save(tmp_path / "g")
    assert "attributes" not in json.loads((tmp_path / "g" / "items.json").read_text())
    loaded = VersionedGallery.load(tmp_path / "g", backend="exact")
    assert loaded.allowed(filter_of({"colour": "red"})).tolist() == []


def test_damaged_attributes_are_said(tmp_path: Path) -> None:
    """With hashes that fit: someone wrote them so."""
    from core.artifacts import writing
    from index.gallery_files import PLAIN

    gallery, (TENSORS, NAME) = made(), PLAIN
    gallery.save(tmp_path / "g")
    items = json.loads((tmp_path / "g" / NAME).read_text())
    tensors = (tmp_path / "g" / TENSORS).read_bytes()
    for rows in ([{"a": True}] * ITEMS, [{}] * 3, 7, [7] * ITEMS):
        head = {
            "version": gallery.version,
            "bits": BITS,
            "items": ITEMS,
            "base_version": "",
            "next_key": 1000,
        }
        with writing(tmp_path / "h", "gallery", head) as draft:
            (draft / NAME).write_text(json.dumps({**items, "attributes": rows}))
            (draft / TENSORS).write_bytes(tensors)
        with pytest.raises(ArtifactError):
            VersionedGallery.load(tmp_path / "h", backend="exact")


def test_attributes_that_cannot_be_kept_name_the_item() -> None:
    with pytest.raises(GalleryError, match=r"item 1: 'size' is true"):
        ItemAttributes([{}, {"size": True}])
    with pytest.raises(GalleryError, match="expected 120 of everything"):
        made(attributes=[{}])


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (7, "an object"), ({"": 1}, "name"), ({"x" * (CHARACTERS + 1): 1}, "257 characters"),
        ({"\ud800": 1}, "name"), ({"a": None}, "null"), ({"a": True}, "true"), ({"a": {}}, "an object"),
        ({"a": float("nan")}, "range"), ({"a": float("inf")}, "range"), ({"a": 2**53 + 1}, "range"),
        ({"a": "x" * (CHARACTERS + 1)}, "257 characters"), ({"a": "\ud800"}, "surrogate"),
        ({"a": [1]}, "texts"), ({"a": [["x"]]}, "texts"), ({"a": ["x"] * (MOST_VALUES + 1)}, "257 texts"),
        ({f"{n}": 1 for n in range(MOST_ATTRIBUTES + 1)}, "65 attributes"),
    ],
)  # fmt: skip
def test_attributes_that_are_none(document: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        attributes_of(document)
    assert "\n" not in str(caught.value)


# -- what a query says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ([], "an object"), ({"a": []}, "lists no value"), ({"a": None}, "null"), ({"a": True}, "true"),
        ({"a": [True]}, "true"), ({"a": [[1]]}, "a list"), ({"a": {}}, "range"), ({"a": {"min": 1}}, "range"),
        ({"a": {"from": 1, "to": "2"}}, "one kind"), ({"a": {"from": 2, "to": 1}}, "before its start"),
        ({"a": {"from": None}}, "null"), ({"a": float("inf")}, "range"), ({"a": [1] * 257}, "257 values"),
        ({f"{n}": 1 for n in range(MOST_CONDITIONS + 1)}, "17 attributes"), ({" ": 1}, "name"),
    ],
)  # fmt: skip
def test_filters_that_are_none(document: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        filter_of(document)
    assert str(caught.value).startswith("filter: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("top", [0, -1, True, 1.0, "3"])
def test_tops_that_are_none(top: Any) -> None:
    with pytest.raises(ValueError, match="top: expected a whole number"):
        wanted(top)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_thresholds_that_are_none(threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold: expected a number from 0 to 1"):
        wanted(threshold=threshold)


def test_filters_there_and_back() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        said = filter_of(drawn_filter(rng))
        assert filter_of(json.loads(json.dumps(document_of(said)))) == said
    assert filter_of({"b": 1, "a": {"to": "x"}}) == (("a", Between(None, "x")), ("b", AnyOf((1,))))
