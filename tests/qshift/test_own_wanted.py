"""What queries of one's own want, on the command line and in their lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_vectors import attributes, gallery_features, shifted, write_vectors
from typer.testing import CliRunner

from core.config import Config
from core.errors import ConfigError, Refused
from core.filters import ANYTHING, Wanted, wanted
from core.records import Coordinates, Record
from qshift.build import engine
from qshift.cli import app
from qshift.commands.options import wants
from qshift.demo.file_queries import read_queries
from qshift.demo.produce import wanting
from qshift.offline import run_offline
from qshift.replay.own_message import own_message
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.schedule import Item
from stream.codec import Codec, decode_answer, image_query, text_query

LIMITS = Config().limits


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("own"))


def config(here: Path) -> Config:
    return Config.model_validate({"base": here / "base", "gallery": here / "gallery", "device": "cpu"})


def written(here: Path, *lines: dict[str, Any]) -> Path:
    path = here / "my.jsonl"
    path.write_text(
        "\n".join(json.dumps({"vector": gallery_features()[7].tolist(), **line}) for line in lines)
    )
    return path


def answered(here: Path, *lines: dict[str, Any], usual: Wanted = ANYTHING) -> list[list[int]]:
    """Items that are found for each line."""
    settings, path = config(here), written(here, *lines)
    own = own_queries(path, *own_parts(here / "gallery", here / "base"), settings, usual=usual)
    _, sink = run_offline(engine(settings), own.records, [])
    found = [decode_answer(record.value or b"").results for record in sink.records["answers"]]
    return [[int(name.removeprefix("item-")) for name, _ in results] for results in found]


def test_a_line_says_what_it_wants_and_the_command_what_the_others_want(here: Path) -> None:
    usual = wanted(4, {"colour": "green"})
    lines = [
        {},
        {"top": 2},
        {"filter": {"year": {"from": 2020}, "tags": "sale"}},
        {"filter": {"colour": "red"}},
    ]
    plain, two, sale, red = answered(here, *lines, usual=usual)
    said = attributes()
    assert len(plain) == 4 and {said[item]["colour"] for item in plain} == {"green"} and plain[0] == 7
    assert two == plain[:2]
    assert len(sale) == 4 and all("sale" in said[i]["tags"] and said[i]["year"] >= 2020 for i in sale)
    assert {said[item]["colour"] for item in red} == {"red"}
    near = np.argsort(-gallery_features() @ gallery_features()[7], kind="stable")
    assert plain == [int(item) for item in near if said[item]["colour"] == "green"][:4]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ({"top": 0}, "top: expected a whole number"), ({"top": 101}, "top: 101 items, at most 100"),
        ({"filter": {"year": {}}}, "filter: 'year': a range is"), ({"threshold": 7}, "threshold: expected"),
    ],
)  # fmt: skip
def test_a_line_that_wants_the_impossible_is_left_out_and_said(
    here: Path, line: dict[str, Any], word: str
) -> None:
    parts = own_parts(here / "gallery", here / "base")
    own = own_queries(written(here, {}, line), *parts, config(here))
    assert len(own.records) == 1 and own.refused[0].where == "line 2" and word in own.refused[0].reason
    (here / "texts.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "a", **line}))
    sent = read_queries(here / "texts.jsonl", config(here))
    assert len(sent.items) == 1 and sent.refused[0][0] == 2 and word in sent.refused[0][1]


def test_a_filter_that_nothing_passes_is_said_before_the_run(here: Path) -> None:
    lines = [{"filter": {"color": "red"}}, {"filter": {"colour": "red"}}, {"filter": {"color": "red"}}]
    own = own_queries(written(here, *lines), *own_parts(here / "gallery", here / "base"), config(here))
    assert (
        '2 queries can find nothing, no item of the gallery passes the filter: {"color": "red"}'
        in own.notes()
    )


def test_queries_that_are_made_want_it_too() -> None:
    want, codec = wanted(3, {"colour": "red"}, 0.5), Codec(LIMITS, Config().kafka)
    for value, headers in (text_query("a turtle"), image_query(b"\x89PNG")):
        item = wanting(Item("all", value, tuple(headers), "label"), want)
        at = Coordinates("qshift.queries", 0, 0)
        assert codec.decode(Record(at, item.value, None, item.headers)).wanted == want  # type: ignore[union-attr]
        assert wanting(Item("all", value, tuple(headers), "label"), ANYTHING).value == value


def test_a_line_without_a_threshold_takes_the_usual_one(tmp_path: Path) -> None:
    def threshold(line: dict[str, Any]) -> Any:
        value, _ = own_message({"text": "a", **line}, "q", tmp_path, LIMITS, wanted(threshold=0.5))
        return json.loads(value)["threshold"]

    assert (threshold({}), threshold({"threshold": 0.0}), threshold({"threshold": 0.9})) == (0.5, 0.0, 0.9)
    with pytest.raises(Refused, match="threshold"):
        own_message({"text": "a", "threshold": "x"}, "q", tmp_path, LIMITS)


@pytest.mark.parametrize(
    ("top", "said", "threshold", "word"),
    [
        (0, "", None, "--top: expected"), (None, "{", None, "--filter is not JSON"),
        (None, "7", None, "--filter: expected an object"), (None, "", 2.0, "--threshold: expected"),
        (None, '{"a": []}', None, "--filter: 'a' lists no value"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_wanted(top: Any, said: str, threshold: Any, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wants(top, said, threshold)
    assert str(caught.value).startswith(word) and "\n" not in str(caught.value)


def test_options_of_commands(here: Path) -> None:
    rows, labels = shifted(32)
    lines = [json.dumps({"vector": row.tolist(), "label": f"item-{i}"}) for row, i in zip(rows, labels)]
    (here / "shifted.jsonl").write_text("\n".join(lines))
    asked = ["replay", "queries", str(here / "shifted.jsonl"), "--base", str(here / "base")]
    asked += ["--gallery", str(here / "gallery"), "--method", "frozen", "--filter"]
    result = CliRunner().invoke(app, [*asked, '{"colour": "red"}', "--top", "3"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, [*asked, '{"colour": "pink"}', "--threshold", "0.5"])
    assert "32 queries can find nothing" in " ".join(result.output.split())
    for command in (asked, ["produce", "--filter"]):
        result = CliRunner().invoke(app, [*command, "{"])
        assert result.exit_code != 0 and "--filter is not JSON" in str(result.exception)
    result = CliRunner().invoke(
        app, ["produce", "--top", "101"], env={"QSHIFT_BOOTSTRAP_SERVERS": "localhost:1"}
    )
    assert "--top 101: at most 100 are served" in str(result.exception)
