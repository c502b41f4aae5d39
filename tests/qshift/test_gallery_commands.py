"""`qshift gallery add`, `remove`, `swap`, `info`, `export`: a gallery in a folder, changed in place."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_vectors import BITS, ITEMS, WIDTH, gallery_features, unit, write_vectors

from core.config import AnswerConfig, Config
from core.errors import ArtifactError, ConfigError, GalleryError, QshiftError
from encoders.base_model import load_base
from index import gallery_files
from index.approximate import KINDS
from index.folder import changing, measured
from index.gallery import Display, VersionedGallery
from qshift.build import load_gallery
from qshift.demo.compare_indexes import checked_kind, compare, measure
from qshift.demo.galleries import add, export, info, remove, swap
from qshift.session import Session


class Desk:
    """Somebody who types commands in a folder with a base and a gallery of vectors."""

    def __init__(self, folder: Path) -> None:
        write_vectors(folder)
        self.folder, self.gallery_folder, self.base = folder, folder / "gallery", folder / "base"

    def lines(self, *entries: object) -> Path:
        path = self.folder / "items.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return path

    def said(self, command: Callable[..., None], *arguments: object) -> str:
        console = Console(file=io.StringIO(), width=200)
        command(*arguments, console)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text.splitlines()[-1]

    def add(self, path: Path, replace: bool = False) -> str:
        return self.said(add, path, self.gallery_folder, self.base, replace)

    def gallery(self) -> VersionedGallery:
        return load_gallery(self.gallery_folder, load_base(self.base))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.gallery_folder.iterdir()}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def vectors(count: int) -> list[list[float]]:
    rows: list[list[float]] = unit(np.random.default_rng(7).normal(size=(count, WIDTH))).tolist()
    return rows


def test_a_whole_gallery_takes_the_place_of_another(desk: Desk, tmp_path: Path) -> None:
    """The one before is kept beside it, and what does not fit changes nothing."""
    before, source = desk.gallery(), tmp_path / "source"
    new = before.remove([before.identifier(key) for key in range(0, ITEMS, 2)])
    new.save(source)
    held = {path.name: path.read_bytes() for path in source.iterdir()}
    said = desk.said(swap, source, desk.gallery_folder)
    assert said.startswith(f"{source} put in place: {ITEMS // 2} items in ") and said.endswith(new.version)
    assert desk.gallery().version == new.version
    assert load_gallery(desk.gallery_folder, load_base(desk.base), version=before.version).holds("item-0")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == held
    files = desk.files()
    strange = VersionedGallery(BITS, ["a"], before.codes_of(before.keys()[:1]), ["a"], base_version="other")
    strange.save(tmp_path / "strange")
    for wrong, why in ((tmp_path / "strange", "base model 'other'"), (tmp_path / "none", "none")):
        with pytest.raises(QshiftError, match=why):
            swap(wrong, desk.gallery_folder, Console())
    with pytest.raises(QshiftError, match="the gallery itself"):
        swap(desk.gallery_folder, desk.gallery_folder, Console())
    with pytest.raises(QshiftError, match="build it first"):
        swap(source, tmp_path / "nowhere", Console())
    assert desk.files() == files


def test_what_is_added_is_found_and_what_was_there_is_not_written_again(desk: Desk) -> None:
    first, second = vectors(2)
    before = desk.files()
    said = desk.add(
        desk.lines(
            {"id": "new", "vector": first, "labels": ["fresh", "other"], "title": "A new one"},
            {"id": 7, "vector": second},
        )
    )
    gallery = desk.gallery()
    assert said.startswith("2 items added, 0 of them replaced: 202 items in ") and gallery.version in said
    after = desk.files()
    assert {name for name in before if after[name] == before[name]} == {"gallery.safetensors", "items.json"}
    key = gallery.key_of("new")
    assert gallery.labels_of(key) == ("fresh", "other") and gallery.display(key) == Display("A new one")
    assert gallery.display(gallery.key_of("7")) == Display("7") and gallery.labels_of(ITEMS + 1) == ()
    session = Session(desk.base, desk.gallery_folder)
    asked = np.array([first, second, gallery_features()[5].tolist()], np.float32)
    found = session.answer(list(asked)).served.items
    assert [row[0] for row in found] == ["new", "7", "item-5"]


def test_attributes_of_lines_are_kept_said_and_filtered_by(desk: Desk) -> None:
    first, second = vectors(2)
    said = {"colour": "red", "marks": ["new", "sale"], "price": 7.5}
    desk.add(desk.lines({"id": "new", "vector": first, "attributes": said}, {"id": "b", "vector": second}))
    session = Session(desk.base, desk.gallery_folder)
    asked = list(np.array([first, second], np.float32))
    found = session.answer(asked, filter={"price": {"from": 7}}).served.items
    assert [[name for name in row if name] for row in found] == [["new"], ["new"]]
    console = Console(file=io.StringIO(), width=200)
    info(desk.gallery_folder, console)
    assert "5 attributes: colour, year, tags and 2 more" in console.file.getvalue()  # type: ignore[attr-defined]
    for name in ("out.jsonl", "out.npz"):
        desk.said(export, desk.folder / name, desk.gallery_folder)
    lines = [json.loads(line) for line in (desk.folder / "out.jsonl").read_bytes().splitlines()]
    assert [line.get("attributes") for line in lines[-2:]] == [said, None]
    arrays = np.load(desk.folder / "out.npz", allow_pickle=False)
    assert [json.loads(text) for text in arrays["attributes"]] == [
        line.get("attributes", {}) for line in lines
    ]


def test_names_that_are_there_are_replaced_only_if_asked(desk: Desk) -> None:
    path = desk.lines({"id": "item-3", "vector": vectors(1)[0], "labels": ["moved"]})
    before = desk.files()
    with pytest.raises(GalleryError, match=r"holds item-3 already: --replace"):
        desk.add(path)
    assert desk.files() == before
    assert desk.add(path, replace=True).startswith("1 item added, 1 of them replaced: 200 items")
    gallery = desk.gallery()
    assert gallery.labels_of(gallery.key_of("item-3")) == ("moved",) and gallery.key_of("item-3") == ITEMS


def test_remove(desk: Desk) -> None:
    before = desk.files()
    with pytest.raises(GalleryError, match="holds no nobody: nothing was removed"):
        desk.said(remove, ["item-1", "nobody"], desk.gallery_folder)
    assert desk.files() == before
    assert desk.said(remove, ["item-1", "item-9", "item-1"], desk.gallery_folder).startswith(
        "2 items removed: 198"
    )
    gallery = desk.gallery()
    assert len(gallery) == 198 and not gallery.holds("item-9") and gallery.holds("item-2")
    asked = gallery_features()[9:10]
    assert "item-9" not in Session(desk.base, desk.gallery_folder).answer(list(asked)).served.items[0]


def test_info_says_what_is_there(desk: Desk) -> None:
    desk.add(desk.lines({"id": "new", "vector": vectors(1)[0], "labels": ["fresh"]}))
    desk.said(remove, ["item-1"], desk.gallery_folder)
    console = Console(file=io.StringIO(), width=200)
    info(desk.gallery_folder, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == f"200 items with {BITS}-bit codes and features of width {WIDTH}"
    assert desk.gallery().version in lines[1] and lines[2].startswith(
        "200 labels: item-0, item-2, item-3 and 197"
    )
    assert lines[3:] == [
        "3 attributes: colour, year, tags",
        "segment 1: 199 of 200 items are left", "segment 2: 1 of 1 items are left",
    ]  # fmt: skip


def test_export_holds_everything_in_both_forms(desk: Desk) -> None:
    desk.add(desk.lines({"id": "né", "vector": vectors(1)[0], "labels": ["a", "b"], "title": "Né"}))
    desk.said(remove, ["item-1"], desk.gallery_folder)
    gallery = desk.gallery()
    for name in ("out.jsonl", "out.npz"):
        said = desk.said(export, desk.folder / name, desk.gallery_folder)
        assert said.startswith("written: 200 items in ") and gallery.version in said
    lines = [json.loads(line) for line in (desk.folder / "out.jsonl").read_bytes().splitlines()]
    arrays = np.load(desk.folder / "out.npz", allow_pickle=False)
    keys = gallery.keys()
    assert arrays["keys"].tolist() == [line["key"] for line in lines] == keys.tolist()
    assert arrays["ids"].tolist() == [line["id"] for line in lines] == [gallery.identifier(k) for k in keys]
    assert [json.loads(text) for text in arrays["labels"]] == [line["labels"] for line in lines]
    assert lines[-1]["labels"] == ["a", "b"] and lines[-1]["title"] == arrays["titles"][-1] == "Né"
    assert arrays["codes"].tolist() == gallery.codes_of(keys).tolist()
    assert [list(base64.b64decode(line["code"])) for line in lines] == arrays["codes"].tolist()
    assert arrays["features"].tobytes() == gallery.features(keys).tobytes()
    assert np.array([line["vector"] for line in lines], np.float32).tobytes() == arrays["features"].tobytes()
    assert {path.name for path in desk.folder.iterdir()} == {
        "base", "gallery", "items.jsonl", "out.jsonl", "out.npz",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="neither"):
        desk.said(export, desk.folder / "out.csv", desk.gallery_folder)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": "a"}, "line 2: got nothing to encode: expected"),
        ({"vector": [1.0] * WIDTH}, 'line 2: no "id"'),
        ({"id": "a", "vector": [1.0] * WIDTH, "text": "b"}, "line 2: got text, vector: expected"),
        ({"id": "a", "vector": [1.0] * WIDTH, "label": "b"}, "line 2: got label: expected"),
        ({"id": "a", "vector": ["1"]}, "line 2: expected a vector"),
        ({"id": "a", "vector": [1.0] * WIDTH, "labels": "b"}, "line 2: expected a list"),
        ({"id": "a", "vector": [1.0] * WIDTH, "labels": [1]}, "line 2: expected a text, got a number"),
        ({"id": "a", "vector": [1.0] * WIDTH, "title": 5}, "line 2: expected a text, got a number"),
        ({"id": "a", "vector": [1.0] * WIDTH, "attributes": 5}, "line 2: expected attributes as an object"),
        ({"id": "a", "vector": [1.0] * WIDTH, "attributes": {"x": {}}}, "line 2: 'x' is an object"),
        ({"id": "a", "image": "none.png"}, "line 2: no picture"),
        ({"id": "a", "text": 5}, "line 2: the text is a number"),
        (7, "line 2: expected {"),
        ({"id": "good", "vector": [1.0] * WIDTH}, "names good 2 times"),
        ({"id": "a", "text": "words"}, "encodes vector, not text items"),
        ({"id": "a", "vector": [1.0]}, "gallery vector a: expected a vector of 32 numbers"),
        ({"id": "a", "vector": [0.0] * WIDTH}, "gallery vector a: the vector is zero"),
    ],
)
def test_lines_that_are_no_items_are_named_and_nothing_is_changed(
    desk: Desk, line: object, said: str
) -> None:
    before = desk.files()
    with pytest.raises(QshiftError) as error:
        desk.add(desk.lines({"id": "good", "vector": vectors(1)[0]}, line))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert desk.files() == before


def test_places_that_are_no_gallery(desk: Desk) -> None:
    path = desk.lines({"id": "a", "vector": vectors(1)[0]})
    with pytest.raises(ArtifactError, match=r"no gallery in .*: build it first"):
        desk.said(add, path, desk.folder / "nowhere", desk.base, False)
    with pytest.raises(ArtifactError, match="build it first"):
        desk.said(info, desk.folder / "nowhere")
    with changing(desk.gallery_folder), pytest.raises(ArtifactError, match="changed by another process"):
        desk.add(path)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no item"):
        desk.add(path)


# -- kinds of index -------------------------------------------------------------------------------------


def large(folder: Path, count: int) -> Path:
    """The toy's base with a gallery of so many items."""
    write_vectors(folder)
    base = load_base(folder / "base")
    rows = unit(np.random.default_rng(3).normal(size=(count, WIDTH)).astype(np.float32))
    codes = base.head.codes(torch.from_numpy(rows), "vector")
    names = [str(item) for item in range(count)]
    VersionedGallery(BITS, names, codes, names, rows, base_version=base.version).save(folder / "gallery")
    return folder


def test_kinds_of_index_are_compared_on_the_gallery_itself(tmp_path: Path) -> None:
    folder = large(tmp_path, 10_000)
    console = Console(file=io.StringIO(), width=80)
    compare(folder / "gallery", folder / "base", None, console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    found = {row[0]: row[1:] for row in rows if row and row[0] in ("flat", *KINDS)}
    assert set(found) == {"flat", *KINDS} and found["flat"][:2] == ["1.000", "1.000"]
    assert all(0.5 < float(found[kind][1]) <= 1 and float(found[kind][3]) >= 0 for kind in KINDS)


def test_the_folder_is_read_once_for_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = large(tmp_path, 10_000), []
    load = gallery_files.read
    monkeypatch.setattr("index.folder.read", lambda *given: read.append(given) or load(*given))
    compare(folder / "gallery", folder / "base", None, Console(file=io.StringIO()))
    assert len(read) == 1


def test_a_kind_of_index_is_measured_when_it_is_built_and_told_again(tmp_path: Path) -> None:
    folder = large(tmp_path, 10_000)
    consoles = [Console(file=io.StringIO(), width=200) for _ in range(3)]
    measure(folder / "gallery", folder / "base", "ivf", 1, consoles[0])
    found = dict(measured(folder / "gallery"))
    assert found["index"] == "ivf" and found["effort"] == 1 and 0.1 < found["recall_at_10"] < 1
    info(folder / "gallery", consoles[1])
    line, told = (console.file.getvalue() for console in consoles[:2])  # type: ignore[attr-defined]
    assert line.startswith(f"index ivf, effort 1: recall@10 {found['recall_at_10']:.3f}") and line in told
    gallery = VersionedGallery.load(folder / "gallery", base_version=load_base(folder / "base").version)
    queries = gallery.codes_of(gallery.keys()[:50])
    one, other = gallery.by("ivf", 1).search(queries, 10), gallery.search(queries, 10)
    assert (one.distances != other.distances).any() and gallery.by("flat").version == gallery.version
    gallery.remove(["3"]).save(folder / "gallery")
    info(folder / "gallery", consoles[2])
    assert "recall" not in consoles[2].file.getvalue()  # type: ignore[attr-defined]
    for kind, words in (("lsh", "expected one of flat"), ("milvus", "answer.index sets it")):
        with pytest.raises(ConfigError, match=words):
            checked_kind(kind)


def test_what_was_exported_can_be_added(desk: Desk) -> None:
    """Code for code, also into another gallery of the base; keys are given out anew."""
    said = {"year": 2021, "tags": ["new"]}
    desk.add(desk.lines({"id": "né", "vector": vectors(1)[0], "labels": ["a", "b"], "attributes": said}))
    out, before = desk.folder / "out.jsonl", desk.gallery()
    desk.said(export, out, desk.gallery_folder)
    desk.said(remove, ["né", "item-1"], desk.gallery_folder)
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    some = [line for line in lines if line["id"] in ("né", "item-1")]
    assert desk.add(desk.lines(*some)).startswith("2 items added")
    after = desk.gallery()
    for name in ("né", "item-1"):
        old, new = before.key_of(name), after.key_of(name)
        assert new > old and after.labels_of(new) == before.labels_of(old)
        assert after.attributes_of(new) == before.attributes_of(old)
        assert after.codes_of(np.array(new)).tolist() == before.codes_of(np.array(old)).tolist()
        assert np.allclose(after.features(np.array(new)), before.features(np.array(old)), atol=1e-3)
        assert after.display(new) == before.display(old)
    for change, words in (
        ({"base": "0" * 16}, "leave key, code and base out"), ({"code": "?"}, "no base64"),
        ({"vector": [1.0]}, "of width 1"), ({"code": ""}, "the code is empty"),
        ({"vector": None, "text": "a"}, "stands beside text"),
    ):  # fmt: skip
        with pytest.raises(QshiftError, match=words):
            desk.add(desk.lines({**some[0], "id": "more", **change}))
    assert desk.gallery().version == after.version


def test_a_gallery_that_is_swapped_in_is_searched_as_the_settings_say(tmp_path: Path) -> None:
    write_vectors(tmp_path)
    config = Config.model_validate({"device": "cpu", "answer": {"index": "ivf", "effort": 3}})
    session = Session(tmp_path / "base", tmp_path / "gallery", config=config)
    session.swap(tmp_path / "gallery")
    assert (session.gallery.searched.kind, session.gallery.searched.effort) == ("ivf", 3)


def test_of_few_items_none_is_left_out_anyway(desk: Desk) -> None:
    with pytest.raises(GalleryError, match="below 10,000 all are looked at anyway"):
        compare(desk.gallery_folder, desk.base, None, Console(file=io.StringIO()))


def test_the_setting_decides_how_a_gallery_is_searched(tmp_path: Path) -> None:
    folder = large(tmp_path, 10_000)
    base, config = load_base(folder / "base"), AnswerConfig(index="ivf", effort=1)
    some, every = (
        load_gallery(folder / "gallery", base, answer=config),
        load_gallery(folder / "gallery", base),
    )
    codes = every.codes_of(np.arange(200))
    assert (some.search(codes, 10).distances != every.search(codes, 10).distances).any()
    assert some.version == every.version
    settings = [Config(answer=answer).decision_hash() for answer in (config, AnswerConfig())]
    assert settings[0] != settings[1]
    with pytest.raises(ConfigError, match="is searched on the CPU"):
        VersionedGallery.load(folder / "gallery", device="cuda", kind="ivf")
