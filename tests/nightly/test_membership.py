"""R4: workers come, go, die and sleep, in any order, while queries come. The group is always changing."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
from traffic import Traffic

from tests.nightly.counts import Told, count, drawn, say
from tests.nightly.test_chaos import listening

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

MOST_WORKERS, PARTITIONS = 6, 12
SLEEP_SECONDS = 17.0
"""Longer than the session of 15 s: the group gives the sleeper's partitions away."""
EACH = 48
"""Queries of one change: some come before it is over."""
PAUSE_SECONDS = 2.0
"""Between two changes, at most: most joins are not over by then."""
SETTLE_CHANGES, SETTLE_SECONDS = 25, 180.0
"""Now and then everything is to be answered, whoever is there."""


class Crew:
    """Up to six workers by name. One at least is awake."""

    def __init__(self, site: Any, rng: np.random.Generator) -> None:
        self._site, self._rng = site, rng
        self.living: dict[str, Any] = {}
        self.asleep: dict[str, float] = {}
        self.done: dict[str, int] = {}
        self.history: list[str] = []

    def change(self) -> str:
        """One of those that are possible now; who has slept for long enough wakes first."""
        awake = sorted(self.living.keys() - self.asleep.keys())
        free = sorted({f"worker-{n}" for n in range(MOST_WORKERS)} - self.living.keys())
        rested = [one for one, since in self.asleep.items() if time.monotonic() - since > SLEEP_SECONDS]
        possible = {"start": free}
        if len(awake) > 1:
            possible |= dict.fromkeys(("stop", "kill", "sleep"), awake)
        possible = {name: who for name, who in possible.items() if who} or {"wake": sorted(self.asleep)}
        what = str(self._rng.choice(list(possible)))
        name = str(self._rng.choice(possible[what]))
        if rested:
            what, name = "wake", rested[0]
        getattr(self, what)(name)
        self.done[what] = self.done.get(what, 0) + 1
        self.history.append(f"{what} {name}")
        return self.history[-1]

    def start(self, name: str) -> None:
        self.living[name] = self._site.worker(name)

    def stop(self, name: str) -> None:
        worker = self.living.pop(name)
        self._site.wait(lambda: listening(worker.pid), 60)  # a process that has begun nothing just ends
        worker.terminate(60.0)

    def kill(self, name: str) -> None:
        self.living.pop(name).kill()

    def sleep(self, name: str) -> None:
        os.kill(self.living[name].pid, signal.SIGSTOP)
        self.asleep[name] = time.monotonic()

    def wake(self, name: str) -> None:
        os.kill(self.living[name].pid, signal.SIGCONT)
        del self.asleep[name]

    def check(self) -> None:
        """Nobody ends by itself."""
        for name, worker in self.living.items():
            assert worker.code is None, f"{name} ended after {self.history[-6:]}:\n{worker.output()[-6000:]}"

    def said(self) -> str:
        """By those that live, for a failure."""
        return "\n".join(f"-- {name}\n{worker.output()[-3000:]}" for name, worker in self.living.items())


def settled(crew: Crew, traffic: Traffic, wanted: int = 10**9) -> None:
    """All that was sent is answered, or so many, though some sleep or have just died."""
    known, heard = traffic.answered(), time.monotonic()
    while known < min(wanted, len(traffic.sent)):
        crew.check()
        wait = f"{len(traffic.sent) - known} of {len(traffic.sent)} queries wait after {crew.history[-8:]}"
        assert time.monotonic() - heard < SETTLE_SECONDS, f"{wait}\n{crew.said()}"
        before, known = known, traffic.answered()
        heard = time.monotonic() if known > before else heard


def test_the_group_never_comes_to_rest(broker: Any, uneven: Any, messages: Any) -> None:
    """No query has two answers that differ, of whatever generation, and none is lost."""
    changes, rng = count("membership_changes"), drawn("membership", 4)
    site, told = uneven(broker, PARTITIONS), Told("membership changes", changes)
    traffic, crew = Traffic(site, messages), Crew(site, rng)
    crew.start("worker-0")
    for change in range(changes):
        traffic.send(EACH, bursts=4)
        say(f"{change + 1}: {crew.change()}, {len(crew.living)} live, {traffic.answered()} answered")
        if change % 2:  # some worker has joined and works, however slow the machine is
            settled(crew, traffic, traffic.answered() + 1)
        time.sleep(rng.uniform(0.0, PAUSE_SECONDS))
        crew.check()
        if change % SETTLE_CHANGES == SETTLE_CHANGES - 1:
            settled(crew, traffic)
        told(change + 1)
    for name in list(crew.asleep):
        time.sleep(max(0.0, SLEEP_SECONDS - (time.monotonic() - crew.asleep[name])))
        crew.wake(name)
    settled(crew, traffic)
    crew.check()
    for name in list(crew.living):
        crew.stop(name)
    done = ", ".join(f"{number} {what}" for what, number in sorted(crew.done.items()))
    traffic.figures(f"{changes} changes ({done})", states=False)
