"""Runs off line: how fast the machine is decides nothing."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from toy_vectors import shifted, write_vectors
from toy_world import WIDTH, small_world
from typer.testing import CliRunner

from core.config import Config
from core.records import Judgement, Refusal
from core.types import Outcome
from encoders.vector import VectorEncoder
from index.versions import GalleryVersions
from qshift.build import assemble, engine
from qshift.cli import app
from qshift.offline import run_offline
from qshift.replay.offline import replay
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.schedule import Item, Phase, Schedule, hash_answers
from stream import codec

COUNT, SIZE, LINGER = 300, 48, 0.002


def query(phase: Phase, index: int) -> Item:
    value, headers = codec.vector_query(np.random.default_rng(index).normal(size=WIDTH).astype(np.float32))
    return Item(phase.name, value, tuple(headers), f"class {index % 6}")


SCHEDULE = Schedule((Phase("all", "vector", ("clean",), COUNT),), query)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A batch size that divides no poll, and a patience shorter than one batch takes."""
    small_world(tmp_path)
    batch = {"size": SIZE, "floor": 8, "linger_seconds": LINGER}
    return Config.model_validate({"base": tmp_path / "base", "gallery": tmp_path / "gallery", "batch": batch})


class Slow:
    """An observer that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.sizes = seconds, list[int]()

    def observe(self, outcome: Outcome) -> None:
        self.sizes.append(len(outcome.batch))
        time.sleep(self.seconds)

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


def test_a_slow_machine_gives_the_same_bytes(config: Config) -> None:
    records = [record for record, _ in SCHEDULE.records(config.kafka.queries)]
    found = []
    for seconds in (0.0, 2 * LINGER):
        slow = Slow(seconds)
        report, sink = run_offline(engine(config), records, [slow])
        answers = {number: record.value or b"" for number, record in enumerate(sink.records["answers"])}
        assert slow.sizes == [SIZE] * 6 + [COUNT - 6 * SIZE], "no batch ends because time has passed"
        found.append((hash_answers(answers), report.state_sha256))
    assert found[0] == found[1]


def test_a_schedule_is_cut_by_size_alone(config: Config) -> None:
    impatient = config.model_copy(update={"batch": config.batch.model_copy(update={"linger_seconds": 1e-9})})
    patient = config.model_copy(update={"batch": config.batch.model_copy(update={"linger_seconds": 1e9})})
    first, second = (replay(one, SCHEDULE) for one in (impatient, patient))
    assert first.report.queries == second.report.queries == COUNT
    assert first.answers_sha256 == second.answers_sha256


OWN, LAST = 310, 310 - 6 * SIZE
"""More than one poll brings, and a batch size that divides no poll: what is left of a poll has to wait."""


class SlowEncoder(VectorEncoder):
    """An encoder that takes its time."""

    def __init__(self, width: int, seconds: float) -> None:
        super().__init__(width)
        self._seconds = seconds

    def encode(self, *inputs: Any, **options: Any) -> Tensor:
        time.sleep(self._seconds)
        return super().encode(*inputs, **options)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Base, gallery, shifted queries, and settings with a patience shorter than one forward takes."""
    write_vectors(tmp_path)
    rows, items = shifted(OWN + 10)
    lines = [json.dumps({"vector": row.tolist(), "label": f"item-{i}"}) for row, i in zip(rows, items)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    settings = f"device = 'cpu'\n[batch]\nsize = {SIZE}\nlinger_seconds = {LINGER}\n"
    (tmp_path / "qshift.toml").write_text(settings)
    return tmp_path


def test_own_queries_with_a_slow_encoder_give_the_same_bytes(own: Path) -> None:
    config = Config.model_validate({"device": "cpu", "batch": {"size": SIZE, "linger_seconds": LINGER}})
    gallery, base = own_parts(own / "gallery", own / "base")
    records = own_queries(own / "own.jsonl", gallery, base, config).records[:OWN]
    found = []
    for seconds in (0.0, 5 * LINGER):
        slow = SlowEncoder(base.width, seconds)
        made = assemble(config, base, GalleryVersions(gallery), encoders={"vector": slow})
        report, sink = run_offline(made, records, [])
        assert report.batches == 7 and report.queries == OWN
        answers = {number: record.value or b"" for number, record in enumerate(sink.records["answers"])}
        found.append((hash_answers(answers), report.state_sha256))
    assert found[0] == found[1]


SPEEDS = """
import time
from adapters.online.tent import Tent

SEEN = {}

class Quick(Tent):
    seconds = 0.0
    def update(self, batch):
        SEEN.setdefault(type(self).__name__, []).append(batch.ids)
        time.sleep(self.seconds)
        return super().update(batch)

class Slow(Quick):
    seconds = 0.01
"""


def test_the_command_gives_the_same_rows_at_two_speeds(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "speeds.py").write_text(SPEEDS)
    monkeypatch.syspath_prepend(str(own))
    rows = own / "rows.json"
    done = CliRunner().invoke(
        app,
        ["replay", "queries", str(own / "own.jsonl"), f"--queries={OWN}", f"--config={own / 'qshift.toml'}",
         f"--base={own / 'base'}", f"--gallery={own / 'gallery'}", f"--json={rows}",
         "--method=speeds:Quick+fused,speeds:Slow+fused"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    seen = sys.modules.pop("speeds").SEEN
    assert [len(ids) for ids in seen["Quick"]] == [SIZE] * 6 + [LAST] and seen["Slow"] == seen["Quick"]
    _, quick, slow = ({k: v for k, v in row.items() if k != "method"} for row in json.loads(rows.read_text()))
    assert quick == slow and quick["queries"] == OWN
