"""The gallery versions that a recording names, for a replay of it.

A version is read from the folder of the gallery while it is kept there, or from other folders that are named.
One that is gone is made again: the items topic is taken in anew from the oldest version that is there of each
gallery, one record after another, until a version has the name that is wanted. A name stands for content, so
what is found is what answered, to the byte; what is not found was changed by hand, or compaction has removed
records that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import product
from pathlib import Path

from rich.console import Console

from core.config import Config, LimitConfig
from core.errors import ArtifactError, BrokerError
from core.readers.places import is_folder, shown
from encoders.base_model import Base
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
        former: more folders to look into, such as what a gallery was put in place from.
    """

    def __init__(
        self, config: Config, wanted: Collection[str], topic: Open, say: Callable[[str], None],
        former: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self._config, self._wanted = config, sorted(set(wanted) - {""})
        self._folders = (config.gallery, *former)
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
        for version, folder in product(self._wanted, self._folders):
            if version not in found:
                with suppress(ArtifactError):  # no longer kept there
                    found[version] = self._kept(folder, base, version, newest)
        kept = len(found.keys() & set(self._wanted))
        missing = set(self._wanted) - found.keys()
        if missing:
            try:
                with self._topic() as log:
                    for begun, offset in self._beginnings(base, newest):
                        left = missing - found.keys()
                        found |= rebuilt(log, config.kafka.items, config.limits, base, begun, offset, left)
            except BrokerError as error:
                self._say(f"{config.kafka.items} cannot be read: {error}")
        self._tell(kept, found.keys() & missing, missing - found.keys())
        return found

    def _kept(self, folder: Path, base: Base, version: str, newest: VersionedGallery) -> VersionedGallery:
        config = self._config
        return load_gallery(folder, base, device(config), config.threads, config.answer, version, newest)

    def _beginnings(self, base: Base, newest: VersionedGallery) -> Iterator[tuple[VersionedGallery, int]]:
        """Of each gallery that was built, the version that holds least of the topic, and where it goes on."""
        begun = set[str]()
        held = [(*one, folder) for folder in self._folders for one in _held(folder)]
        for offset, version, origin, folder in sorted(held):
            if origin not in begun:
                with suppress(ArtifactError):
                    yield self._kept(folder, base, version, newest), offset
                    begun.add(origin)

    def _tell(self, kept: int, made: Collection[str], missing: Collection[str]) -> None:
        if len(self._wanted) > 1 or made or missing:
            self._say(
                f"gallery versions of the recording: {kept} kept in "
                f"{', '.join(map(shown, self._folders))}, "
                f"{len(made)} made again from {self._config.kafka.items}, {len(missing)} not found"
            )
        if missing:
            self._say(
                f"batches of gallery version {', '.join(sorted(missing)[:3])} are asked of another version: "
                "give a copy of the gallery as it was built, before the items topic was taken in, with "
                "--former"
            )


def of_topic(
    config: Config, console: Console, former: Sequence[Path] = ()
) -> Callable[[Collection[str]], Callable[[Engine], None]]:
    """For `replay_topic`: the items topic lies in the Kafka of the settings.

    Raises ArtifactError for a folder of `former` that is none.
    """
    kafka = config.kafka
    for folder in former:
        if not is_folder(folder):
            raise ArtifactError(f"no gallery in {shown(folder)}: --former takes folders of galleries")

    def say(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    return lambda wanted: (
        Recorded(
            config, wanted, lambda: KafkaLog(kafka.bootstrap_servers, kafka.security), say, former
        ).attach
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


def _held(folder: Path) -> Iterator[tuple[int, str, str]]:
    """(items offset, version, the version that it began with) of the manifests in a folder."""
    for path in folder.glob("manifest*.json"):
        try:
            told = json.loads(path.read_bytes())
            version = str(told["version"])
            origin = told["lineage"]["origin"] if "lineage" in told else version
            yield int(told.get("items_offset", 0)), version, str(origin)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
