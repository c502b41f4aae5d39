"""Mends the journals of a service that does not run, in their topic or in their folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from core.config import Config, KafkaConfig
from core.errors import ArtifactError
from core.readers.places import bytes_of
from core.records import Partition
from stream.cluster import delete_before, group_members
from stream.directory import entry_line, line_entry, write_whole
from stream.mending import Mended, mended
from stream.recording import KafkaLog
from stream.states import entry_to_bytes
from stream.topic_log import TopicLog

RETRY_SECONDS = 30.0
COPIED = 1000
"""Entries that are written and acknowledged at once."""


def repair(config: Config, write: bool) -> Iterator[Mended]:
    """What is wrong in each journal; mended where `write` says so.

    Raises:
        ArtifactError: a worker of the group is running.
        BrokerError, DeliveryError: Kafka cannot be reached, or does not take what is written.
    """
    kafka, servers = config.kafka, config.kafka.bootstrap_servers
    if servers and write and group_members(servers, kafka.group, kafka.security):
        raise ArtifactError(
            f"workers of group {kafka.group} are running: stop them before the journal is mended"
        )
    ends = _ends(kafka) if servers else {}
    if config.state.store == "directory":
        yield from _folder(Path(config.state.directory), ends, write)
    else:
        yield from _topic(kafka, ends, write)


def _ends(kafka: KafkaConfig) -> dict[Partition, int]:
    with KafkaLog(kafka.bootstrap_servers, kafka.security) as log:
        bounds = log.bounds(kafka.queries)
    return {(kafka.queries, number): end for number, (_, end) in bounds.items()}


def _topic(kafka: KafkaConfig, ends: dict[Partition, int], write: bool) -> Iterator[Mended]:
    """The mended journal is written behind the old one, and the old one is erased then."""
    log = TopicLog(
        kafka.bootstrap_servers, kafka.delivery_timeout_seconds, RETRY_SECONDS, security=kafka.security
    )
    try:
        for partition, end in sorted(ends.items()):
            number = partition[1]
            records = (
                (f"{kafka.journal}/{number}/{offset}", value)
                for offset, _, value in log.read(kafka.journal, number, 0)
            )
            found = mended(partition, records, end)
            if write and found.notes:
                keyed = [(f"{one.lane}/{one.seq}".encode(), entry_to_bytes(one)) for one in found.entries]
                pieces = [keyed[at : at + COPIED] for at in range(0, len(keyed), COPIED)]
                placed = [offset for piece in pieces for offset in log.append(kafka.journal, number, piece)]
                before = placed[0] if placed else -1  # -1: all there is
                delete_before(kafka.bootstrap_servers, (kafka.journal, number), before, kafka.security)
            yield found
    finally:
        log.close()


def _folder(folder: Path, ends: dict[Partition, int], write: bool) -> Iterator[Mended]:
    for path in sorted(folder.glob("*-*/journal.jsonl")):
        topic, _, number = path.parent.name.rpartition("-")
        partition = (unquote(topic), int(number) if number.isdigit() else -1)
        lines = bytes_of(path).splitlines(keepends=True)
        records = (
            (f"{path}:{count}", line[17:-1] if line_entry(line) else None)
            for count, line in enumerate(lines, 1)
        )
        found = mended(partition, records, ends.get(partition))
        if write and found.notes:
            write_whole(path, b"".join(map(entry_line, found.entries)))
        yield found
