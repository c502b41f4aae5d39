"""Labels that steer, live: a killed worker repeats its answers, and so does the recording of the day."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import LimitConfig
from core.records import Coordinates, Judgement, Refusal
from core.types import Outcome
from qshift.build import engine
from qshift.offline import run_offline
from qshift.replay.recorded import recorded
from stream import codec
from stream.broker import Broker
from stream.codec import decode_answer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PORTION, PORTIONS, KILLED = 64, 8, (2, 4, 7)
QUERIES = PORTION * PORTIONS


class Labeller:
    """Labels every query as soon as its answer is there."""

    def __init__(self, site: Any, names: dict[Coordinates, str]) -> None:
        self._client, self._names, self.answered = site.client(), names, set[Coordinates]()

    def work(self) -> int:
        for record in self._client.answers(0.01):
            at = decode_answer(record.value or b"").source
            if at not in self.answered:
                self.answered.add(at)
                self._client.label(codec.label(at, self._names[at]), str(at).encode())
        return len(self.answered)

    def close(self) -> None:
        self._client.flush()
        self._client.close()


class Watch:
    """Observer: how many queries were answered from both twins, or from the adapted one."""

    def __init__(self) -> None:
        self.mixed = 0

    def observe(self, outcome: Outcome) -> None:
        self.mixed += int((outcome.weights > 0).sum())

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


def test_kills_are_invisible_and_the_recorded_day_gives_the_same_answers(
    broker: Broker, vector_world: Path, make_site: Callable[..., Any], messages: Callable[..., Any]
) -> None:
    site = make_site(broker, vector_world, labels={"rate": 1.0, "steer": True})
    values, classes = messages(QUERIES)
    # The site alone sends: offsets are known before, as is what to label.
    names = {Coordinates(site.kafka.queries, 0, offset): name for offset, name in enumerate(classes)}
    labeller, worker = Labeller(site, names), site.worker()
    for portion in range(PORTIONS):
        first = portion * PORTION
        site.send(values[first : first + PORTION])
        if portion in KILLED:
            site.wait(lambda first=first: labeller.work() > first)
            worker.kill()
            worker = site.worker()
        site.wait(lambda first=first: labeller.work() == first + PORTION)
    labeller.close()
    worker.terminate()
    assert not any("labels that an answered batch" in one.output() for one in site.started)
    sent = site.distinct()
    assert {key for key, found in sent.items() if len(found) > 1} == set(), "answered in two ways"
    assert len(site.answers()) > QUERIES, "no kill fell between a checkpoint and the next"

    found = recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries)
    named = [sum(entry.label_offsets.values()) for entry in found.journal]
    assert named == sorted(named) and named[-1] > QUERIES / 4, "labels have steered"
    watch = Watch()
    _, sink = run_offline(engine(site.config), [*found.late, *found.records], [watch], found.journal)
    assert watch.mixed > QUERIES / 2, "there was little to steer"
    again = {record.key: {record.value} for record in sink.records["answers"]}
    assert again == sent
