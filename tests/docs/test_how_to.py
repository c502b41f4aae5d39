"""The blocks of the how-to pages run as they are written: here, or where it is said."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from how_to import PAGES, ROOT, blocks, commands, page_rights, run
from PIL import Image
from toy_clips import write_clip
from toy_vectors import shifted, write_vectors

import qshift
from core.config import Config, KafkaConfig, LimitConfig
from encoders.base_model import load_base
from qshift.build import load_gallery
from qshift.demo.items import load_items
from qshift.replay.own_message import own_message
from stream.rights import topic_rights

NOT_RUN = {
    "qshift control": "needs a Kafka; tests/integration/test_control.py",
    "qshift bench": "minutes to hours, on data of others; tests/qshift/test_suite_run.py",
    "qshift fit clip my-pictures --model ViT-B-32": "needs its weights; tests/encoders/test_clip_folder.py",
    "qshift gallery compare": "needs 10,000 items; tests/qshift/test_gallery_commands.py",
    "qshift gallery follow": "needs a Kafka; tests/integration/test_gallery_changes.py",
    "qshift replay topic": "needs yesterday's topic; tests/integration/test_recording.py",
}
"""How commands begin that are not run here, why, and what runs them."""
CHANGES = "a-gallery-that-changes"
RUN = (
    "qshift replay queries my.jsonl",
    *(f"qshift gallery {what}" for what in ("info", "add", "remove", "export", "swap")),
    "qshift replay queries asked.npy",
    "python vectors.py",
    "qshift replay queries my-pictures",
)
"""Here, as is all of bring-your-clip; and in test_filter_page.py."""
NIGHTLY = (
    "qshift broker up", "qshift fit", "qshift gallery build", "qshift serve", "qshift labels",
    "qshift produce", "curl ", "python -c",
)  # fmt: skip
"""By tests/nightly/test_how_to_pages.py, clients also by tests/integration/test_how_to_clients.py; of vectors
here, and by tests/integration/test_vector_files.py."""
CLIP = "bring-your-clip"
TOO_LONG = "two-domains"
"""Trains for minutes; tests/qshift/test_domain_base.py, test_evaluate.py, tests/adapters/test_parallel.py."""


def test_every_block_is_run_or_excused() -> None:
    """Python of own-loop is compared with the examples, which run: tests/examples; filter has a test file."""
    python = {page.stem: len(blocks(page.stem, "python")) for page in PAGES.glob("*.md")}
    asked = {"stream-queries": 2, "own-loop": 4, "filter": 1, CHANGES: 2, "bring-your-vectors": 1}
    assert {page: count for page, count in python.items() if count} == asked
    excused = set()
    for command in (command for page in sorted({*python} - {TOO_LONG}) for command in commands(page)):
        starts = {start for start in NOT_RUN if command.startswith(start)}
        excused |= starts
        assert starts or command.removeprefix("PYTHONPATH=. ").startswith(RUN + NIGHTLY), command
    assert excused == set(NOT_RUN)


def test_clients_are_twelve_lines_of_plain_kafka_python() -> None:
    for code in blocks("stream-queries", "python"):
        lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 12
        assert "qshift" not in "".join(line for line in lines if "import" in line)


def test_kinds_of_line_are_those_that_replay_reads(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "clip").mkdir()
    for name in ("photos/17.jpg", "clip/1.png", "clip/2.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    lines = [json.loads(line) for block in blocks("replay", "json") for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        own_message(line, "q", tmp_path, LimitConfig())


def test_secured_kafka_shows_sections_that_can_be_used_and_the_rights_that_are_needed() -> None:
    """tests/integration/test_secured.py runs a service with the first section and these rights."""
    for text in blocks("secured-kafka", "toml"):
        assert Config.model_validate(tomllib.loads(text)).kafka.security.protocol != "PLAINTEXT"
    granted = set()
    (text,) = blocks("secured-kafka", "text")
    for command in text.splitlines():
        (right,) = re.findall(r"--operation (\w+)", command)
        granted |= {("service", right, *found) for found in re.findall(r"--(topic|group) (\S+)", command)}
    rights = page_rights()
    assert granted == {one for one in rights if one[0] == "service"}
    topics, group = topic_rights(KafkaConfig(), changelog=True), ("service", "Read", "group", "qshift")
    assert granted - {group} == {
        ("service", right, "topic", topic) for topic, needed in topics.items() for right in needed
    }
    assert {user for user, *_ in rights} == {"service", "asks", "labels", "replays", "commands"}


# -- replay ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and a gallery of vectors, queries, and the example of a method."""
    folder = tmp_path_factory.mktemp("asked")
    write_vectors(folder / "qshift-data")
    rows, chosen = shifted(128)
    lines = [json.dumps({"vector": row.tolist(), "label": f"item-{i}"}) for row, i in zip(rows, chosen)]
    (folder / "my.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(ROOT / "examples" / "own_method.py", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["own queries", "own method"])
def test_own_queries_are_replayed(asked: Path, number: int) -> None:
    found = [command for command in commands("replay") if "qshift replay queries" in command]
    said = run(found[number], asked)
    assert "frozen" in said and ("own_method:RunningMean" in said) == (number == 1)
    if number == 0:
        rows = json.loads((asked / "rows.json").read_text())
        assert rows and (asked / "rows.timings.json").exists()


# -- a gallery that changes -----------------------------------------------------------------------------


def test_kinds_of_item_are_those_that_add_reads(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photos/17.jpg")
    (block,) = blocks(CHANGES, "json")
    (tmp_path / "more.jsonl").write_text(block)
    found = load_items(tmp_path / "more.jsonl")
    assert [item.modality for item in found] == ["image", "text", "vector"]
    assert found[0].labels == ("seven", "red") and found[0].title == "A red seven"
    assert found[0].attributes == {"year": 2021}


@pytest.mark.slow
def test_a_gallery_changes_as_the_page_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and line of it, in order; the items are vectors, which the toy base takes."""
    write_vectors(tmp_path / "qshift-data")
    shutil.copytree(tmp_path / "qshift-data" / "gallery", tmp_path / "qshift-data" / "another-gallery")
    rows, _ = shifted(3)
    names = ("red-seven", "green-two", "b7")
    lines = [json.dumps({"id": name, "vector": row.tolist()}) for name, row in zip(names, rows)]
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    here = [command for command in commands(CHANGES) if not command.startswith("qshift gallery follow")]
    said = [run(command, tmp_path).splitlines()[-1] for command in here]
    begins = (
        "segment 1: 200 of 200",
        "3 items added, 0",
        "3 items added, 3",
        "2 items removed: 201",
        "written: 201",
    )
    assert [line.startswith(start) for line, start in zip(said, begins)] == [True] * 5
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 201
    assert len(np.load(tmp_path / "items.npz")["codes"]) == 201
    assert said[-1].startswith("qshift-data/another-gallery put in place: 200 items in ")
    _, code = blocks(CHANGES, "python")
    monkeypatch.chdir(tmp_path)
    space = {"qshift": qshift, "Path": Path, "vector": rows[0]}
    exec(code, space)
    assert len(space["session"].gallery) == 200  # type: ignore[attr-defined]
    assert (
        len(load_gallery(tmp_path / "qshift-data" / "gallery", load_base(tmp_path / "qshift-data" / "base")))
        == 200
    )


# -- bring your vectors ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_vectors_are_brought(tmp_path: Path) -> None:
    """From the files to a replay, whose adapted answers win back what the change has taken."""
    (code,) = blocks("bring-your-vectors", "python")
    (tmp_path / code.split("\n")[0].removeprefix("# ")).write_text(code)
    said = {command: run(command, tmp_path) for command in commands("bring-your-vectors")[:4]}
    starts = ["python vectors.py", "qshift fit vectors", "qshift gallery build", "qshift replay queries"]
    assert all(command.startswith(start) for command, start in zip(said, starts, strict=True))
    assert "5,000 items with 128-bit codes" in said[[*said][2]]
    frozen, default = json.loads((tmp_path / "rows.json").read_text())
    assert default["labels"] == 640 and default["map_minus_frozen"] > 5 and default["low"] > 0
    assert frozen["map"] > 20


# -- bring your CLIP ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clip_is_brought(tmp_path: Path) -> None:
    write_clip(tmp_path / "my-clip")
    (tmp_path / "my-pictures").mkdir()
    for number in range(120):
        blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        picture = Image.fromarray(blocks).resize((60, 48), Image.Resampling.NEAREST)
        picture.save(tmp_path / "my-pictures" / f"picture {number} of blocks.png")
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "mobilenet.pth")
    (tmp_path / "my-texts.txt").write_text("\n".join(f"text number {number}" for number in range(120)))
    for command in commands(CLIP):
        if command.startswith(tuple(NOT_RUN)):
            continue
        said = run(command, tmp_path)
        assert ("120 items with" in said) == command.startswith("qshift gallery build")
        assert ("frozen" in said) == command.startswith("qshift replay")
    assert (tmp_path / "qshift-data" / "base.features").is_dir()
