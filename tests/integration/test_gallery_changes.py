"""A gallery that changes under a service: no answer is lost, torn, or another one when it is repeated."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from encoders.base_model import load_base
from qshift.build import load_gallery
from qshift.demo.galleries import add, remove
from stream.codec import vector_query
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
