"""Labels in a loop of one's own: judged, and steering, as the service does it with the same queries.

The labeller here is a hostile one: it calls right whatever the frozen twin finds first.
"""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_world import ITEMS, SIZE, WIDTH, source_world, unit
from vector_world import write_world

from core.config import Config
from core.errors import ConfigError
from core.records import Coordinates, Record
from core.types import Floats, Outcome
from qshift.build import engine, judged
from qshift.session import LABELS, Answer, Session
from stream.codec import label, vector_query
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run

BATCHES = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, gallery = source_world()
    weight = base.head.weight.cpu().numpy()
    names = [f"item-{i}" for i in range(ITEMS)]
    features = gallery.features(gallery.keys())
    return write_world(tmp_path_factory.mktemp("labels"), weight, features, names, base.reference["vector"])


@pytest.fixture(scope="module")
def asked(world: Path) -> list[Floats]:
    rng, gallery = np.random.default_rng(1), source_world()[1]
    direction = unit(np.random.default_rng(99).normal(size=(1, WIDTH)))
    items = gallery.features(gallery.keys()[rng.integers(ITEMS, size=SIZE * BATCHES)])
    rows = unit(items + 0.4 * rng.normal(size=items.shape) / WIDTH**0.5 + 1.6 * direction)
    return [rows[start : start + SIZE] for start in range(0, len(rows), SIZE)]


def made(world: Path, steer: bool = True, rate: float = 1.0) -> Session:
    document = {
        "device": "cpu", "batch": {"size": SIZE, "floor": 8}, "answer": {"shortlist": 30},
        "labels": {"rate": rate, "steer": steer}, "kafka": {"queries": "session", "labels": LABELS},
    }  # fmt: skip
    return Session(world / "base", world / "gallery", "centring+fused", Config.model_validate(document))


def first(answer: Answer) -> list[str | None]:
    return [names[0] for names in answer.frozen.items]


def looped(session: Session, asked: list[Floats]) -> tuple[list[Answer], list[str]]:
    """Every batch's labels come when the next one was learned from; (answers, states they were given by)."""
    answers, states = list[Answer](), list[str]()
    for rows in asked:
        states.append(session.state_hash("vector"))
        answers.append(session.answer(list(rows)))
        session.learn(answers[-1])
        if len(answers) > 1:
            session.label(answers[-2], first(answers[-2]))
    return answers, states


class Weights:
    def __init__(self) -> None:
        self.weights: list[list[float]] = []

    def observe(self, outcome: Outcome) -> None:
        self.weights.append(outcome.weights.tolist())

    def judge(self, _: Any) -> None: ...

    def refuse(self, _: Any) -> None: ...


@pytest.mark.parametrize("steer", [False, True])
def test_they_do_what_they_do_in_a_service(world: Path, asked: list[Floats], steer: bool) -> None:
    session = made(world, steer)
    answers, states = looped(session, asked)
    events, written, counted = list[Record](), 0, 0
    for number, rows in enumerate(asked):
        for row in rows:
            value, headers = vector_query(row)
            events.append(Record(Coordinates("session", 0, counted), value, None, tuple(headers)))
            counted += 1
        for row, name in enumerate(first(answers[number - 1]) if number else ()):
            about = Coordinates("session", 0, SIZE * (number - 1) + row)
            events.append(Record(Coordinates(LABELS, 0, written), label(about, name or "")))
            written += 1
    built, store, watch = engine(session.config), MemoryStore(), Weights()
    quality = judged(built)
    run(
        MemorySource(events, ["session"], step=SIZE), built.pipeline, built.codec, MemorySink(), store,
        [quality, watch], built.config, clock=lambda: 0.0,
    )  # fmt: skip
    assert [answer.weights.tolist() for answer in answers] == watch.weights
    assert [entry.state_hash for entry in store.journalled(("session", 0), {})] == states
    found = session.quality()
    assert astuple(found) == astuple(quality.summary()) and found.map_frozen == pytest.approx(100.0)
    assert found.n == SIZE * (BATCHES - 1) if not steer else 0 < found.n < SIZE * (BATCHES - 1)
    last = max(watch.weights[-1])
    assert last == 1.0 if steer else last == 4.0, "two steps towards the frozen twin"


def test_what_labels_have_taught_is_kept_and_goes_on_in_another_session(
    world: Path, asked: list[Floats]
) -> None:
    session, other = made(world), made(world)
    looped(session, asked[:4])
    other.restore(session.snapshot())
    assert other.state_hash("vector") == session.state_hash("vector")
    after = other.answer(list(asked[4]))
    assert max(after.weights) < max(made(world, steer=False).answer(list(asked[4])).weights)
    other.learn(after)
    before = other.state_hash("vector")
    assert other.label(after, first(after)) == SIZE and other.state_hash("vector") != before
    session.reset()
    assert session.state_hash("vector") == made(world).state_hash("vector") != before


def test_those_that_do_not_count_are_passed_over(world: Path, asked: list[Floats]) -> None:
    session = made(world, rate=0.3)
    answer = session.answer(list(asked[0]))
    start, wanted = session.state_hash("vector"), int(answer.label_wanted.sum())
    assert 0 < wanted < SIZE and session.quality().n == 0
    session.learn(answer)
    learned = session.state_hash("vector")
    outside = [None if of else "item-1" for of in answer.label_wanted]
    assert session.label(answer, outside) == 0 and session.label(answer, [None] * SIZE) == 0
    assert session.state_hash("vector") == learned != start and session.quality().n == 0
    assert session.label(answer, ["item-1"] * SIZE) == wanted and 0 < session.quality().n < wanted
    with pytest.raises(ConfigError, match="2 labels for 32 queries"):
        session.label(answer, ["item-1", None])
