"""Readers of data sets read as strictly as those of a user's own files."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from core.errors import ConfigError
from qshift.benchmarks.tasks import coco, fashion
from qshift.benchmarks.tasks.class_zips import read_class_zip
from qshift.benchmarks.tasks.emoji_vendors import read_vendor
from qshift.benchmarks.tasks.published import corrupted, fashion_gen, persons
from qshift.shifts.wording.rewrites import load_rewrites

WRONG = [None, True, 1.5, [], {}, "\ud800"]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def refuses(reader: Callable[[], object]) -> None:
    with pytest.raises(ConfigError) as error:
        reader()
    assert "\n" not in str(error.value) and str(error.value).encode()


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_text_is_a_text(tmp_path: Path, wrong: object) -> None:
    """Before, null became the caption "None"."""
    (tmp_path / "images").mkdir()
    (tmp_path / "imgs").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "imgs" / "a.jpg").write_bytes(jpeg())
    row = {"id": 1, "file": "a.jpg", "caption": "a shirt", "category": "x"}
    for field in ("id", "file", "caption", "category"):
        (tmp_path / "items.jsonl").write_text(json.dumps({**row, field: wrong}))
        refuses(lambda: fashion_gen(tmp_path))
    person = {"id": 1, "file_path": "a.jpg", "captions": ["a man"], "split": "test"}
    for changed in ({"id": wrong}, {"file_path": wrong}, {"captions": [wrong]}):
        (tmp_path / "reid_raw.json").write_text(json.dumps([{**person, **changed}]))
        refuses(lambda: persons(tmp_path))
    image = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": wrong}]}
    (tmp_path / "captions.json").write_text(json.dumps({"images": [image]}))
    refuses(lambda: corrupted(tmp_path, "coco-c"))
    (tmp_path / "meta.json").write_text(json.dumps({"1F600": {"name": wrong, "group": "x"}}))
    refuses(lambda: read_vendor(tmp_path / "noto.zip", tmp_path / "meta.json"))


@pytest.mark.parametrize("name", ["captions", "lines"])
@pytest.mark.parametrize("wrong", [*WRONG, "9" * 5000, "[" * 100_000], ids=lambda one: repr(one)[:20])
def test_captions_of_coco_are_texts(tmp_path: Path, name: str, wrong: object) -> None:
    raw = wrong if isinstance(wrong, str) and len(wrong) > 99 else json.dumps(wrong)
    pairs, line = ('{"pairs": [{"image_id": 1, "captions": ["a"]}]}', '{"image_id": 1, "caption": "b"}')
    pairs, line = (
        (pairs.replace('"a"', raw), line) if name == "captions" else (pairs, line.replace('"b"', raw))
    )
    (tmp_path / coco.PAIRS).write_text(pairs)
    (tmp_path / coco.TEXTS).write_bytes(gzip.compress(line.encode()))
    refuses(lambda: coco._captions(tmp_path))


@pytest.mark.parametrize(
    ("row", "said"), [("1.jpg,a shirt, red,Shirts", "line 2: 4 cells"), ("1.jpg,a shirt", "line 2: 2 cells")]
)
def test_a_row_of_fashion_that_does_not_fit_is_named(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / fashion.TABLE).write_text(f"file,text,articleType\n{row}\n")
    with pytest.raises(ConfigError, match=said):
        fashion.read_products(tmp_path)


def test_what_macos_leaves_in_a_zip_is_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "dslr.zip", "w") as archive:
        archive.writestr("cat/0.jpg", jpeg())
        archive.writestr("__MACOSX/cat/._0.jpg", b"no picture")
        archive.writestr("cat/._0.jpg", b"no picture")
    assert [sample.key for sample in read_class_zip(tmp_path / "dslr.zip")] == ["dslr/cat/0.jpg"]


def test_rewrites_end_lines_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "formal.jsonl"
    path.write_text(json.dumps({"key": "a", "text": "x\u2028y"}, ensure_ascii=False), "utf-8-sig")
    assert load_rewrites(path)["a"] == "x\u2028y"
    for wrong in (
        '{"key": "a", "text": "\\ud800"}',
        '{"key": "a", "text": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ):
        path.write_text(wrong)
        refuses(lambda: load_rewrites(path))
