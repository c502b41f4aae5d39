"""A whole new gallery under a service by one command, and other commands that show in a live answer."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from core.records import Coordinates
from encoders.base_model import load_base
from index.gallery import VersionedGallery
from qshift.build import load_gallery
from qshift.demo.control import control
from qshift.demo.versions import of_topic
from qshift.replay.own import replay_topic
from stream.codec import Answer
from stream.recording import KafkaLog
from stream.states import entry_from_bytes

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PORTION, SECONDS = 48, 240.0


def another(gallery: VersionedGallery) -> VersionedGallery:
    """The same items under other names and keys, with noise: whoever mixes both is seen."""
    rows = gallery.features(gallery.keys())
    rows = rows + 0.05 * np.random.default_rng(5).normal(size=rows.shape)
    names = [f"new-{number}" for number in range(len(gallery))]
    labels = [gallery.labels_of(key) for key in gallery.keys().tolist()]
    return VersionedGallery(
        gallery.bits, names, gallery.codes_of(gallery.keys()), labels, rows, backend="exact",
        keys=np.arange(1000, 1000 + len(names)), base_version=gallery.base_version,
    )  # fmt: skip


class Day:
    """A service, whoever asks it, and what was sent; a command is given as the command line gives it."""

    def __init__(self, site: Any, values: list[Any]) -> None:
        self.site, self._values, self.sent = site, values, list[Coordinates]()

    def ask(self, portions: int = 1) -> list[Answer]:
        """Asks and waits for the answers, in the order of the queries."""
        sent = self.send(portions)
        self.site.wait(lambda: len(self.site.distinct()) >= len(self.sent), SECONDS)
        found = self.site.decoded()
        return [found[at] for at in sent]

    def send(self, portions: int = 1) -> list[Coordinates]:
        begins = len(self.sent)
        sent: list[Coordinates] = self.site.send(self._values[begins : begins + portions * PORTION])
        self.sent += sent
        return sent

    def order(self, action: Any, value: str) -> str:
        """Gives a command, waits until it is obeyed, and returns what was printed."""
        said = io.StringIO()
        with_status = control(
            action, value, "", "", "", "ann", SECONDS, self.site.file, Console(file=said, width=200)
        )
        assert with_status == 0, said.getvalue()
        return said.getvalue()


def test_a_swap_under_queries_loses_and_tears_no_answer_and_kills_change_nothing(
    broker: Any, make_site: Any, vector_world: Path, messages: Callable[..., Any], tmp_path: Path
) -> None:
    world = tmp_path / "world"
    shutil.copytree(vector_world, world)
    base = load_base(world / "base")
    first = load_gallery(world / "gallery", base)
    second = another(first)
    second.save(tmp_path / "new-gallery")
    site = make_site(broker, world)
    day, worker = Day(site, messages(PORTION * 10)[0]), site.worker()
    assert {answer.gallery_version for answer in day.ask()} == {first.version}
    day.send(2)  # under way while the gallery is put in place
    said: list[str] = []
    swap = threading.Thread(
        target=lambda: said.append(day.order("swap-gallery", str(tmp_path / "new-gallery")))
    )
    swap.start()
    day.send(2)
    swap.join()
    assert f"version {second.version}" in said[0] and said[0].count("applied at batch") == 2
    worker.kill()  # what came since the newest checkpoint is answered again, by the same version
    worker = site.worker()
    assert {answer.gallery_version for answer in day.ask()} == {second.version}
    worker.kill()
    day.send(1)
    worker = site.worker()
    day.ask()

    sent = site.distinct()
    assert len(sent) == len(day.sent) and {len(values) for values in sent.values()} == {1}
    decoded = site.decoded()
    answers = [decoded[at] for at in day.sent]
    for answer in answers:
        new = answer.gallery_version == second.version
        assert all(name.startswith("new-") == new for name, _ in answer.results), "a torn answer"
    versions = [answer.gallery_version for answer in answers]
    assert versions == sorted(versions, key=[first.version, second.version].index), "back and forth"
    with KafkaLog(site.servers) as log:
        bounds = log.bounds(site.kafka.journal)
        entries = [entry_from_bytes(record.value or b"") for record in log.read(site.kafka.journal, bounds)]
    assert {entry.gallery for entry in entries if not entry.offsets} == {second.version}, (
        "a boundary of its own"
    )
    named = {entry.offsets[0]: entry.gallery for entry in entries if entry.offsets}
    assert {at.offset: found.gallery_version for at, found in decoded.items() if at.offset in named} == named

    # What is said in the folder is followed again, and a version that is kept is gone back to.
    day.order("swap-gallery", first.version)
    assert {answer.gallery_version for answer in day.ask()} == {first.version}
    day.order("swap-gallery", "newest")
    assert {answer.gallery_version for answer in day.ask()} == {second.version}
    worker.terminate()
    assert {len(values) for values in site.distinct().values()} == {1}

    for folder, former in ((world / "gallery", []), (tmp_path / "new-gallery", [vector_world / "gallery"])):
        config = site.config.model_copy(update={"gallery": folder})
        told = Console(file=io.StringIO(), width=200)
        versions_of = of_topic(config, told, former)
        rows = replay_topic(site.kafka.queries, "", "", (), config, ["frozen"], told, None, versions_of)
        assert rows[0].queries == len(day.sent)
        assert "gallery versions of the recording: 2 kept" in told.file.getvalue()  # type: ignore[attr-defined]


def test_a_bound_on_the_weight_shows_in_the_answers(
    broker: Any, make_site: Any, vector_world: Path, messages: Callable[..., Any]
) -> None:
    site = make_site(broker, vector_world, adapt={"method": "centring"})
    values = messages(PORTION * 6)[0]
    for number, (value, headers) in enumerate(values):  # moved far away, all the same way
        told = json.loads(value)
        values[number] = (json.dumps({**told, "vector": [x + 0.3 for x in told["vector"]]}).encode(), headers)
    day, worker = Day(site, values), site.worker()
    assert max(answer.weight for answer in day.ask(2)) > 0.5, "there is nothing to bound"
    day.order("w", "0.5")
    assert max(answer.weight for answer in day.ask()) == 0.5
    worker.kill()
    worker = site.worker()
    assert max(answer.weight for answer in day.ask()) == 0.5, "it holds on"
    day.order("w", "free")
    assert max(answer.weight for answer in day.ask(2)) > 0.5
    worker.terminate()
    assert {len(found) for found in site.distinct().values()} == {1}
