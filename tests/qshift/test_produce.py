"""`qshift produce FILE` and `qshift labels FILE`: each line judged as the service would."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from core.config import Config
from core.errors import ConfigError
from qshift import cli
from qshift.demo.file_queries import SAID, read_queries
from qshift.demo.labels import read_labels
from qshift.demo.produce import produce

LONG = "n" * 300


def png(side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(png()[:45])
    (tmp_path / "gif.png").write_bytes(b"GIF89a" + bytes(20))
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


def jsonl(folder: Path, *entries: object, name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in entries))
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.txt", "queries", "q.JSON"])
def test_a_file_has_any_name(folder: Path, name: str) -> None:
    path = jsonl(folder, {"text": "a cat", "id": "x", "label": "cat"}, "", {"vector": [1, 2]}, name=name)
    found = read_queries(path, Config())
    assert [item.label for item in found.items] == ["cat", ""] and b"a cat" in found.items[0].value
    assert not found.refused and not found.strangers


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": ""}, "text"),
        ({"text": "  "}, "empty"),
        ({"text": "\u200b\ufe0f"}, "no letter of it can be seen"),
        ({"text": "x" * 2001}, "2001 characters, at most 2000"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": "a", "label": "\ud800"}, "the label holds half of a surrogate"),
        ({"text": "a", "label": "x" * 257}, "the label has 257 characters"),
        ({"text": "a", "label": []}, "the label is a list"),
        ({"text": "a", "label": True}, "the label is true"),
        ({"text": "a", "id": "x" * 257}, "the id has 257"),
        ({"text": "a", "id": {}}, "the id is an object"),
        ({"text": "a", "id": "\udfff"}, "the id holds half"),
        ({"text": 3}, "got text"),
        ({"txt": "a"}, "no query but txt"),
        ({"text": None}, "no query"),
        ("{", "not JSON"),
        ("7", "an object"),
        ('{"text": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"label": ' + "[" * 100_000, "nested"),
        ({"vector": [1, "2"]}, "finite numbers"),
        ({"vector": [True, False]}, "finite numbers"),
        ({"vector": []}, "finite numbers"),
        ({"vector": [10**300]}, "finite numbers"),
        ('{"vector": [1e999]}', "finite"),
        ({"image": "none.png"}, "no picture"),
        ({"image": LONG}, "no picture"),
        ({"image": "pipe.png"}, "no picture"),
        ({"image": "a\0"}, "path of a picture"),
        ({"image": 3}, "got a number"),
        ({"image": "broken.png"}, "not a whole"),
        ({"image": "gif.png"}, "GIF"),
        ({"image": "a.png", "text": "\u2060"}, "no letter"),
        ({"frames": ["a.png", "broken.png"]}, "frame 2 of 2"),
        ({"frames": ["a.png"] * 33}, "32"),
        ({"frames": [[0.0, 0.0]]}, "zero"),
    ],
)
def test_what_the_service_would_refuse_is_not_sent(folder: Path, line: object, said: str) -> None:
    found = read_queries(jsonl(folder, {"text": "a cat"}, line, {"image": "a.png"}), Config())
    assert len(found.items) == 2
    ((number, reason),) = found.refused
    assert number == 2 and said in reason and "\n" not in reason and len(reason) < 600
    with pytest.raises(ConfigError, match=r"holds no query that can be sent: line 1: "):
        read_queries(jsonl(folder, line), Config())


def test_limits_are_those_of_the_configuration(folder: Path) -> None:
    config = Config.model_validate({"limits": {"text_characters": 3, "image_pixels": 9}})
    found = read_queries(jsonl(folder, {"text": "four"}, {"image": "a.png"}, {"text": "abc"}), config)
    assert [line for line, _ in found.refused] == [1, 2] and len(found.items) == 1


def test_refusals_and_strange_fields_are_said(folder: Path) -> None:
    lines = [
        *({"text": ""} for _ in range(SAID + 2)),
        {"text": "a", "lable": "cat"},
        {"text": "b", "lable": "dog"},
    ]
    console = Console(file=io.StringIO(), width=500)
    read_queries(jsonl(folder, *lines), Config()).say(console)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[0].startswith("line 1 is refused: ") and len(said) == SAID + 2
    assert said[SAID] == f"{SAID + 2} queries refused, 2 of them not shown; sent: 2"
    assert said[-1] == f"fields that are not known are not used: lable (2 times, first in line {SAID + 3})"


@pytest.mark.parametrize("name", ["none", LONG, "pipe.png", "a.png"])
def test_a_source_that_cannot_be_read_is_one_sentence(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_queries(folder / name, Config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--shift", "--modality", "--seed"])
def test_options_that_do_not_apply_to_a_file_are_refused(folder: Path, flag: str) -> None:
    path = jsonl(folder, {"text": "a"})
    with pytest.raises(ConfigError, match=f"{flag} does not go with a file"):
        produce(path, ("noise",), "image", None, 0.0, True, 0, None, Console(quiet=True), (flag,))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"offset": 1, "label": "a", "partiton": 3}, "the field partiton is not known"),
        ({"offset": 1, "label": "\ud800"}, "surrogate"),
        ({"offset": 1, "label": "a", "topic": "\ud800"}, "surrogate"),
        ({"offset": 1, "label": "a", "topic": None}, "topic"),
        ('{"offset": ' + "9" * 5000 + ', "label": "a"}', "digits"),
        ('{"offset": 1, "label": ' + "[" * 900 + "]" * 900 + "}", "label"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_line(folder: Path, line: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"line 2: .*{said}") as error:
        read_labels(jsonl(folder, {"offset": 0, "label": "b"}, line), "q")
    assert "\n" not in str(error.value) and str(error.value).encode()


@pytest.mark.parametrize(
    "words",
    [
        ("fit", LONG),
        ("fit", "psca", LONG, "--target", "x"),
        ("gallery", "build", LONG),
        ("produce", LONG),
        ("produce", "pipe.png"),
        ("labels", LONG),
        ("labels", "pipe.png"),
        ("labels", "."),
        ("labels", "a\udcff"),
        ("replay", "queries", LONG, "--base", ".", "--gallery", "."),
        ("replay", "demo", "--journal", LONG),
        ("replay", "demo", "--journal", "pipe.png"),
        ("replay", "demo", "--json", LONG),
        ("bench", "core", "--html", LONG),
        ("labels", "q.jsonl", "-c", LONG),
        ("replay", "queries", "q.jsonl", "--base", LONG, "--gallery", LONG),
        ("gallery", "build", "\udcff"),
        ("produce", "q.jsonl", "--rate", "nan"),
        ("broker", "down", "--dir", LONG),
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG").encode("ascii", "backslashreplace").decode(),
)
def test_arguments_that_lead_nowhere_are_one_sentence(
    folder: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jsonl(folder, {"text": "a"})
    monkeypatch.chdir(folder)
    monkeypatch.setenv("QSHIFT_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr("sys.argv", ["qshift", *words])
    monkeypatch.setattr(cli, "ERRORS", cli.console(stderr=True))
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and len(said) < 1000
