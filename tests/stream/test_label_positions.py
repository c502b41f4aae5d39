"""How far labels were read, where they are read again, and how long a batch waits for them."""

import logging

import pytest

from core.records import Coordinates, Judgement
from index.correction import Correction
from stream.label_positions import PATIENCE_SECONDS, TURNS, LabelPositions, earliest, shared
from stream.steering import Steering


def made() -> tuple[LabelPositions, list[float], list[bool]]:
    now, full = [0.0], [False]
    return LabelPositions(lambda: now[0], lambda: full[0]), now, full


def test_a_batch_waits_until_labels_were_read_so_far() -> None:
    positions, _, _ = made()
    assert positions.reached({}, False)
    assert not positions.reached({"l/0": 3}, False)
    for offset in (1, 2):
        positions.note(Coordinates("l", 0, offset))
    assert positions.reached({"l/0": 3}, False) and not positions.reached({"l/0": 3, "l/1": 1}, False)


def test_it_waits_for_a_bounded_time_without_any_label(caplog: pytest.LogCaptureFixture) -> None:
    positions, now, _ = made()
    for offset in range(5):  # slow, but they come
        assert not positions.reached({"l/0": 9}, False)
        now[0] += PATIENCE_SECONDS - 1
        positions.note(Coordinates("l", 0, offset))
    assert not positions.reached({"l/0": 9}, False)
    now[0] += PATIENCE_SECONDS
    with caplog.at_level(logging.ERROR):
        assert positions.reached({"l/0": 9}, False) and positions.reached({"l/0": 11}, False)
    assert len(caplog.records) == 1, "said once"
    assert caplog.records[0].missing == ["l/0 up to 9"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("why", ["drain", "full"])
def test_where_no_more_can_come_it_does_not_wait(why: str, caplog: pytest.LogCaptureFixture) -> None:
    positions, _, full = made()
    full[0] = why == "full"
    turns = 1 if why == "drain" else TURNS
    assert [positions.reached({"l/0": 1}, why == "drain") for _ in range(turns)].index(True) == turns - 1
    assert len(caplog.records) == 1


def test_a_second_state_never_skips_what_the_first_needs() -> None:
    positions, _, _ = made()
    assert positions.again({"l/0": 50}, True) == {"l/0": 50}
    # The first had not met the second place, and so could not name it: it needs all of it.
    assert positions.again({"l/0": 80, "l/1": 7}, True) == {"l/0": 50, "l/1": 0}
    assert positions.read == {"l/0": 50, "l/1": 0}
    measuring, _, _ = made()
    assert measuring.again({}, False) == {} and measuring.again({"l/0": 7}, False) == {"l/0": 7}


def test_labels_that_a_state_has_not_seen_are_read_from_where_they_began() -> None:
    positions, _, _ = made()
    for offset in range(4, 9):
        positions.note(Coordinates("l", 0, offset))
    assert positions.again({}, False) == {}, "where labels only measure they are not read again"
    assert positions.again({}, True) == {"l/0": 4}
    positions.note(Coordinates("l", 0, 4))
    assert positions.again({"l/0": 2}, True) == {"l/0": 2}


def test_a_seek_for_another_state_is_not_where_labels_began() -> None:
    """A worker that takes over two partitions, the second of which has met no label yet."""
    positions, _, _ = made()
    assert positions.again({"l/0": 50}, True) == {"l/0": 50}
    assert positions.again({}, True) == {"l/0": 0}
    begun, _, _ = made()
    begun.note(Coordinates("l", 0, 4))
    assert begun.again({"l/0": 50}, True) == {"l/0": 5}, "what was read so far"
    assert begun.again({}, True) == {"l/0": 4}


def test_the_earliest_of_several() -> None:
    assert earliest([{"a": 3, "b": 1}, {"a": 2}, {}]) == {"a": 2, "b": 1}


def test_a_lane_that_has_met_no_label_needs_them_from_the_beginning() -> None:
    assert shared([{"a": 3, "b": 1}, {"a": 2}]) == {"a": 2}
    assert shared([{"a": 3}, {}]) == {}


def test_where_labels_have_steered_never_goes_back() -> None:
    """Whoever repeats a batch may not have to read again what the journal names for it."""
    steering = Steering(Correction(lambda at: True, lambda *_: None))
    steering.apply({"l/0": 3})
    assert not steering.apply() and steering.offsets == {"l/0": 3}
    steering.take(Judgement(Coordinates("l", 0, 5), Coordinates("q", 0, 0), "a"))
    assert steering.apply() and steering.offsets == {"l/0": 6}
