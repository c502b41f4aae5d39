"""Schedules: queries do not depend on the order they are drawn in; no query is a gallery picture."""

import io

import numpy as np
import pytest
from PIL import Image

from qshift.data.emoji import EmojiSet
from qshift.demo.catalogue import make_query
from qshift.replay.schedule import Phase, Schedule, demo_phases, hash_answers


@pytest.fixture
def data() -> EmojiSet:
    rng = np.random.default_rng(0)
    colour = np.full((30, 112, 112, 3), 255, np.uint8)
    colour[:, 30:80, 30:80] = rng.integers(0, 255, (30, 50, 50, 3))
    line = np.where(colour < 128, 0, 255).astype(np.uint8)
    names = tuple(f"thing number {i}" for i in range(30))
    return EmojiSet(colour, line, names, tuple("abc"[i % 3] for i in range(30)), names, names, "nobody")


def test_queries_do_not_depend_on_order_or_count(data: EmojiSet) -> None:
    schedule = Schedule(demo_phases(20), lambda phase, index: make_query(data, 5, phase, index))
    for phase in schedule.phases:
        forward = [item.value for item in schedule.items(phase)]
        backward = [schedule.make(phase, index).value for index in reversed(range(20))][::-1]
        assert forward == backward


def test_no_query_picture_is_a_gallery_picture(data: EmojiSet) -> None:
    gallery = {picture.tobytes() for picture in data.colour}
    for phase in demo_phases(30):
        if phase.modality == "image":
            for index in range(30):
                picture = Image.open(io.BytesIO(make_query(data, 0, phase, index).value)).convert("RGB")
                assert np.asarray(picture).tobytes() not in gallery


def test_both_clean_phases_draw_different_queries(data: EmojiSet) -> None:
    phases = demo_phases(10)
    first = {make_query(data, 0, phases[0], i).value for i in range(10)}
    last = {make_query(data, 0, phases[-1], i).value for i in range(10)}
    assert not first & last


def test_mixed_users_hold_all_kinds_in_one_batch(data: EmojiSet) -> None:
    mixed = next(phase for phase in demo_phases(64) if len(phase.shifts) > 1)
    alone = {shift: Phase(mixed.name, "image", (shift,), 64) for shift in mixed.shifts}
    kinds = set()
    for index in range(64):
        value = make_query(data, 0, mixed, index).value
        kinds |= {shift for shift, phase in alone.items() if make_query(data, 0, phase, index).value == value}
    assert kinds == set(mixed.shifts)


def test_sorted_streams_are_sorted_by_group(data: EmojiSet) -> None:
    phase = Phase("sorted", "image", ("clean",), 30, "sorted")
    groups = [data.groups[data.labels.index(make_query(data, 0, phase, i).label)] for i in range(30)]
    assert groups == sorted(groups)


def test_phases_are_found_by_offset(data: EmojiSet) -> None:
    schedule = Schedule(demo_phases(10), lambda phase, index: make_query(data, 0, phase, index))
    assert [schedule.phase_of(o) for o in (0, 9, 10, 69)] == ["clean", "clean", "noise", "clean again"]
    assert schedule.phase_of(70) == ""


def test_answers_are_hashed_in_the_order_of_their_queries() -> None:
    assert (
        hash_answers({1: b"b", 0: b"a"})
        == hash_answers({0: b"a", 1: b"b"})
        != hash_answers({0: b"b", 1: b"a"})
    )
