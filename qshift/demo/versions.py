"""The gallery versions that a recording names, for a replay of it.

A version is read from the folder of the gallery while it is kept there. One that is gone is made again: the
items topic is taken in anew from the oldest version that is there, one record after another, until a version
has the name that is wanted. A name stands for content, so what is found is what answered, to the byte; what
is not found was changed by hand, or compaction has removed records that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from rich.console import Console

from core.artifacts import MANIFEST
from core.config import Config, LimitConfig
from core.errors import ArtifactError, BrokerError
from core.readers.places import shown
from encoders.base_model import Base
from index.folder import items_offset
from index.gallery import VersionedGallery
from qshift.build import Engine, device, load_gallery
from qshift.demo.items_topic import STEP, Log, applied, changes
from stream.recording import KafkaLog

Open = Callable[[], AbstractContextManager[Log]]


class Recorded:
    """Turns engines to the versions of a recording.

    Args:
        config: names the gallery's folder and the items topic.
        wanted: versions that the journal of the recording names.
        topic: opens the log that the items topic lies in.
        say: is told once what was found, and what was not.
    """

    def __init__(self, config: Config, wanted: Collection[str], topic: Open, say: Callable[[str], None]):
        self._config, self._wanted = config, sorted(set(wanted) - {""})
        self._topic, self._say = topic, say
        self._found: dict[str, VersionedGallery] | None = None

    def attach(self, engine: Engine) -> None:
        """From now on each batch of this engine is asked of the version that its journal entry names."""
        if not self._wanted:
            return
        if self._found is None:
            self._found = self._all(engine.base, engine.versions.current())
        found, versions = self._found, engine.versions
        versions.keep(len(found) + 1)

        def turn(version: str) -> str:
            if version in found and version != versions.current().version:
                versions.swap(found[version])
            return versions.current().version

        engine.pipeline.retrieval.turn = turn

    def _all(self, base: Base, newest: VersionedGallery) -> dict[str, VersionedGallery]:
        config, found = self._config, {newest.version: newest}
        for version in self._wanted:
            if version not in found:
                with suppress(ArtifactError):  # no longer kept there
                    found[version] = self._kept(base, version, newest)
        kept = len(found.keys() & set(self._wanted))
        missing = set(self._wanted) - found.keys()
        if missing:
            try:
                with self._topic() as log:
                    found |= rebuilt(
                        log, config.kafka.items, config.limits, base, *self._oldest(base, newest), missing
                    )
            except BrokerError as error:
                self._say(f"{config.kafka.items} cannot be read: {error}")
        self._tell(kept, found.keys() & missing, missing - found.keys())
        return found

    def _kept(self, base: Base, version: str, newest: VersionedGallery) -> VersionedGallery:
        config = self._config
        return load_gallery(
            config.gallery, base, device(config), config.threads, config.answer, version, newest
        )

    def _oldest(self, base: Base, newest: VersionedGallery) -> tuple[VersionedGallery, int]:
        """The version in the folder that holds least of the topic, and where reading goes on from it."""
        folder = self._config.gallery
        now = items_offset(folder)
        for offset, version in sorted(_former(folder)):
            if offset < now:
                with suppress(ArtifactError):
                    return self._kept(base, version, newest), offset
        return newest, now

    def _tell(self, kept: int, made: Collection[str], missing: Collection[str]) -> None:
        if len(self._wanted) > 1 or made or missing:
            self._say(
                f"gallery versions of the recording: {kept} kept in {shown(self._config.gallery)}, "
                f"{len(made)} made again from {self._config.kafka.items}, {len(missing)} not found"
            )
        if missing:
            self._say(
                f"batches of gallery version {', '.join(sorted(missing)[:3])} are asked of another version: "
                "give a copy of the gallery as it was built, before the items topic was taken in"
            )


def of_topic(config: Config, console: Console) -> Callable[[Collection[str]], Callable[[Engine], None]]:
    """For `replay_topic`: the items topic lies in the Kafka of the settings."""
    kafka = config.kafka

    def say(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    return lambda wanted: (
        Recorded(config, wanted, lambda: KafkaLog(kafka.bootstrap_servers, kafka.security), say).attach
    )


def rebuilt(
    log: Log, topic: str, limits: LimitConfig, base: Base, gallery: VersionedGallery, offset: int,
    wanted: Collection[str],
) -> dict[str, VersionedGallery]:  # fmt: skip
    """Versions that the items topic leads to, by name; those that it does not lead to are left out.

    Args:
        gallery, offset: where it begins, and the first record that it does not hold.
    """
    missing, found = set(wanted) - {gallery.version}, dict[str, VersionedGallery]()
    if gallery.version in wanted:
        found[gallery.version] = gallery
    for after in one_by_one(log, topic, limits, base, gallery, offset):
        if not missing:
            break
        if after.version in missing:
            missing.discard(after.version)
            found[after.version] = after
    return found


def one_by_one(
    log: Log, topic: str, limits: LimitConfig, base: Base, gallery: VersionedGallery, offset: int
) -> Iterator[VersionedGallery]:
    """The version after each record."""
    for number, (first, end) in log.bounds(topic).items():
        for start in range(max(first, offset), end, STEP):
            for record in log.read(topic, {number: (start, min(start + STEP, end))}):
                gallery = applied(gallery, changes([record], limits, base)[0], base)
                yield gallery


def _former(folder: Path) -> Iterator[tuple[int, str]]:
    """(items offset, version) of the manifests that are kept beside the newest."""
    for path in folder.glob("manifest-*.json"):
        if path.name != MANIFEST:
            try:
                told = json.loads(path.read_bytes())
                yield int(told.get("items_offset", 0)), str(told["version"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
