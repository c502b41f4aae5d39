"""Attributes of pictures from files beside them: what is read, and what each fault is called."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.errors import ConfigError
from qshift.data.attributes import picture_attributes
from qshift.data.pictures import load_pictures

NFD, NFC = "cafe\u0301.png", "caf\u00e9.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", NFC):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def found(folder: Path) -> list[dict[str, Any]] | None:
    pictures = load_pictures(folder)
    return picture_attributes(folder, [pictures.identifier(item) for item in range(len(pictures))])


def jsonl(folder: Path, *entries: tuple[str, Any]) -> None:
    lines = [json.dumps({"file": file, "attributes": said}) for file, said in entries]
    (folder / "attributes.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_without_a_file_nothing_is_said(folder: Path) -> None:
    assert found(folder) is None
    (folder / "captions.csv").write_text("file,caption\na.png,first\n")
    assert found(folder) is None


def test_lines_name_pictures_however_their_letters_are_written(folder: Path) -> None:
    jsonl(folder, (NFD, {"tags": ["new", "sale"]}), ("a.png", {"year": 2019, "kind": "x", "size": 1.5}))
    assert found(folder) == [{"year": 2019, "kind": "x", "size": 1.5}, {}, {"tags": ("new", "sale")}]


def test_columns_are_of_numbers_where_every_cell_is_one(folder: Path) -> None:
    text = "file,year,zip,name\na.png,2019,01234,7\nb.png,,99999,x\n" + f"{NFC},1.5,10000,\n"
    (folder / "attributes.csv").write_text(text, encoding="utf-8")
    assert found(folder) == [
        {"year": 2019, "zip": "01234", "name": "7"},
        {"zip": "99999", "name": "x"},
        {"year": 1.5, "zip": "10000"},
    ]


def test_captions_may_hold_them(folder: Path) -> None:
    text = 'file,caption,attributes\na.png,one,"{""year"": 2019}"\na.png,two,\nb.png,three,\n'
    (folder / "captions.csv").write_text(text)
    assert found(folder) == [{"year": 2019}, {}, {}]
    jsonl(folder, ("b.png", {"year": 1}))  # a file of their own counts
    assert found(folder) == [{}, {"year": 1}, {}]


def test_pictures_sorted_by_class_are_named_with_it(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name / "1.png")
    jsonl(tmp_path, ("dog/1.png", {"year": 2019}))
    assert found(tmp_path) == [{}, {"year": 2019}]


def test_the_files_are_not_said_to_be_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    jsonl(folder, ("b.png", {"year": 1}))
    with caplog.at_level(logging.WARNING):
        load_pictures(folder)
    assert "attributes" not in caplog.text
    (folder / "others.jsonl").write_text("")
    with caplog.at_level(logging.WARNING):
        load_pictures(folder)
    assert "others.jsonl" in caplog.text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "line 1: not JSON"), ("[]", 'line 1: expected {"file"'), ('{"file": "a.png"}', "these two"),
        ('{"file": "a.png", "attributes": {}, "label": "x"}', "these two fields alone"),
        ('{"file": 7, "attributes": {}}', "file is a number"),
        ('{"file": " ", "attributes": {}}', "of no file"),
        ('{"file": "a.png", "attributes": []}', "line 1: expected attributes as an object"),
        ('{"file": "a.png", "attributes": {"x": null}}', "line 1: 'x' is null"),
        ('{"file": "a.png", "attributes": {"x": true}}', "line 1: 'x' is true"),
        ('{"file": "a.png", "attributes": {"x": [1]}}', "line 1: 'x' is a list of other things than texts"),
        ('{"file": "a.png", "attributes": {"x": 1, "x": 2}}', "stands there twice"),
        ('{"file": "a.png", "attributes": {}}\n{"file": "a.png", "attributes": {}}', "line 2: a.png stands"),
        ('{"file": "z.png", "attributes": {}}', "1 pictures that are not there: z.png"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence(folder: Path, text: str, word: str) -> None:
    (folder / "attributes.jsonl").write_text(text)
    with pytest.raises(ConfigError) as caught:
        found(folder)
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name,year\na.png,1\n", "expected the columns file"), ("file,year\na.png,1,2\n", "3 cells"),
        ("file,\na.png,1\n", "name of an attribute is empty"), ("file,year\nz.png,1\n", "not there"),
        (f"file,{'x' * 257}\na.png,1\n", "257 characters"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used(folder: Path, text: str, word: str) -> None:
    (folder / "attributes.csv").write_text(text)
    with pytest.raises(ConfigError, match=word):
        found(folder)


def test_two_files_are_one_too_many(folder: Path) -> None:
    jsonl(folder, ("a.png", {}))
    (folder / "attributes.csv").write_text("file,year\na.png,1\n")
    with pytest.raises(ConfigError, match="keep one of them"):
        found(folder)


def test_captions_whose_attributes_are_none(folder: Path) -> None:
    (folder / "captions.csv").write_text("file,caption,attributes\na.png,one,red\n")
    with pytest.raises(ConfigError, match="line 2: attributes are not JSON"):
        found(folder)
