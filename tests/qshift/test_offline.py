"""Runs off line: how fast the machine is decides nothing."""

import time
from pathlib import Path

import numpy as np
import pytest
from toy_world import WIDTH, small_world

from core.config import Config
from core.records import Judgement, Refusal
from core.types import Outcome
from qshift.build import engine
from qshift.offline import run_offline
from qshift.replay.offline import replay
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
