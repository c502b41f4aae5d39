"""R10: Kafka is away for a long time, under full input. Memory stays, and answers come when it comes back."""

from __future__ import annotations

import time
from typing import Any

import pytest
from resident import resident_mib
from traffic import Traffic

from tests.nightly.counts import Told, count, say

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.nightly]

GROWTH_MIB, BACK_SECONDS = 64, 5.0
WARM, BACKLOG = 320, 3_200


def test_an_outage_holds_no_memory_and_ends_at_once(own_broker: Any, uneven: Any, messages: Any) -> None:
    seconds = count("outage_seconds")
    site, told = uneven(own_broker), Told("outage", seconds)
    traffic, worker = Traffic(site, messages), site.worker()
    site.wait(lambda: "serving" in worker.output(), 300)
    traffic.send(WARM)
    traffic.settle()
    traffic.send(BACKLOG, bursts=1)
    site.wait(lambda: traffic.answered() > WARM, 120)
    before, most = resident_mib(worker.pid), 0.0
    own_broker.kill()
    assert len(traffic.values) < len(traffic.sent), "Kafka was killed too late"
    traffic.lost_touch()
    began = time.monotonic()
    while (gone := time.monotonic() - began) < seconds:
        assert worker.code is None, worker.output()
        most = max(most, resident_mib(worker.pid))
        told(gone)
        time.sleep(0.2)
    own_broker.restart()
    returned, deadline, after = time.time(), time.monotonic() + 300, list[float]()
    while not after:  # when they were sent, not when they are read here: all others are read before them
        assert time.monotonic() < deadline, "no answer:\n" + worker.output()[-4000:]
        traffic.answered()
        after = [at / 1000 - returned for at in traffic.first_ms.values() if at / 1000 > returned]
    back = min(after)
    say(
        f"{gone:.0f} s without Kafka: memory {before:.0f} MiB, {most - before:+.1f} MiB at most; "
        f"the next answer {back:.1f} s after its return"
    )
    traffic.settle()
    worker.terminate(120.0)
    traffic.figures("an outage")
    assert most - before <= GROWTH_MIB and back <= BACK_SECONDS
