"""docs/how-to/filter.md: its files are read, its queries asked, its loop and its command run, as written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from how_to import blocks, commands, run
from PIL import Image
from toy_vectors import attributes, gallery_features, shifted, write_vectors

import qshift
from core.config import KafkaConfig, LimitConfig
from core.records import Coordinates, Record
from core.types import Query
from qshift.data.attributes import picture_attributes
from stream.codec import Codec, decode_answer


def json_blocks() -> list[list[str]]:
    return [block.splitlines() for block in blocks("filter", "json")]


def test_its_files_of_attributes_are_read(tmp_path: Path) -> None:
    names = ["seven-red.png", "two-green.png"]
    for name in names:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "attributes.jsonl").write_text("\n".join(json_blocks()[0]))
    lines = picture_attributes(tmp_path, names)
    assert lines is not None and lines[0]["tags"] == ("new", "sale") and lines[1]["year"] == 2016
    (tmp_path / "attributes.jsonl").unlink()
    (tmp_path / "attributes.csv").write_text(blocks("filter", "csv")[0])
    columns = picture_attributes(tmp_path, names)
    assert columns == [{name: one[name] for name in ("colour", "year")} for one in lines]


def test_its_queries_are_taken_and_its_answer_is_read() -> None:
    _, queries, (answer,) = json_blocks()
    codec, at = Codec(LimitConfig(), KafkaConfig()), Coordinates("qshift.queries", 0, 7)
    found = [codec.decode(Record(at, line.encode())) for line in queries]
    assert all(isinstance(one, Query) and one.wanted for one in found)
    assert decode_answer(answer.encode()).confidence == 0.4322
    assert json.loads(answer).keys() == json.loads(codec_answer()).keys()


def codec_answer() -> str:
    return (Path(__file__).parents[1] / "stream" / "golden" / "answer.v2.json").read_text()


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    write_vectors(tmp_path / "qshift-data")
    rows, chosen = shifted(32)
    lines = [json.dumps({"vector": row.tolist(), "label": f"item-{i}"}) for row, i in zip(rows, chosen)]
    (tmp_path / "my.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_its_loop_runs(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(asked)
    (code,) = blocks("filter", "python")
    exec(code, {"qshift": qshift, "queries": list(gallery_features()[:4])})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and "not sure enough" not in printed  # a base of vectors has no curve
    said = attributes()
    for line in printed:
        items = [int(number) for number in re.findall(r"item-(\d+)", line)]
        assert len(items) == 3
        assert all(said[i]["colour"] in ("red", "green") and said[i]["year"] >= 2018 for i in items)


@pytest.mark.slow
def test_its_command_runs(asked: Path) -> None:
    (command,) = commands("filter")
    assert "frozen" in run(command, asked)
