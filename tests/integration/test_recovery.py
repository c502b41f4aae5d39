"""Crashes of the worker and of Kafka are invisible: nothing lost, duplicates byte-identical, same state."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_measure(broker: Any, make_site: Any, vector_world: Any, messages: Any) -> None:
    site = make_site(broker, vector_world)
    sent, _ = messages(1600)
    t = time.monotonic()
    site.send(sent)
    print("send", time.monotonic() - t)
    client = site.client()
    worker = site.worker()
    t = time.monotonic()
    seen = 0
    first = None
    while seen < 1600:
        seen += len(client.answers(0.02))
        if seen and first is None:
            first = time.monotonic()
            print("first answer", first - t)
        assert time.monotonic() - t < 60, worker.output()
    print("all", time.monotonic() - t, "rate", 1600 / (time.monotonic() - first))
    client.close()
    print("stop", worker.terminate(), worker.output(), worker.state(), worker.counts())
