"""The live service: engine, Kafka, observers and page, started and stopped as one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from core.config import Config
from core.errors import QshiftError
from core.protocols import Observer
from core.secrets import http_token
from index.gallery import VersionedGallery
from monitoring.aside import Aside, Errors
from monitoring.http import Serving, Views, serve
from monitoring.token import digest
from qshift.build import decoding, engine, state_store
from qshift.following import Following
from qshift.observers import Watched, count, watching
from stream.cluster import group_members
from stream.events import Commanded, Delivering, Event, LanesChanged
from stream.kafka import SESSION_SECONDS, KafkaSource
from stream.lanes import Lane
from stream.names import check_free, own_name
from stream.report import Report
from stream.runner import run
from stream.sink import KafkaSink
from stream.topics import prepared_topics
from stream.transaction import Transaction
from stream.warm_up import warm_up

log = logging.getLogger("qshift.service")
GALLERY_PICTURE = Callable[[str], bytes | None]


class Service:
    """Answers from Kafka until it is stopped.

    Args:
        config: with `kafka.bootstrap_servers` set.
        picture: gallery picture of an item by its identifier, for the page.
        title, attribution: of the page.
        worker: name of this worker in the consumer group; after a crash one is recognised by it at once.
            By default one that no other process has.

    Raises:
        ArtifactError, ConfigError, BrokerError: what is missing, before anything is answered.
        NameTaken: another worker of the group has the name.
    """

    def __init__(
        self,
        config: Config,
        picture: GALLERY_PICTURE = lambda _: None,
        title: str = "qshift",
        attribution: str = "",
        worker: str | None = None,
    ) -> None:
        self.config = config
        self.engine = engine(config)
        self.observers = watching(self.engine, title, attribution)
        self._following = Following(self.engine, config.gallery, self._searched)
        self._decoders = decoding(self.engine)
        warm_up(self.engine.pipeline)
        servers = config.kafka.bootstrap_servers
        kept = prepared_topics(servers, config)
        if worker is not None:
            _check_free(config, worker)
        self._stop = threading.Event()
        name, limit = worker or own_name(), config.limits.message_bytes
        self._transaction: Transaction | None = None
        if config.kafka.transactions:
            self._transaction = Transaction(
                servers, config.kafka, name, lambda: self._source.member(), limit, self._stop
            )
        self._store = state_store(config, servers, self._stop, self._transaction)
        self._sink = self._transaction or KafkaSink(servers, config.kafka, limit, hurry=self._stop)
        self._sink.warm_up()
        self._source = KafkaSource(servers, config.kafka, name, kept_partitions=kept)
        self.extra: list[Observer] = []
        self._errors = Errors(self.observers.metrics.observer_failed)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._report: Report | None = None
        self._lanes: list[Lane] = []
        self._running, self._delivering = False, True
        self._http: Serving | None = None
        self.observers.metrics.watch("qshift_inflight_bytes", lambda: float(self._sink.inflight_bytes))
        self.observers.metrics.watch(
            "qshift_waiting_queries", lambda: float(sum(len(lane.pending) for lane in self._lanes))
        )
        if (server := self.engine.versions.current().searched.server) is not None:
            server.outage = self.observers.metrics.gallery_away
            self.observers.metrics.watch("qshift_gallery_away", lambda: float(server.away))
        if config.http.enabled:
            views = Views(
                self.observers.history, self.observers.metrics.registry, self.ready, self.state,
                picture, attribution=attribution, hosts=(config.http.host, *config.http.hosts),
                refused=self.observers.metrics.refused, token=shown_token(config),
            )  # fmt: skip
            self._http = serve(views, config.http.host, config.http.port, self._errors)

    @property
    def url(self) -> str:
        return self._http.url if self._http else ""

    def ready(self) -> Mapping[str, bool]:
        """Conditions of /readyz."""
        return {
            "running": self._running,
            "assigned": bool(self._source.assignment()),
            "partitions": not self._source.unserved,
            "gallery": len(self.engine.versions.current()) > 0,
            "delivering": self._delivering,
        }

    def state(self) -> Mapping[str, Any]:
        """What /state shows: per lane where it is, and what it has learned."""
        panels = self.observers.drift.panels()
        return {
            "base": self.engine.base.version[:16],
            "gallery": self.engine.versions.current().version,
            "config": self.config.decision_hash(),
            "identity": self.engine.identity,
            "lanes": {
                lane.name: {
                    "next_seq": lane.next_seq,
                    "next_offset": lane.next_offset,
                    "pending": len(lane.pending),
                    "method": session.adapter.name,
                    "updates": session.adapter.version,
                    "orders": session.orders.snapshot(),
                    "kept": [{"batch": one.seq, "state": one.state_hash} for one in lane.kept.states],
                    "drift": lane.name in panels and panels[lane.name].drift_detected,
                }
                for lane in self._lanes
                if (session := lane.learned) is not None
            },
        }

    def run(self) -> Report:
        """Works in this thread until `request_stop`."""
        self._running = True
        self._following.start()
        metrics = self.observers.metrics
        aside = Aside(
            [*self.observers.all(), *self.extra], self._errors, self.observers.unobserved,
            switched_off=self.observers.history.lacks,
        )  # fmt: skip
        metrics.watch("qshift_observers_held_bytes", lambda: float(aside.held_bytes))
        try:
            return run(
                Watched(self._source, metrics, self._errors, lambda: self._lanes),
                self.engine.pipeline, self.engine.codec, self._sink,
                self._store, [aside], self.config, self._stop,
                tell=self._told, decoders=self.config.limits.decoders,
                base_version=self.engine.base.version, transaction=self._transaction,
            )  # fmt: skip
        finally:
            self._running = False
            self._following.close()
            aside.close()

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

    def wait_until_ready(self, budget_seconds: float) -> None:
        """Returns when queries are read, or the budget is over."""
        self._wait(lambda: all(self.ready().values()), budget_seconds)

    def wait_for_queries(self, count: int, budget_seconds: float) -> None:
        """Returns when so many queries were learned from and observed, or the budget is over."""
        self._wait(lambda: self.observers.history.queries >= count, budget_seconds)

    def wait_for_labels(self, budget_seconds: float) -> None:
        """Returns when every label asked for has come, or the budget is over."""
        self._wait(lambda: not self.observers.judged.labels().pending, budget_seconds)

    def _wait(self, over: Callable[[], bool], budget_seconds: float) -> None:
        deadline = time.monotonic() + budget_seconds
        while time.monotonic() < deadline and not over():
            self.check()
            time.sleep(0.02)

    def stop(self) -> Report:
        """Finishes the batch in hand, saves, closes everything; raises what had ended the run."""
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
        for part in (self._source, self._sink, self._store, self._decoders):
            part.close()

    def _searched(self, gallery: VersionedGallery) -> None:
        """Another version is in use."""
        self._errors.guarded(type(self.observers).__name__, lambda: self.observers.searched(gallery))

    def _told(self, event: Event) -> None:
        """What happens to the run shows in /readyz, /state and the metrics, and never comes back to it."""
        match event:
            case Delivering(succeeds):
                self._delivering = succeeds
            case LanesChanged(lanes):
                self._lanes = list(lanes)
            case Commanded(obeyed) if not obeyed.repeated:
                history = self.observers.history
                self._errors.guarded(type(history).__name__, lambda: history.commanded(obeyed))
                count(self.observers.metrics, self._errors, event)
            case _:
                count(self.observers.metrics, self._errors, event)


def shown_token(config: Config) -> str:
    """The digest that clients' tokens are held against. Raises ConfigError where it cannot be read."""
    token = http_token(config.http)
    return "" if token is None else digest(token)


def _check_free(config: Config, worker: str) -> None:
    kafka = config.kafka
    check_free(
        worker, kafka.group, lambda: group_members(kafka.bootstrap_servers, kafka.group, kafka.security),
        SESSION_SECONDS,
    )  # fmt: skip
