"""`qshift gallery follow`: the items topic, taken into the folder of a gallery.

Each step reads a stretch of the topic, sends what is refused to the dead letters, and writes the next version
together with the place where reading goes on, in one manifest. A crash before that repeats the step; after it
nothing is read twice. Services that follow the folder (`qshift/following.py`) answer from the version.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console

from core.config import Config, LimitConfig
from core.config_file import load_connected
from core.errors import BrokerError, ConfigError, DeliveryError, Refused
from core.readers.places import shown
from core.records import Record, Refusal
from core.types import Modality
from encoders.base_model import Base, load_base
from index.folder import changing, items_offset
from index.gallery import Display, VersionedGallery
from index.merging import tidied
from qshift.recipes.gallery import encoded_prepared
from stream.cluster import ensure_topics
from stream.items import ItemChange, decoded, items_settings
from stream.letters import dead_letter
from stream.recording import KafkaLog
from stream.sink import KafkaSink

log = logging.getLogger("qshift.items")
STEP = 1024
"""Most offsets of a step: each is a version."""
ALONE = 1
"""Items that a tower is given at a time: what an item becomes must not depend on who came with it."""
LOOK_SECONDS, AWAY_SECONDS, FLUSH_SECONDS = 0.5, 2.0, 60.0
Refuse = Callable[[Sequence[Refusal]], None]
"""Makes dead letters durable."""


class Log(Protocol):
    """Where items lie: `stream.recording.KafkaLog`, or a list in tests."""

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> (first offset, the one after the last)."""

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Record]:
        """Records of each partition from its first offset up to before its second."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did, and the gallery after it."""

    put: int
    taken_out: int
    refused: int
    gallery: VersionedGallery
    offset: int
    """Where reading goes on."""


class Intake:
    """Takes the items topic into a folder, a step at a time.

    Args:
        log: where the topic lies.
        config: names the topic, and what is refused.
        base: the base model of the gallery.
        folder: of the gallery.
        refuse: makes dead letters durable.
    """

    def __init__(self, log: Log, config: Config, base: Base, folder: Path, refuse: Refuse) -> None:
        self._log, self._topic, self._limits = log, config.kafka.items, config.limits
        self._base, self._folder, self._refuse = base, folder, refuse
        self._last: VersionedGallery | None = None

    def step(self) -> Step | None:
        """Takes in the next stretch; None where there is nothing new.

        Raises:
            ArtifactError, ConfigError: folder or topic cannot be used.
            BrokerError, DeliveryError: Kafka is away; nothing is lost, take the step again.
        """
        number, first, end = self._bounds()
        with changing(self._folder, wait=True):
            start = items_offset(self._folder)
            if start > end:
                raise ConfigError(
                    f"the topic {self._topic} ends at {end}, and {shown(self._folder)} has taken it in up to "
                    f"{start}: the topic was made anew, build the gallery again"
                )
            start = max(start, first)
            stop = min(start + STEP, end)
            if start == stop:
                return None
            # What was read or written before is in memory: a step costs what it changes.
            gallery = VersionedGallery.load(self._folder, self._base.version, beside=self._last)
            records = self._log.read(self._topic, {number: (start, stop)})
            found, refusals = changes(records, self._limits, self._base)
            self._last = applied(gallery, found, self._base)
            if refusals:
                self._refuse(refusals)
            self._last.save(self._folder, stop)
        put = sum(change.modality is not None for change in found)
        return Step(put, len(found) - put, len(refusals), self._last, stop)

    def _bounds(self) -> tuple[int, int, int]:
        """The topic's one partition, its first offset, and the one after the last. Raises ConfigError."""
        held = self._log.bounds(self._topic)
        if len(held) != 1:
            raise ConfigError(
                f"the topic {self._topic} has {len(held)} partitions: items need one, to have one order"
            )
        ((number, (first, end)),) = held.items()
        return number, first, end


def follow(config_file: Path | None, once: bool, console: Console) -> None:
    """Takes in what the topic holds and what comes, until SIGTERM or Ctrl-C; with `once` up to its end.

    Raises:
        ConfigError: no Kafka named.
        ArtifactError: base or gallery cannot be read.
    """
    config, stop = load_connected(config_file), threading.Event()
    base = load_base(config.base)
    VersionedGallery.load(config.gallery, base.version, backend="exact")  # said before Kafka is asked
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    kafka = config.kafka
    ensure_topics(
        kafka.bootstrap_servers, items_settings(kafka), security=kafka.security,
        replication=kafka.replication_factor,
    )  # fmt: skip
    while not stop.is_set():
        try:
            _follow(config, base, once, stop, console)
            return
        except (BrokerError, DeliveryError) as error:
            if once:
                raise
            log.warning("waiting for Kafka", extra={"error": str(error)})
            stop.wait(AWAY_SECONDS)


def _follow(config: Config, base: Base, once: bool, stop: threading.Event, console: Console) -> None:
    servers, limit = config.kafka.bootstrap_servers, config.limits.message_bytes
    sink = KafkaSink(servers, config.kafka, limit, hurry=stop)

    def refuse(refusals: Sequence[Refusal]) -> None:
        for refusal in refusals:
            value, key, headers = dead_letter(refusal, limit)
            sink.send("dead-letters", value, key, headers)
        sink.flush(FLUSH_SECONDS)

    try:
        with KafkaLog(servers, config.kafka.security) as topic:
            intake = Intake(topic, config, base, config.gallery, refuse)
            while not stop.is_set():
                made = intake.step()
                if made is not None:
                    console.print(_said(made), highlight=False)
                elif once:
                    return
                else:
                    stop.wait(LOOK_SECONDS)
    finally:
        sink.close()


def _said(made: Step) -> str:
    return (
        f"{made.put:,} put in, {made.taken_out:,} taken out, {made.refused:,} refused: "
        f"{len(made.gallery):,} items, version {made.gallery.version}, offset {made.offset}"
    )


def changes(
    records: Sequence[Record], limits: LimitConfig, base: Base
) -> tuple[list[ItemChange], list[Refusal]]:
    """The last change of each name, prepared by its tower, in the order of the topic; and what is refused."""
    changes: dict[str, ItemChange] = {}
    refusals: list[Refusal] = []
    for record in records:
        event = decoded(record, limits)
        if isinstance(event, ItemChange):
            event = _prepared(event, base)
        if isinstance(event, Refusal):
            refusals.append(event)
        else:
            changes.pop(event.identifier, None)
            changes[event.identifier] = event
    return list(changes.values()), refusals


def _prepared(change: ItemChange, base: Base) -> ItemChange | Refusal:
    if change.modality is None:
        return change
    try:
        encoder = base.encoders.get(change.modality)
        if encoder is None:
            served = ", ".join(base.encoders)
            raise Refused("validate", f"the base model serves {served}, not {change.modality} items")
        return replace(change, content=encoder.prepare(change.content))
    except Refused as refused:
        return Refusal(change.record, refused.stage, type(refused).__name__, refused.reason)


def applied(gallery: VersionedGallery, changes: Sequence[ItemChange], base: Base) -> VersionedGallery:
    """The next version. What is to be taken out and is not there is out."""
    gone = [one.identifier for one in changes if one.modality is None and gallery.holds(one.identifier)]
    new = [one for one in changes if one.modality is not None]
    gallery = gallery.remove(gone)
    if not new:
        return tidied(gallery)
    rows: dict[Modality, list[int]] = {}
    for number, one in enumerate(new):
        if one.modality is not None:
            rows.setdefault(one.modality, []).append(number)
    order = [number for numbers in rows.values() for number in numbers]
    encoded = [
        encoded_prepared(
            base, [new[n].content for n in numbers], len(numbers), modality=modality, together=ALONE
        )
        for modality, numbers in rows.items()
    ]
    back = np.argsort(order)
    names = [one.identifier for one in new]
    return tidied(
        gallery.upsert(
            names,
            np.concatenate([codes for codes, _ in encoded])[back],
            [one.labels for one in new],
            np.concatenate([features for _, features in encoded])[back],
            [Display(one.title or one.identifier) for one in new],
            [one.attributes for one in new],
            [one.record.at.offset for one in new],
        )
    )
