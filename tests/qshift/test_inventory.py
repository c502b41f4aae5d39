"""Every name in a user's folder is used, or counted and said."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from core.errors import ConfigError
from qshift.data.pictures import PictureSet, load_pictures

Said = dict[str, tuple[int, str]]


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def read(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[PictureSet, Said]:
    """The pictures, and by kind how many were said to be left out, with their names."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = load_pictures(folder)
    said = {}
    for record in caplog.records:
        if "have no caption in" in record.getMessage():
            continue
        parts = re.fullmatch(r".*?: (\d+) (.+) are left out: (.+)", record.getMessage())
        assert parts and parts[2] not in said
        said[parts[2]] = (int(parts[1]), parts[3])
    return found, said


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    folder = tmp_path / "sorted"
    put(folder, "cat/0.png", "cat/1.png", "dog/0.png")
    return folder


def test_a_clean_folder_says_nothing(classes: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(classes, caplog)[1] == {} and read(classes / "cat", caplog)[1] == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cat/a.gif", "pictures in formats that are not read"),
        ("cat/a.BMP", "pictures in formats that are not read"),
        ("dog/a.tif", "pictures in formats that are not read"),
        ("a.heic", "pictures in formats that are not read"),
        ("cat/stray.txt", "texts beside no picture"),
        ("cat/0.txt", "texts of pictures that are captioned otherwise"),
        (".hidden/0.png", "names that begin with a dot"),
        (".ipynb_checkpoints/0.png", "names that begin with a dot"),
        ("cat/.0.png", "names that begin with a dot"),
        ("__MACOSX/._0.png", "leftovers of other systems"),
        ("cat/._0.png", "leftovers of other systems"),
        ("Thumbs.db", "leftovers of other systems"),
        ("README.md", "files that are neither pictures nor captions"),
        ("cat/captions.json", "files that are neither pictures nor captions"),
        ("wild/fox/9.png", "pictures deeper than CLASS/NAME"),
    ],
)
def test_each_kind_is_counted_and_named(
    classes: Path, caplog: pytest.LogCaptureFixture, name: str, kind: str
) -> None:
    put(classes, name)
    found, said = read(classes, caplog)
    first = name.partition("/")[0]
    whole = first.startswith((".", "__"))  # such a folder is not looked into
    assert len(found) == 3 and said == {kind: (1, first if whole else name)}


def test_links_folders_and_what_is_no_file(classes: Path, caplog: pytest.LogCaptureFixture) -> None:
    (classes / "empty").mkdir()
    (classes / "cat" / "gone.png").symlink_to("nowhere.png")
    (classes / "cat" / "loop.png").symlink_to("loop.png")
    (classes / "round").symlink_to(classes)
    (classes / "up").symlink_to(classes.parent)
    os.mkfifo(classes / "cat" / "pipe.png")
    _, said = read(classes, caplog)
    assert said == {
        "folders without pictures": (1, "empty"),
        "links that lead nowhere": (2, "cat/gone.png, cat/loop.png"),
        "linked folders that lead back or lie below others": (2, "round, up"),
        "names that are no plain files": (1, "cat/pipe.png"),
    }


def test_a_linked_class_is_a_class(classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "elsewhere", "0.png", "deep/1.png")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (classes / "fox").symlink_to(tmp_path / "elsewhere")
    found, said = read(classes, caplog)
    assert [found.identifier(item) for item in range(4)] == [
        "cat/0.png",
        "cat/1.png",
        "dog/0.png",
        "fox/0.png",
    ]
    assert said == {
        "pictures deeper than CLASS/NAME": (1, "fox/deep/1.png"),
        "linked folders that lead back or lie below others": (1, "fox/again"),
    }


def test_every_name_is_used_or_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names of every sort at three depths; used and said together are all there are."""
    names = ["a.png", "b.JPG", "a.txt", "z.txt", "x.gif", ".h", "._a.png", "n.md", "Thumbs.db"]
    put(tmp_path, *names, *(f"old/{name}" for name in names), *(f"old/er/{name}" for name in names))
    (tmp_path / "captions.json").write_text('{"b.JPG": "a boat"}')
    found, said = read(tmp_path, caplog)
    used = {"a.png", "b.JPG", "a.txt"}
    assert {path.name for path in found.paths} == {"a.png", "b.JPG"}
    assert sum(count for count, _ in said.values()) == 3 * len(names) - len(used)


def test_texts_that_are_not_read_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("from the text")
    (tmp_path / "b.TXT").write_text("read, too")
    (tmp_path / "captions.json").write_text('{"a.png": "from the list"}')
    found, said = read(tmp_path, caplog)
    assert found.captions == (("from the list",), ("read, too",))
    assert said == {"texts of pictures that are captioned otherwise": (1, "a.txt")}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((".a.png", ".b.png"), r"left out are 2 names that begin with a dot \(.a.png, .b.png\)"),
        (("a.gif",), r"left out are 1 pictures in formats that are not read \(a.gif\)"),
        (("x/y/1.png",), "1 lie deeper than that"),
    ],
)
def test_a_folder_without_pictures_says_why(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(ConfigError, match=f"no pictures in .*{said}"):
        load_pictures(tmp_path)


def test_captions_beside_folders_of_classes_are_no_guess(classes: Path) -> None:
    (classes / "captions.json").write_text('{"cat/0.png": "a cat"}')
    with pytest.raises(ConfigError, match="captions pictures beside it"):
        load_pictures(classes)


def test_a_class_whose_name_is_no_text_is_refused(classes: Path) -> None:
    (classes / "dog").rename(classes / os.fsdecode(b"caf\xe9"))
    with pytest.raises(ConfigError, match="not UTF-8: rename the folder") as error:
        load_pictures(classes)
    assert str(error.value).encode()


def test_a_class_that_stands_there_twice(classes: Path) -> None:
    put(classes, "caf\u00e9/0.png", "cafe\u0301/0.png")
    with pytest.raises(ConfigError, match="twice"):
        load_pictures(classes)


def test_a_name_that_breaks_lines_does_not(classes: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(classes, "a\nb.gif")
    assert read(classes, caplog)[1] == {"pictures in formats that are not read": (1, "a\\nb.gif")}
