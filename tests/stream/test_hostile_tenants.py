"""R19: what a hostile tenant asks changes nothing in the lanes of others, to the bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.records import Record
from stream.codec import decode_answer, vector_query
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run

COUNT, EVERY = 300, 20
"""Queries, and how many of these each hostile one is among: 50 of 1,000."""
Bytes = dict[int, bytes]


def crafted(kind: str, number: int) -> np.ndarray:
    """Far away, all alike, or one after another: vectors are brought to one length when they are read."""
    away = np.full(24, -1e6, np.float32)
    return {"far": away, "turning": away * (-1) ** number, "one number": np.eye(24, dtype=np.float32)[0]}[
        kind
    ]


def asked(world: Any, kind: str = "") -> list[Record]:
    """Honest tenants in turn; every twentieth query is the third one's, hostile where a kind is given."""
    records = []
    for number, record in enumerate(world.queries(COUNT)):
        mine = number % EVERY == 0
        if mine and kind:
            value, _ = vector_query(crafted(kind, number))
            record = replace(record, value=value)
        tenant = b"hostile" if mine else (b"ann", b"ben")[number % 2]
        records.append(replace(record, headers=(("x-tenant", tenant),)))
    return records


def answered(world: Any, records: list[Record]) -> tuple[Bytes, dict[str, str]]:
    """Answers by offset, and the states of the lanes."""
    sink = MemorySink()
    source = MemorySource(records, ["qshift.queries"], step=7)
    report = run(source, world.pipeline, world.codec, sink, MemoryStore(), [], world.config)
    found = {decode_answer(record.value).source.offset: record.value for record in sink.records["answers"]}
    assert len(found) == COUNT and report.dead_letters == 0
    return found, report.lanes


@pytest.mark.parametrize("kind", ["far", "turning", "one number"])
def test_lanes_of_others_stay_the_same_to_the_bit(make_world: Any, kind: str) -> None:
    def changed(per_tenant: bool) -> tuple[set[int], set[str]]:
        batch = {"size": 16, "floor": 8, "linger_seconds": 60.0, "per_tenant_lanes": per_tenant}
        world = make_world(batch=batch, adapt={"method": "rest"})
        (one, states), (two, others) = (answered(world, asked(world, way)) for way in ("", kind))
        return {at for at in one if one[at] != two[at]}, {
            lane for lane in states if states[lane] != others[lane]
        }

    answers, lanes = changed(per_tenant=True)
    assert answers and all(at % EVERY == 0 for at in answers)
    assert lanes == {"0:vector:hostile"}
    answers, lanes = changed(per_tenant=False)  # in one lane they meet, and it shows
    assert lanes == {"0:vector"} and any(at % EVERY for at in answers)
