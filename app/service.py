"""The live service: engine, Kafka, observers and page, started and stopped as one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.build import engine, state_store
from app.observers import watching
from core.config import Config
from core.errors import QshiftError
from monitoring.http import Serving, Views, create_app, serve
from stream.kafka import KafkaSink, KafkaSource, ensure_topics
from stream.lanes import Lane
from stream.runner import Report, run
from stream.topics import topic_settings

log = logging.getLogger("qshift.service")
GALLERY_PICTURE = Callable[[str], bytes | None]
LAG_SECONDS = 5.0


class Service:
    """Answers from Kafka until it is stopped.

    Args:
        config: with `kafka.bootstrap_servers` set.
        picture: gallery picture of an item by its identifier, for the page.
        title, attribution: of the page.
        worker: name of this worker in the consumer group; a restarted one is recognised by it at once.

    Raises:
        ArtifactError, ConfigError, BrokerError: what is missing, before anything is answered.
    """

    def __init__(
        self,
        config: Config,
        picture: GALLERY_PICTURE = lambda _: None,
        title: str = "qshift",
        attribution: str = "",
        worker: str | None = "worker-0",
    ) -> None:
        self.config = config
        self.engine = engine(config)
        self.observers = watching(self.engine, title, attribution)
        servers = config.kafka.bootstrap_servers
        ensure_topics(servers, topic_settings(config.kafka))
        self._store = state_store(config, servers)
        self._sink = KafkaSink(servers, config.kafka, config.limits.message_bytes)
        self._source = KafkaSource(servers, config.kafka, worker)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._report: Report | None = None
        self._lanes: list[Lane] = []
        self._assigned = False
        self._http: Serving | None = None
        if config.http.enabled:
            views = Views(
                self.observers.history, self.observers.metrics.registry, self.ready, self.state,
                picture, attribution=attribution,
            )  # fmt: skip
            self._http = serve(create_app(views), config.http.host, config.http.port)

    @property
    def url(self) -> str:
        return self._http.url if self._http else ""

    def ready(self) -> Mapping[str, bool]:
        """Conditions of /readyz."""
        return {
            "running": self._thread is not None and self._thread.is_alive(),
            "assigned": self._assigned,
            "gallery": len(self.engine.shelf.current()) > 0,
        }

    def state(self) -> Mapping[str, Any]:
        """What /state shows: per lane where it is, and what it has learned."""
        panels = self.observers.drift.panels()
        return {
            "base": self.engine.base.version[:16],
            "gallery": self.engine.shelf.current().version,
            "config": self.config.decision_hash(),
            "lanes": {
                lane.name: {
                    "next_seq": lane.next_seq,
                    "next_offset": lane.next_offset,
                    "pending": len(lane.pending),
                    "method": lane.learner.adapter.name,
                    "updates": lane.learner.adapter.version,
                    "drift": lane.name in panels and panels[lane.name].drift_detected,
                }
                for lane in self._lanes
            },
        }

    def run(self) -> Report:
        """Works in this thread until `request_stop`."""
        return run(
            self._source, self.engine.pipeline, self.engine.codec, self._sink, self._store,
            [*self.observers.all(), _Lag(self)], self.config, self._stop, on_lanes=self._on_lanes,
        )  # fmt: skip

    def start(self) -> None:
        """Works in a thread of its own; `check` raises what ended it."""

        def work() -> None:
            try:
                self._report = self.run()
            except BaseException as error:
                self._failure = error
                log.exception("the service ended")

        self._thread = threading.Thread(target=work, name="qshift-run")
        self._thread.start()

    def check(self) -> None:
        """Raises QshiftError when the working thread has ended by an error."""
        if self._failure is not None:
            raise QshiftError(f"the service ended: {self._failure}") from self._failure

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Ends after the batch in hand; safe in a signal handler."""
        self._stop.set()

    def wait_for_labels(self, budget_seconds: float) -> None:
        """Returns when every label asked for has come, or the budget is over."""
        deadline = time.monotonic() + budget_seconds
        while time.monotonic() < deadline and self.observers.judged.labels().pending:
            self.check()
            time.sleep(0.05)

    def stop(self) -> Report:
        """Finishes the batch in hand, makes a cut, closes everything; raises what had ended the run."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.close()
        self.check()
        return self._report or Report()

    def close(self) -> None:
        """Closes connections and the page; the run must have ended."""
        if self._http is not None:
            self._http.stop()
        for part in (self._source, self._sink, self._store):
            part.close()

    def _on_lanes(self, lanes: Sequence[Lane]) -> None:
        self._lanes, self._assigned = list(lanes), True

    def refresh_lag(self) -> None:
        """Shows how far behind the source is and what is in flight."""
        for partition, records in self._source.lag().items():
            self.observers.metrics.lag(f"{partition[0]}/{partition[1]}", records)


class _Lag:
    """Observer that refreshes the lag at most every few seconds."""

    def __init__(self, service: Service) -> None:
        self._service, self._next = service, 0.0

    def observe(self, outcome: object) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LAG_SECONDS
            self._service.refresh_lag()

    def judge(self, judgement: object) -> None: ...

    def refuse(self, refusal: object) -> None: ...
