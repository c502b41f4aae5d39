"""The whole check: state, answers, dead letters, journal and queries of a service, read once each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from core.config import KafkaConfig
from core.errors import ConfigError
from core.records import Record
from stream.history.answered import Answered, letter_source, read_answer
from stream.history.batches import Batches
from stream.history.chain import Chain
from stream.history.findings import Verdict
from stream.history.windows import Log, Progress, nobody, windows

Bounds = Mapping[int, tuple[int, int]]


def verify(
    log: Log, kafka: KafkaConfig, partitions: Collection[int] = (), progress: Progress = nobody
) -> Verdict:
    """Checks what a service has written about its queries, while it runs or afterwards; touches nothing.

    What is read later was written earlier: a checkpoint after the answers that it covers, an answer after
    its batch was journalled. So the ends are asked for in this order, and a service that goes on meanwhile
    is not found at fault.

    Args:
        log: where the topics lie.
        kafka: their names.
        partitions: of the queries; all by default.

    Raises:
        ConfigError: no such topic or partition.
        BrokerError: Kafka cannot be read.
    """
    ends = {
        topic: log.bounds(topic)
        for topic in (kafka.state, kafka.answers, kafka.dead_letters, kafka.journal, kafka.queries)
    }
    queries = _chosen(kafka, ends, partitions)
    verdict = Verdict()
    chains, batches = {}, {}
    for number in queries:
        at = kafka.queries, number
        state, journal = (ends[topic].get(number, (0, 0)) for topic in (kafka.state, kafka.journal))
        chains[number] = Chain(at, verdict)
        chains[number].read(windows(log, kafka.state, {number: state}, progress))
        batches[number] = Batches(at, journal[0] == 0, verdict)
        batches[number].read(windows(log, kafka.journal, {number: journal}, progress))
    found = {n: Answered(*bounds, batches[n], verdict) for n, bounds in queries.items()}

    def answer(record: Record) -> None:
        one = read_answer(record, verdict)
        if one is not None and one.source.topic == kafka.queries and one.source.partition in found:
            verdict.answers += 1
            found[one.source.partition].take(record, one)

    def letter(record: Record) -> None:
        at = letter_source(record)
        if at is not None and at.topic == kafka.queries and at.partition in found:
            verdict.dead_letters += 1
            found[at.partition].refused(at)

    since = max(
        _taken(log, topic, ends[topic], take, progress)
        for topic, take in ((kafka.answers, answer), (kafka.dead_letters, letter))
    )
    for number, answered in found.items():
        batches[number].hold_against(chains[number])
        begins, covered = batches[number].begins, chains[number].covered
        verdict.queries += max(0, covered - begins) if begins is not None else 0
        _lost(log, kafka.queries, number, answered.missing(covered), since, verdict)
    return verdict


def _chosen(kafka: KafkaConfig, ends: Mapping[str, Bounds], partitions: Collection[int]) -> Bounds:
    held = ends[kafka.queries]
    for topic in (kafka.queries, kafka.journal, kafka.answers):
        if not ends[topic]:
            raise ConfigError(f"the topic {topic} does not exist: name the topics of a service by --config")
    unknown = sorted(set(partitions) - set(held))
    if unknown:
        raise ConfigError(
            f"{kafka.queries} has no partition {unknown[0]}: one of {', '.join(map(str, held))}"
        )
    return {number: held[number] for number in sorted(partitions or held)}


def _taken(log: Log, topic: str, ranges: Bounds, take: Callable[[Record], None], progress: Progress) -> int:
    """Hands every record on. Returns the time in ms before which some may have been removed; 0: none was."""
    since = 0
    for record in windows(log, topic, ranges, progress):
        if record.at.offset == ranges[record.at.partition][0] > 0:
            since = max(since, record.timestamp_ms)
        take(record)
    return since


def _lost(
    log: Log, topic: str, number: int, offsets: NDArray[np.int64], since: int, verdict: Verdict
) -> None:
    """Offsets without an outcome are lost where the log has a query there: transactions leave holes."""
    for start, end in _stretches(offsets):
        for record in windows(log, topic, {number: (start, end)}):
            if record.timestamp_ms < since:
                verdict.unknown("queries whose answers retention may have removed")
            else:
                verdict.violated("lost", f"{record.at} has neither an answer nor a dead letter")


def _stretches(offsets: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending offsets as ranges (first, the one after the last)."""
    if not len(offsets):
        return []
    cuts = [0, *(np.flatnonzero(np.diff(offsets) > 1) + 1).tolist(), len(offsets)]
    return [(int(offsets[a]), int(offsets[b - 1]) + 1) for a, b in pairwise(cuts)]
