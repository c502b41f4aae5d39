"""Runs of one log in memory that must not differ, and the SHA-256 of their answers and states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from integration_fixtures import fixtures_of_integration

from core.config import Config
from core.records import Coordinates, Record
from qshift.build import engine
from qshift.methods import with_method
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run

METHODS = ("default", "centring", "tent")
SEEDS = (1, 2, 3)
VARIANTS = ("kills", "polls", "both")


class Uneven(MemorySource):
    """Polls of one size after another."""

    def __init__(
        self, events: Sequence[Record | Crash], queries: Sequence[str], steps: Sequence[int]
    ) -> None:
        super().__init__(events, queries)
        self._steps = cycle(steps)

    def poll(self, budget_seconds: float) -> list[Record]:
        self._step = next(self._steps)
        return super().poll(budget_seconds)


def hashes(
    world: Path, method: str, seed: int, queries: int,
    steps: Sequence[int] = (256,), kills: Sequence[int] = (),
) -> tuple[str, str]:  # fmt: skip
    """Of the distinct answers by query, and of the state at the end. A killed run starts again by its store.

    Args:
        world: base and gallery of the integration tests.
        steps: sizes of polls, taken in turn.
        kills: before which queries the process dies.

    Raises:
        AssertionError: a query has two answers.
    """
    config = with_method(
        Config.model_validate({
            "base": str(world / "base"), "gallery": str(world / "gallery"), "device": "cpu",
            "batch": {"size": 16, "floor": 8, "linger_seconds": 60.0}, "state": {"every_batches": 3},
        }),
        method,
    )  # fmt: skip
    topic = config.kafka.queries
    drawn = fixtures_of_integration().query_messages(queries, seed=seed)[0]
    events: list[Record | Crash] = [
        Record(Coordinates(topic, 0, at), value, None, tuple(headers))
        for at, (value, headers) in enumerate(drawn)
    ]
    for place in sorted(kills, reverse=True):
        events.insert(place, Crash())
    source, store, sink = Uneven(events, [topic], steps), MemoryStore(), MemorySink()
    while True:
        made = engine(config)  # a process begins with nothing but what was saved
        try:
            report = run(
                source, made.pipeline, made.codec, sink, store, [], config, clock=lambda: 0.0,
                base_version=made.base.version,
            )  # fmt: skip
            break
        except Crash:
            source.seek((topic, 0), 0)
    answers: dict[bytes, bytes] = {}
    for record in sink.records["answers"]:
        key, value = record.key or b"", record.value or b""
        assert answers.setdefault(key, value) == value, f"{key!r} has two answers"
    assert len(answers) == queries
    whole = hashlib.sha256(b"\n".join(answers[key] for key in sorted(answers)))
    return whole.hexdigest(), report.state_sha256


def main(world: str, queries: int) -> None:
    """Straight runs of all, as JSON: for a process of its own."""
    found = {
        f"{method}/{seed}": hashes(Path(world), method, seed, queries) for method in METHODS for seed in SEEDS
    }
    print(json.dumps(found))
