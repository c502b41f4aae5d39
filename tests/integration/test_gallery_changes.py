"""A gallery that changes under a service: no answer is lost, torn, or another one when it is repeated."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from how_to import blocks, run
from PIL import Image
from rich.console import Console

from encoders.base_model import load_base
from qshift.build import load_gallery
from qshift.demo.galleries import add, remove
from qshift.demo.versions import of_topic
from qshift.replay.own import replay_topic
from stream.codec import text_query, vector_query
from stream.recording import KafkaLog
from stream.states import entry_from_bytes

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def versions(site: Any) -> list[str]:
    """Of the answers, in the order of their queries, each once in a row."""
    found = [answer.gallery_version for _, answer in sorted(site.decoded().items())]
    return [version for number, version in enumerate(found) if number == 0 or found[number - 1] != version]


def test_items_come_and_go_while_it_answers_and_a_kill_changes_nothing(
    broker: Any, make_site: Any, vector_world: Path, messages: Any, tmp_path: Path
) -> None:
    world = tmp_path / "world"
    shutil.copytree(vector_world, world)
    folder, console = world / "gallery", Console(file=io.StringIO())
    gallery = load_gallery(folder, load_base(world / "base"))
    first = gallery.version
    site, sent = make_site(broker, world), list[Any]()

    def ask(batch: list[Any]) -> None:
        sent.extend(site.send(batch))
        site.wait(lambda: len(site.distinct()) >= len(sent))

    def ask_until(version: str) -> None:
        """Batches, until one is answered from the version."""
        deadline = time.monotonic() + 60
        while version not in versions(site):
            assert time.monotonic() < deadline
            ask(messages(16, seed=len(sent))[0])

    worker = site.worker()
    ask_until(first)
    new = gallery.features(gallery.keys()[:1])[0] * -1
    line = {"id": "the new one", "vector": new.tolist(), "labels": ["new"]}
    (tmp_path / "more.jsonl").write_text(json.dumps(line))
    add(tmp_path / "more.jsonl", folder, world / "base", False, console)
    second = load_gallery(folder, load_base(world / "base")).version
    ask_until(second)
    ask([vector_query(new)] * 16)
    assert [answer.results[0][0] for answer in site.decoded().values()].count("the new one") == 16
    worker.kill()  # the last batches are in no checkpoint
    remove(["the new one", gallery.identifier(3)], folder, console)
    third = load_gallery(folder, load_base(world / "base")).version
    worker = site.worker()
    ask_until(third)
    ask([vector_query(new)] * 16)
    worker.terminate()
    assert {len(values) for values in site.distinct().values()} == {1}, "a repeated answer is another one"
    assert versions(site) == [first, second, third] and len({first, second, third}) == 3
    with KafkaLog(site.servers) as log:
        bounds = log.bounds(site.kafka.journal)
        entries = [entry_from_bytes(record.value or b"") for record in log.read(site.kafka.journal, bounds)]
    answers = site.decoded()
    named = {entry.offsets[0]: entry.gallery for entry in entries}
    assert {at.offset: answers[at].gallery_version for at in answers if at.offset in named} == named
    # A repeated answer may have been given by the worker that was killed, too: it is one and the same.
    assert len(answers) == len(sent)
    for answer in answers.values():
        assert "the new one" not in dict(answer.results) or answer.gallery_version == second
    said = Console(file=io.StringIO(), width=200)
    versions_of = of_topic(site.config, said)
    rows = replay_topic(site.kafka.queries, "", "", (), site.config, ["frozen"], said, None, versions_of)
    assert rows[0].queries == len(sent)
    assert "gallery versions of the recording: 3 kept" in said.file.getvalue()  # type: ignore[attr-defined]


def test_a_topic_becomes_the_gallery_that_is_asked(
    broker: Any, make_site: Any, clip_world: Path, topics: Any, tmp_path: Path
) -> None:
    """Producer and command of the page, as written but for address and topic; beside a service."""
    world = tmp_path / "world"
    shutil.copytree(clip_world, world)
    site = make_site(broker, world, kafka={"items": topics("items")}, batch={"linger_seconds": 0.2})
    site.worker()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    code, _ = blocks("a-gallery-that-changes", "python")
    code = code.replace("127.0.0.1:9092", broker.bootstrap_servers).replace("qshift.items", site.kafka.items)
    follow = f"qshift gallery follow --config {site.file} --once"
    assert run(follow, tmp_path) == "", "it makes the topic, which is empty"
    (tmp_path / "items.py").write_text(code)
    run("python items.py", tmp_path)
    said = run(follow, tmp_path)
    gallery = load_gallery(world / "gallery", load_base(world / "base"))
    assert said.startswith("2 put in, 1 taken out, 1 refused: ") and gallery.version in said
    assert run(follow, tmp_path) == "", "nothing is taken in twice"
    assert gallery.holds("red-seven") and gallery.holds("photo") and not gallery.holds("item-3")
    assert gallery.display(gallery.key_of("photo")).title == "A photo"
    (letter,) = site.dead_letters()
    assert letter.key == b"broken" and dict(letter.headers)["x-source-topic"] == site.kafka.items.encode()
    deadline = time.monotonic() + 60
    while gallery.version not in versions(site):
        assert time.monotonic() < deadline
        sent = site.send([text_query("a red seven")])
        site.wait(lambda sent=sent: sent[0] in site.decoded())
    assert site.decoded()[sent[0]].results[0] == ("red-seven", 0)
