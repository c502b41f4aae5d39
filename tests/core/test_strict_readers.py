"""What lies at a path and what a line says, whatever it is: one sentence, no traceback, no waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.artifacts import read_manifest
from core.config_file import load
from core.errors import ArtifactError, ConfigError
from core.readers.lines import BadLine, content, document, text
from core.readers.places import bytes_of, is_file, is_folder, names_in, shown, there

LONG = "n" * 300


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of names that are no plain files."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    return tmp_path


ODD = ["pipe", "loop", "broken", "folder", "none", LONG, "a\0b", "\udcff", "\ud800", "folder/x" * 900]


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_plain_file_is_one_sentence(odd: Path, name: str) -> None:
    for reader in (bytes_of, content, text, load):
        with pytest.raises(ConfigError, match=r"cannot (be )?read") as error:
            reader(odd / name)
        said = str(error.value)
        assert "\n" not in said and said.encode() and len(said) < 600
    assert not is_file(odd / name)
    assert is_folder(odd / name) == (name == "folder") and there(odd / name) == (name in ("folder", "pipe"))
    with pytest.raises(ArtifactError):
        read_manifest(odd / name, "base")


def test_a_folder_that_cannot_be_listed(odd: Path) -> None:
    assert names_in(odd) == ["broken", "folder", "loop", "pipe"]
    for name in ("none", "pipe", LONG):
        with pytest.raises(ConfigError, match="cannot be listed"):
            names_in(odd / name)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert bytes_of(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ConfigError, match="5 bytes, at most 4"):
        bytes_of(tmp_path / "a", 4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("9" * 5000, "5000 digits"),
        ("-" + "9" * 5000, "digits"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("1e999", "no finite number"),
        ("[-1e999]", "no finite number"),
        ("NaN", "no finite number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "twice"),
        ("", "not JSON"),
        ("\0", "not JSON"),
        ('"a\0b"', "not JSON"),
    ],
)
def test_what_no_parser_may_fall_over(line: str, said: str) -> None:
    for form in (line, line.encode()):
        with pytest.raises(BadLine, match=said) as error:
            document(form)
        assert len(str(error.value)) < 200


def test_numbers_that_can_be_used_are() -> None:
    assert document("[1, -2, 0.1, 1e3, 1e-400]") == [1, -2, 0.1, 1000.0, 0.0]
    assert document("9" * 300) == int("9" * 300)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("seed = " + "9" * 5000, "not TOML"),
        ("seed = \0", "not TOML"),
    ],
)
def test_settings_that_no_parser_may_fall_over(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "s.toml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "s.toml")


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[]", "null", '{"kind": "base"}', '{"kind": "base", "files": 3}'],
)
def test_manifests_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path, "base")


def test_a_path_in_a_sentence_is_one_line_of_text() -> None:
    assert shown("a\nb\udce9\u2028é\U0001fae8") == "a\\nb\\udce9\\u2028é\U0001fae8"
    assert len(shown("x" * 5000)) < 300


def test_a_pipe_that_the_shell_hands_over_is_read() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as end:
        end.write(b'{"offset": 7, "label": "cat"}\n')
    assert bytes_of(Path(f"/dev/fd/{reading}")) == b'{"offset": 7, "label": "cat"}\n'
    os.close(reading)
