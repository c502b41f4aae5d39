"""What the page is told: values by hand, bounded, JSON-able, safe to read while it is written."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from core.commands import Command, Obeyed
from core.records import Coordinates, Judgement, Record, Refusal
from core.references import DriftReference
from core.types import AdaptationStep, Hits
from monitoring.cards import Item
from monitoring.drift import DriftMonitor
from monitoring.history import History
from monitoring.judged import JudgedQuality
from monitoring.ranking import levels


def judged(rate=1.0):
    return JudgedQuality(
        "k", rate, 1000,
        lambda version, kept, name: tuple(
            levels(np.array(row), np.array([name == "a", name == "b", name == "c"]))
            for row in ([2, 1, 3], [1, 2, 3], [1, 1, 3])
        ),
    )  # fmt: skip


def item(key):
    return Item(f"id-{key}", f"title {key}", f"/picture/gallery/id-{key}")


def history(**more):
    one = judged()
    right = {"a": {0}, "b": {1}, "c": {2}}
    return one, History(one, item=item, relevant_keys=lambda version, name: right[name], **more)


def feed(parts, *events):
    for event in events:
        for part in parts:
            part.judge(event) if isinstance(event, Judgement) else part.observe(event)


def label(offset, name):
    return Judgement(Coordinates("labels", 0, offset), Coordinates("qshift.queries", 0, offset), name)


def test_the_empty_page_is_json(outcome):
    shown = History().snapshot()
    json.dumps(shown, allow_nan=False)
    assert shown["queries"] == 0 and shown["latest"] == [] and shown["headline"] == {}
    judged_, one = history()
    feed((judged_, one), outcome([]))
    json.dumps(one.snapshot(), allow_nan=False)
    assert one.snapshot()["headline"]["verdict"] == "waiting"


def test_quality_headline_and_phases(outcome):
    parts = history()
    parts[1].mark("clean")
    feed(parts, outcome([0, 1, 2]), label(0, "a"), label(1, "a"))
    parts[1].mark("noise")
    feed(parts, outcome([3, 4, 5], seq=1), label(4, "b"), label(5, "b"), label(3, "b"))
    shown = parts[1].snapshot()
    clean, noise = shown["phases"]
    # By hand: label a -> AP 1/2, 1, 3/4; label b -> AP 1, 1/2, 3/4.
    assert (clean["text"], clean["first"], clean["end"], clean["n"]) == ("clean", 0, 3, 2)
    assert (clean["frozen"], clean["adapted"], clean["served"], clean["diff"]) == (50.0, 100.0, 75.0, 25.0)
    assert (noise["n"], noise["end"], noise["diff"], noise["low"], noise["high"]) == (3, None, -25, -25, -25)
    series = shown["quality"]
    assert series["x"] == [3, 6]  # labels between batches replace the newest point
    assert series["served"] == [75.0, 75.0] and series["frozen"][0] == 50.0
    gain = parts[0].live().gain["served"]
    assert shown["headline"]["gain"] == pytest.approx(100 * gain.value, abs=1e-3)
    assert shown["headline"]["verdict"] == "neutral"
    assert shown["headline"]["arrived"] == 5 and shown["headline"]["pending"] == 1


@pytest.mark.parametrize("name, verdict", [("a", "helps"), ("b", "harms")])
def test_the_verdict_is_what_labels_prove(outcome, name, verdict):
    parts = history()
    feed(parts, outcome(list(range(6))), *(label(offset, name) for offset in range(6)))
    assert parts[1].snapshot()["headline"]["verdict"] == "neutral", "six labels prove nothing"
    feed(parts, outcome(list(range(6, 70)), seq=1), *(label(offset, name) for offset in range(6, 70)))
    assert parts[1].snapshot()["headline"]["verdict"] == verdict


def test_cards_show_three_answers_and_mark_the_right_one(outcome):
    parts = history(shown=3)
    keys, served = np.array([[2, 0, -1]] * 4), np.array([[0, 2, 1]] * 4)
    feed(parts, outcome([0, 1, 2, 3], keys=keys, served_keys=served, contents=["<b>", b"\x89PNG", "c", "d"]))
    feed(parts, label(1, "a"))
    cards = {card["at"]: card for card in parts[1].snapshot()["latest"]}
    assert len(cards) == 3
    card = cards["qshift.queries/0/1"]
    assert card["picture"] == "/picture/query/qshift.queries/0/1" and card["text"] == ""
    assert [(i["id"], i["right"]) for i in card["answers"]["frozen"]] == [("id-2", False), ("id-0", True)]
    assert [i["right"] for i in card["answers"]["served"]] == [True, False, False]
    # What the twin alone would have answered, not the shortlist of its code.
    one = outcome([7], keys=keys[:1])
    one = replace(one, frozen=replace(one.frozen, answer=Hits(served[:1], served[:1])))
    feed(parts, one)
    assert [i["id"] for i in parts[1].snapshot()["latest"][0]["answers"]["frozen"]] == [
        "id-0",
        "id-2",
        "id-1",
    ]
    assert card["labelled"] and not cards["qshift.queries/0/0"]["labelled"]
    assert cards["qshift.queries/0/0"]["text"] == "<b>"
    assert parts[1].picture("qshift.queries/0/1") == b"\x89PNG"
    assert parts[1].picture("qshift.queries/0/0") is None and parts[1].picture("../etc") is None


def test_lanes_latency_and_dead_letters(outcome):
    one = History()
    codes = np.zeros((2, 1, 2), np.uint8)
    codes[1, 0, 0] = 0b11110000
    for seq, seconds in enumerate((0.1, 0.2, 0.3)):
        step = AdaptationStep(seq > 0, "" if seq else "too-small", diagnostics={"source_distance": 0.1 * seq})
        one.observe(
            outcome(
                [seq], seq=seq, step=step, seconds={"search": seconds},
                frozen_codes=codes[0], adapted_codes=codes[1],
            )
        )  # fmt: skip
    one.refuse(Refusal(Record(Coordinates("q", 0, 9), b"x"), "image", "Refused", "no picture" * 99))
    shown = one.snapshot()
    (lane,) = shown["lanes"]
    assert (lane["updates"], lane["refused"], lane["seq"], lane["flip_share"]) == (2, 1, 2, 0.25)
    assert lane["source_distance"] == pytest.approx(0.2)
    assert shown["latency"]["stages"] == ["search"]
    assert shown["latency"]["p50"] == [200.0] and shown["latency"]["p95"] == [pytest.approx(290.0)]
    assert shown["dead_letters"]["stages"] == {"image": 1}
    assert len(shown["dead_letters"]["latest"][0]["reason"]) == 200


def test_drift_is_a_multiple_of_its_threshold(outcome):
    generator = np.random.default_rng(0)
    numbers = np.arange(128, dtype=np.float32)
    reference = DriftReference(generator.normal(size=(128, 4)).astype(np.float32), numbers, numbers, 64)
    drift = DriftMonitor({"image": reference}, window=64, null_windows=200)
    one = History(drift=drift)
    feed((drift, one), outcome(list(range(64)), features=np.ones((64, 4), np.float32)))
    panel, shown = drift.panels()["0:image"], one.snapshot()["drift"]
    want = panel.values["mean_gap"] / panel.thresholds["mean_gap"]
    assert shown["statistics"]["mean_gap"] == [pytest.approx(want, abs=1e-3)]
    assert shown["statistics"]["modality_gap"] == [None] and shown["lane"] == ["0:image"]


def test_everything_is_bounded(outcome):
    parts = history(points=20, cards=10)
    for seq in range(100):
        feed(parts, outcome([seq], seq=seq, lane=f"0:image:{seq}", seconds={"search": 1.0}))
        parts[1].mark(str(seq))
        parts[1].refuse(Refusal(Record(Coordinates("q", 0, seq), b"x"), "decode", "E", "no"))
    shown = parts[1].snapshot()
    assert shown["queries"] == 100 and shown["dead_letters"]["stages"]["decode"] == 100
    assert len(shown["quality"]["x"]) == 20 and len(parts[1]._cards) == 10
    assert len(shown["lanes"]) == len(shown["phases"]) == 64
    assert len(shown["dead_letters"]["latest"]) == 20


def test_snapshots_while_batches_come_in(outcome):
    parts, failures = history(), []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            try:
                json.dumps(parts[1].snapshot(), allow_nan=False)
            except Exception as error:  # noqa: BLE001 - told to the test below
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for offset in range(300):
        feed(parts, outcome([offset]), label(offset, "abc"[offset % 3]))
    stop.set()
    reader.join()
    assert failures == [] and parts[1].snapshot()["headline"]["arrived"] == 300


def test_commands_stand_where_they_were_obeyed(outcome):
    one = History()
    one.observe(outcome(range(8)))
    before, seen = one.version, one.snapshot()["queries"]
    command = Command(Coordinates("qshift.control", 0, 3), "rollback", "ann", state="3fa9c01b")
    one.commanded(Obeyed(command, "0:image", 7, "refused", "none is kept", "", False))
    assert one.version > before, "the page hears of it"
    (shown,) = one.snapshot()["commands"]
    assert shown == {
        "x": seen, "action": "rollback", "what": "3fa9c01b", "author": "ann", "lane": "0:image", "batch": 7,
        "result": "refused", "reason": "none is kept",
    }  # fmt: skip
    for _ in range(100):
        one.commanded(Obeyed(command, "0:image", 7, "applied", "", "", False))
    assert len(one.snapshot()["commands"]) == 64
