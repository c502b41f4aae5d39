"""What observers are too slow for is dropped and counted, and the loop waits for none of them."""

import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from core.records import Coordinates, Judgement
from core.types import Outcome
from monitoring.aside import Aside, Errors
from monitoring.history import History
from monitoring.judged import JudgedQuality, Remembered
from monitoring.metrics import Metrics
from qshift.observers import Observers


def test_what_is_dropped_is_counted_while_an_observer_hangs(
    outcome: Callable[..., Outcome],
) -> None:
    judging, may, done = threading.Event(), threading.Event(), threading.Event()

    def hangs(version: str, kept: Remembered, label: str) -> None:
        judging.set()
        may.wait(30)

    judged = JudgedQuality("key", 1.0, 1000, hangs)
    metrics = Metrics(CollectorRegistry(), judged)
    observers = Observers(judged, None, metrics, History())  # type: ignore[arg-type]
    aside = Aside([judged, metrics], Errors(), observers.unobserved, most_labels=3)
    seen = outcome([0])
    aside.observe(seen)
    label = Judgement(Coordinates("labels", 0, 0), seen.batch.queries[0].at, "cat")
    aside.judge(label)
    assert judging.wait(10)

    def loop() -> None:
        for _ in range(10):
            aside.judge(label)
        done.set()

    thread = threading.Thread(target=loop)
    thread.start()
    in_time = done.wait(5)
    shown = metrics.registry.get_sample_value("qshift_unobserved_total", {"kind": "label"})
    may.set()
    thread.join()
    assert in_time and shown == 7
    assert aside.drain(10)
    ignored = metrics.registry.get_sample_value("qshift_labels_ignored_total", {"reason": "overflow"})
    assert ignored == 7
    aside.close()
