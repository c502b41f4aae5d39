"""What the service costs a query: Kafka, journal, checkpoints, observers, metrics and page included."""

from __future__ import annotations

import time
from collections.abc import Sequence

from core.config import Config
from core.records import Judgement, Refusal
from core.types import Outcome
from qshift.demo.catalogue import Catalogue
from qshift.replay.schedule import Item
from qshift.service import Service
from stream.client import QueryClient
from stream.cluster import ensure_topics
from stream.topics import topic_settings

TOPICS = ("queries", "answers", "labels", "state", "journal", "dead_letters", "group")


class _Ends:
    """Notes the CPU time of the process when the warm batches were over, and when the last one was."""

    def __init__(self, warm: int) -> None:
        self._warm = warm
        self.batches = self.answered = self.queries = 0
        self.first = self.last = 0.0

    def observe(self, outcome: Outcome) -> None:
        self.batches, self.answered = self.batches + 1, self.answered + len(outcome.batch)
        self.last = time.process_time()
        if self.batches == self._warm:
            self.first = self.last
        elif self.batches > self._warm:
            self.queries += len(outcome.batch)

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


def service_seconds(
    catalogue: Catalogue, config: Config, items: Sequence[Item], servers: str, suffix: str, warm: int
) -> float:
    """CPU seconds of a query in a service whose queries all wait in the log, after `warm` batches."""
    named = {role: f"{getattr(config.kafka, role)}{suffix}" for role in TOPICS}
    kafka = config.kafka.model_copy(update={"bootstrap_servers": servers, **named})
    http = config.http.model_copy(update={"port": 0})
    config = config.model_copy(update={"kafka": kafka, "http": http})
    ensure_topics(servers, topic_settings(kafka), security=kafka.security)
    client = QueryClient(servers, kafka)
    for item in items:
        client.send(item.value, item.headers)
    client.flush()
    client.close()
    service, ends = Service(config, catalogue.picture), _Ends(warm)
    service.extra.append(ends)
    service.start()
    while ends.answered < len(items):
        service.check()
        time.sleep(0.05)
    service.stop()
    return (ends.last - ends.first) / ends.queries
