"""Records of lanes in a topic: in chunks, found again wherever they lie, erased when nobody needs them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.checkpoints import Checkpoint, LaneState
from core.errors import ArtifactError
from stream.chunks import CHUNK_BYTES
from stream.lane_topic import LaneTopic
from stream.topic_log import Keyed

HERE = ("qshift.queries", 0)


class Log:
    """A partition that acknowledges without a place where it is told to."""

    def __init__(self) -> None:
        self.records: dict[int, Keyed] = {}
        self.silent, self.looked, self.end = False, 0, 0

    def append(self, topic: str, partition: int, keyed: Sequence[Keyed]) -> list[int]:
        places = []
        for one in keyed:
            self.records[self.end] = one
            places.append(-1 if self.silent else self.end)
            self.end += 1
        return places

    def read(
        self, topic: str, partition: int, start: int
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        self.looked += 1
        yield from ((offset, *one) for offset, one in sorted(self.records.items()) if offset >= start)

    def at(self, topic: str, partition: int, offset: int) -> tuple[int, bytes | None, bytes | None]:
        place = min(number for number in self.records if number >= offset)
        return (place, *self.records[place])

    def compact(self) -> None:
        last = {key: offset for offset, (key, _) in self.records.items()}
        self.records = {
            offset: one
            for offset, one in self.records.items()
            if last[one[0]] == offset and one[1] is not None
        }


def state(seq: int, numbers: int = 4) -> LaneState:
    draw = np.random.default_rng(seq)
    return LaneState(
        "0:image:acme", seq, 10 * seq, {"w": draw.normal(size=numbers)}, {"n": seq}, f"hash{seq}"
    )


def alike(one: LaneState, other: LaneState) -> bool:
    same = replace(one, tensors={}) == replace(other, tensors={})
    return same and one.tensors["w"].tobytes() == other.tensors["w"].tobytes()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def lanes(log: Any) -> LaneTopic:
    return LaneTopic(lambda: log, "qshift.state")


def test_a_large_state_comes_in_chunks(log: Log, lanes: LaneTopic) -> None:
    large = state(1, CHUNK_BYTES // 4)
    (record,) = lanes.keep(HERE, 0, [large])
    assert len(log.records) == 3
    assert alike(lanes.fetch(HERE, record), large) and not log.looked


def test_what_was_acknowledged_without_a_place_is_looked_for(log: Log, lanes: LaneTopic) -> None:
    log.silent = True
    (record,) = lanes.keep(HERE, 0, [state(1)])
    assert alike(lanes.fetch(HERE, record), state(1)) and log.looked == 1
    lanes.fetch(HERE, record)
    assert log.looked == 1, "now it is known"


def test_a_copy_that_compaction_has_removed_is_found_where_the_other_lies(log: Log, lanes: LaneTopic) -> None:
    (record,) = lanes.keep(HERE, 0, [state(1)])
    log.append("qshift.state", 0, [log.records[0]])  # an attempt that was repeated
    log.compact()
    assert alike(lanes.fetch(HERE, record), state(1))


def test_what_two_checkpoints_do_not_name_is_erased(log: Log, lanes: LaneTopic) -> None:
    old, new = (lanes.keep(HERE, 0, [state(number)])[0] for number in (1, 2))
    for seq, record in enumerate((old, new, new)):
        assert alike(lanes.fetch(HERE, old), state(1)), "one of the two newest names it still"
        lanes.saved(Checkpoint(*HERE, seq, "", 0, (), "", resting=(record,)))
    log.compact()
    assert len(log.records) == 1 and alike(lanes.fetch(HERE, new), state(2))
    with pytest.raises(ArtifactError, match="is gone"):
        lanes.fetch(HERE, old)


def test_keys_of_others_are_none_of_ours(lanes: LaneTopic) -> None:
    for key in ("qshift.queries/0/3/1/0", "qshift.queries/0/3/1/manifest", "qshift.queries/0/lane/abc/0", ""):
        assert not lanes.met(HERE, key, 0, True)
    assert lanes.met(HERE, f"elsewhere/0/lane/{'0' * 64}/0", 0, True), "a lane, of other queries"
