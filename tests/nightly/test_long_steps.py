"""R11: a step that takes longer than the group's session changes nothing in the group."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import Any

import pytest

from stream.kafka import KafkaSource
from tests.nightly.counts import Told, count, say

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

SESSION_SECONDS, STEP_SECONDS = 6.0, 20.0


def test_a_step_longer_than_the_session_moves_nothing(broker: Any, uneven: Any) -> None:
    """One of two workers is busy and does not poll; the other goes on polling, and would be given all."""
    site, steps, stop = uneven(broker), count("long_steps"), threading.Event()
    told = Told("long steps", steps)
    seen = set[tuple[int, int]]()
    with (
        closing(KafkaSource(site.servers, site.kafka, "busy", session_seconds=SESSION_SECONDS)) as busy,
        closing(KafkaSource(site.servers, site.kafka, "idle", session_seconds=SESSION_SECONDS)) as idle,
    ):

        def poll() -> None:
            while not stop.is_set():
                idle.poll(0.1)
                if idle.assignment():
                    seen.add((idle.generation(), len(idle.assignment())))

        beside = threading.Thread(target=poll)
        beside.start()
        try:
            deadline = time.monotonic() + 120
            while not (len(busy.assignment()) == len(idle.assignment()) == 1):
                assert time.monotonic() < deadline, "the group did not come to rest"
                busy.poll(0.1)
            generation = busy.generation()
            seen.clear()
            for step in range(steps):
                end = time.monotonic() + STEP_SECONDS
                while time.monotonic() < end:  # a step computes: it holds the interpreter as often as it can
                    sum(range(10_000))
                    time.sleep(0.005)
                busy.confirm(dict.fromkeys(busy.assignment()))
                busy.poll(0.1)
                assert len(busy.assignment()) == 1
                told(step + 1)
            assert busy.generation() == generation and seen == {(generation, 1)}
        finally:
            stop.set()
            beside.join(30)
    say(f"{steps} steps of {STEP_SECONDS:.0f} s in a session of {SESSION_SECONDS:.0f} s: 0 rebalances")
