"""The whole check: state, answers, dead letters, journal and queries of a service, read once each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from core.config import KafkaConfig
from core.errors import ConfigError
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
    chains = _chains(log, kafka, {n: ends[kafka.state].get(n, (0, 0)) for n in queries}, verdict, progress)
    batches = _batches(
        log, kafka, {n: ends[kafka.journal].get(n, (0, 0)) for n in queries}, verdict, progress
    )
    found = {n: Answered(*bounds, batches[n], verdict) for n, bounds in queries.items()}
    since = max(
        _answers(log, kafka, ends[kafka.answers], found, verdict, progress),
        _letters(log, kafka, ends[kafka.dead_letters], found, verdict, progress),
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


def _chains(
    log: Log, kafka: KafkaConfig, ranges: Bounds, verdict: Verdict, progress: Progress
) -> dict[int, Chain]:
    chains = {}
    for number, bounds in ranges.items():
        chains[number] = Chain((kafka.queries, number), verdict)
        chains[number].read(windows(log, kafka.state, {number: bounds}, progress))
    return chains


def _batches(
    log: Log, kafka: KafkaConfig, ranges: Bounds, verdict: Verdict, progress: Progress
) -> dict[int, Batches]:
    batches = {}
    for number, bounds in ranges.items():
        batches[number] = Batches((kafka.queries, number), bounds[0] == 0, verdict)
        batches[number].read(windows(log, kafka.journal, {number: bounds}, progress))
    return batches


def _answers(
    log: Log, kafka: KafkaConfig, ranges: Bounds, found: Mapping[int, Answered], verdict: Verdict,
    progress: Progress,
) -> int:  # fmt: skip
    """Returns the time in ms before which answers may have been removed; 0 where none was."""
    since = 0
    for record in windows(log, kafka.answers, ranges, progress):
        if record.at.offset == ranges[record.at.partition][0] > 0:
            since = max(since, record.timestamp_ms)
        answer = read_answer(record, verdict)
        if answer is not None and answer.source.topic == kafka.queries and answer.source.partition in found:
            verdict.answers += 1
            found[answer.source.partition].take(record, answer)
    return since


def _letters(
    log: Log, kafka: KafkaConfig, ranges: Bounds, found: Mapping[int, Answered], verdict: Verdict,
    progress: Progress,
) -> int:  # fmt: skip
    """As `_answers`."""
    since = 0
    for record in windows(log, kafka.dead_letters, ranges, progress):
        if record.at.offset == ranges[record.at.partition][0] > 0:
            since = max(since, record.timestamp_ms)
        at = letter_source(record)
        if at is not None and at.topic == kafka.queries and at.partition in found:
            verdict.dead_letters += 1
            found[at.partition].refused(at)
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
