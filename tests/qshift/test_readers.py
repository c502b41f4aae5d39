"""One strict reader a format: what other systems leave in files and folders, each with what is right."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import ConfigError
from core.readers.lines import BadLine, document, lines
from core.readers.table import rows
from core.records import Coordinates
from qshift.data.pictures import load_pictures
from qshift.demo.labels import read_labels
from qshift.replay.journal import read_journal

NFD, NFC = "cafe\u0301.png", "caf\u00e9.png"
BOM = b"\xef\xbb\xbf"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        picture(tmp_path / "set" / f"p{number}.png")
    return tmp_path / "set"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for number in range(2):
            picture(tmp_path / "sorted" / name / f"{number}.png")
    return tmp_path / "sorted"


# Folders


@pytest.mark.parametrize("stray", ["._0.png", "__MACOSX/._0.png", ".ipynb_checkpoints/0.png", "cat/._0.png"])
def test_what_other_systems_leave_is_passed_over(classes: Path, stray: str) -> None:
    (classes / stray).parent.mkdir(exist_ok=True)
    for name in (stray, ".DS_Store", "Thumbs.db"):
        (classes / name).write_bytes(b"no picture")
    found = load_pictures(classes)
    names = [found.identifier(item) for item in range(len(found))]
    assert names == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]


def test_a_picture_beside_folders_of_classes_is_no_guess(classes: Path) -> None:
    picture(classes / "overview.png")
    with pytest.raises(ConfigError, match=r"1 pictures \(overview.png\) beside folders with 4"):
        load_pictures(classes)


def test_deeper_pictures_are_counted_and_said(classes: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(classes / "wild" / "fox" / "9.png")
    with caplog.at_level(logging.WARNING):
        assert len(load_pictures(classes)) == 4
    assert "1 pictures deeper than CLASS/NAME are left out: wild/fox/9.png" in caplog.text
    assert len(load_pictures(classes / "wild")) == 1  # seen from there, fox is a class


def test_captioned_pictures_say_what_lies_in_folders(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(folder / "old" / "p9.png")
    (folder / "captions.json").write_text('{"p0.png": "a"}')
    with caplog.at_level(logging.WARNING):
        assert len(load_pictures(folder)) == 3
    assert "1 pictures in folders of their own are left out: old/p9.png" in caplog.text


@pytest.mark.parametrize(("on_disk", "written"), [(NFD, NFC), (NFC, NFD)])
def test_names_match_however_letters_are_composed(folder: Path, on_disk: str, written: str) -> None:
    picture(folder / on_disk)
    (folder / "captions.json").write_text(json.dumps({written: "a bar"}))
    found = load_pictures(folder)
    place = [path.name for path in found.paths].index(on_disk)
    assert found.captions[place] == ("a bar",) and found.identifier(place) == NFC


def test_a_name_that_stands_there_twice(folder: Path) -> None:
    picture(folder / NFC)
    picture(folder / NFD)
    with pytest.raises(ConfigError, match="twice"):
        load_pictures(folder)


def test_a_name_that_is_no_text_is_one_sentence(folder: Path) -> None:
    (folder / "p0.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(ConfigError, match="not UTF-8: rename the file") as error:
        load_pictures(folder)
    assert "caf" in str(error.value) and str(error.value).encode()


# Captions


def test_a_byte_order_mark_is_no_letter(folder: Path) -> None:
    (folder / "captions.json").write_bytes(BOM + b'{"p0.png": "a cat"}')
    (folder / "p1.txt").write_bytes(BOM + b"a dog\r\nanother")
    found = load_pictures(folder)
    assert found.captions[:2] == (("a cat",), ("a dog", "another"))
    (folder / "captions.json").unlink()
    (folder / "captions.csv").write_bytes(BOM + b"file,caption\r\np0.png,a bar\r\n,\r\n   ,  \r\n\r\n")
    assert load_pictures(folder).captions[0] == ("a bar",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "file,caption\np0.png,a bar, on grass\n", "line 2: 3 cells, expected 2: quote"),
        ("captions.csv", "file,caption\np1.png\n", "line 2: 1 cells, expected 2: fill"),
        ("captions.csv", 'file,caption\np0.png,"a bar\np1.png,b\n', "double quote left open"),
        ("captions.csv", "file,caption\n", "names nothing"),
        ("captions.csv", "", "is empty"),
        ("captions.csv", "file,caption,file\np0.png,a,b\n", "each once"),
        ("captions.csv", "file,caption\n,a bar\n", "line 2: a caption of no file"),
        ("captions.json", '{"p0.png": null}', "not text"),
        ("captions.json", '{"p0.png": "a", "p0.png": "b"}', "stands there twice"),
        ("captions.json", '{"p0.png": NaN}', "NaN"),
        ("captions.json", "{}", "names no picture"),
        ("captions.json", "[" * 100_000, "nested too deeply"),
        ("captions.json", '{"p0.png": "\\ud800"}', "surrogate"),
        ("captions.json", '{"p0.png": "a"}'.encode("utf-16"), "UTF-16"),
        ("captions.csv", "file,caption\np0.png,caf\u00e9\n".encode("latin-1"), "line 2 cannot be read"),
    ],
)
def test_wrong_captions_are_one_sentence(folder: Path, name: str, content: str | bytes, message: str) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as error:
        load_pictures(folder)
    assert name in str(error.value) and "\n" not in str(error.value)


# Lines


def test_lines_end_at_a_line_feed_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(BOM + '{"a": "x\u2028y\u0085z"}\r\n\n  \n{"b": 1}'.encode())
    found = [(number, document(line)) for number, line in lines(file)]
    assert found == [(1, {"a": "x\u2028y\u0085z"}), (4, {"b": 1})]
    for wrong in ('{"a": NaN}', "{", '{"a": 1, "a": 2}', "[" * 100_000):
        with pytest.raises(BadLine):
            document(wrong)


GOOD = {"offset": 7, "label": "cat"}


def test_labels_are_what_the_service_takes(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    other = {"topic": "t", "partition": 2, "offset": 0, "label": "a\u2028b"}
    text = json.dumps(GOOD) + "\r\n\n" + json.dumps(other, ensure_ascii=False)
    file.write_bytes(BOM + text.encode())
    assert read_labels(file, "q") == [(Coordinates("q", 0, 7), "cat"), (Coordinates("t", 2, 0), "a\u2028b")]


@pytest.mark.parametrize(
    "line",
    [
        '{"offset": 7, "label": null}', '{"offset": 7, "label": NaN}', '{"offset": 7, "label": ["cat"]}',
        '{"offset": 7.9, "label": "cat"}', '{"offset": true, "label": "cat"}',
        '{"offset": "7", "label": "cat"}', '{"label": "cat"}',
        '{"offset": -1, "label": "cat"}', '{"offset": 1e20, "label": "cat"}', '{"offset": 7, "label": ""}',
        json.dumps({"offset": 7, "label": "x" * 300}), '{"offset": 7, "label": "\\ud800"}',
        '{"offset": 7, "label": "cat",}', "[1]", "7", '{"offset": 7, "label": 3}',
        '{"offset": 7, "label": "cat", "partition": -1}',
    ],
)  # fmt: skip
def test_wrong_labels_are_named_by_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=r"labels.jsonl, line 2: ") as error:
        read_labels(file, "q")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no label"),
        (json.dumps(GOOD).encode("utf-16"), "UTF-16"),
        (b'{"offset": 7, "label": "caf\xe9"}', "UTF-8"),
    ],
)
def test_files_of_labels_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_labels(tmp_path / "labels.jsonl", "q")


def test_the_command_says_one_sentence_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text('{"offset": 7.9, "label": "cat"}\n')
    environment = {**os.environ, "QSHIFT_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    script = "import sys; from qshift.cli import main; sys.exit(main())"
    for file, said in (("labels.jsonl", "line 1: offset"), ("none.jsonl", "cannot be read")):
        found = subprocess.run(
            [sys.executable, "-c", script, "labels", str(tmp_path / file)], capture_output=True, text=True,
            env=environment,
        )  # fmt: skip
        assert found.returncode == 2 and said in found.stderr and "Traceback" not in found.stderr


def test_a_journal_names_the_line_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1: not a journal entry"):
        read_journal(tmp_path / "j")


def test_tables_keep_quoted_commas_and_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('caption,file\n"a, ""b""\nc",x.png\n')
    found = rows(tmp_path / "t.csv", ("file", "caption"))
    assert found == [(3, {"caption": 'a, "b"\nc', "file": "x.png"})]
