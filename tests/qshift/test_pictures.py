"""Folders of captioned pictures as people have them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from core.errors import ConfigError
from qshift.data.pictures import load_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("big_red-bus.png", "b.JPG", "c.webp", "a.jpeg", "notes.md"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "x.png").mkdir()
    return tmp_path


def test_names_and_text_files(folder: Path) -> None:
    (folder / "b.txt").write_text("a boat\n\n  a ship \n")
    (folder / "c.txt").write_text("\n")
    found = load_pictures(folder)
    assert [found.identifier(i) for i in range(len(found))] == [
        "a.jpeg",
        "b.JPG",
        "big_red-bus.png",
        "c.webp",
    ]
    assert found.captions == (("a",), ("a boat", "a ship"), ("big red bus",), ("c",))
    assert found.content(1) == b"b.JPG"


def test_json_wins_over_text_files(folder: Path) -> None:
    (folder / "b.txt").write_text("a boat")
    (folder / "captions.json").write_text(
        json.dumps({"b.JPG": "été", "c.webp": ["one", "two"], "a.jpeg": ""})
    )
    assert load_pictures(folder).captions == (("a",), ("été",), ("big red bus",), ("one", "two"))


def test_folders_by_class(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/9.png", "dog/1.jpg", "dog/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    found = load_pictures(tmp_path)
    assert [found.identifier(i) for i in range(len(found))] == ["cat/9.png", "dog/1.jpg", "dog/2.png"]
    assert found.classes == ("cat", "dog", "dog")
    assert found.captions == (("cat",), ("dog",), ("dog",))
    assert found.content(0) == b"cat/9.png"


def test_csv(folder: Path) -> None:
    (folder / "captions.csv").write_bytes(
        b'\xef\xbb\xbffile,caption\nb.JPG,"a boat, red"\nb.JPG,second\na.jpeg,an apple\n'
    )
    assert load_pictures(folder).captions[:2] == (("an apple",), ("a boat, red", "second"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.json", "[1]", "not a JSON object"),
        ("captions.json", "{", "cannot be read"),
        ("captions.json", '{"a.jpeg": 3}', "not text"),
        ("captions.json", '{"a.jpeg": [3]}', "not text"),
        ("captions.json", '{"lost.png": "a"}', "1 pictures that are not there: lost.png"),
        ("captions.csv", "name,text\na,b\n", "expected the columns file and caption"),
        ("captions.csv", "file,caption\nlost.png,b\n", "not there"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read"),
        ("captions.csv", b"file,caption\n\xff,b\n", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_said(folder: Path, name: str, content: str | bytes, message: str) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        load_pictures(folder)


def test_two_lists_no_pictures_no_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "captions.json").write_text("{}")
    (folder / "captions.csv").write_text("file,caption\n")
    with pytest.raises(ConfigError, match="keep one"):
        load_pictures(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no pictures"):
        load_pictures(empty)
    with pytest.raises(ConfigError, match="not a folder"):
        load_pictures(tmp_path / "nowhere")


def test_pictures_without_a_caption_beside_others_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("p0.png", "p1.png", "p2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "captions.json").write_text('{"p0.png": "a cat"}')
    found = load_pictures(tmp_path)
    assert found.captions == (("a cat",), ("p1",), ("p2",))
    (said,) = [record.getMessage() for record in caplog.records]
    assert "2 pictures have no caption in captions.json" in said and said.endswith("p1.png, p2.png")
