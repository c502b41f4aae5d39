"""A gallery that is kept in step with its folder while the service answers.

Whatever writes the folder (`qshift gallery add`, `remove`, `build`) changes what is searched. A thread reads
the new version, what is new of it alone, and prepares it; the loop takes it between two batches. The journal
names the version of each batch before it is answered: whoever repeats the batch, after a crash or in the
place of another worker, answers from that version, which the folder keeps for an hour.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from core.artifacts import MANIFEST
from core.errors import QshiftError
from index.folder import newest
from index.gallery import VersionedGallery
from qshift.build import Engine, device, load_gallery, put_in_place
from stream.warm_up import warm_gallery

log = logging.getLogger("qshift.gallery")
LOOK_SECONDS = 1.0
"""How often the folder is looked at."""
OLDER = 3
"""Versions that are kept of those that were read again: for late labels of answers by them."""


class Following:
    """Turns an engine to the versions of its gallery's folder.

    Args:
        engine: whose gallery was loaded from `folder`.
        folder: of the gallery.
        shown: is told each version that is put in use, in the loop's thread.
    """

    def __init__(
        self, engine: Engine, folder: Path, shown: Callable[[VersionedGallery], None] = lambda _: None
    ) -> None:
        self._engine, self._folder, self._shown = engine, folder, shown
        self._newest = engine.versions.current()
        self._seen: tuple[int, int] | None = None
        self._told = "composed" not in engine.base.reference
        self._older: dict[str, VersionedGallery] = {}
        self._gone: set[str] = set()
        self._looking, self._reading, self._end = threading.Lock(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="qshift-gallery", daemon=True)
        engine.pipeline.retrieval.turn = self.turn
        engine.versions.find = self._again

    def start(self) -> None:
        """Looks at the folder from now on."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def swap(self, source: Path) -> str:
        """Puts a whole new gallery in place, from another folder: in use from the next turn on.

        Returns:
            Its version.

        Raises:
            ArtifactError, ConfigError, GalleryError: it does not fit, or cannot be read: nothing is changed.
        """
        new = put_in_place(source, self._folder, self._engine.base.version)
        self.look()
        return new.version

    def turn(self, version: str) -> str:
        """Puts a version in use, "" for the newest that is ready; returns the one in use. For one thread."""
        versions = self._engine.versions
        wanted = self._newest if not version else self._version(version)
        if wanted is not None and wanted is not versions.current():
            before = versions.swap(wanted)
            if before.version != wanted.version:
                log.info("gallery changed", extra={"version": wanted.version, "items": len(wanted)})
                self._shown(wanted)
        return versions.current().version

    def look(self) -> None:
        """Reads what the folder holds, if that is new: it is in use from the next turn on.

        What cannot be read, or does not fit the base, is said once, and the version in use stays.
        """
        with self._looking:
            self._look()

    def _look(self) -> None:
        try:
            found = (self._folder / MANIFEST).stat()
        except OSError:
            return  # between two versions, or away: the next look will tell
        seen = (found.st_ino, found.st_mtime_ns)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            new = self._loaded("")
            self._engine.versions.check(new)
            warm_gallery(self._engine.pipeline, new)
        except QshiftError as error:
            log.error("the gallery stays as it was", extra={"error": str(error)})
        else:
            if not self._told and new.version != self._newest.version:
                self._told = True
                log.info(
                    "clean composed queries stay those of the base: qshift fit calibrate measures new ones"
                )
            self._newest = new

    def _watch(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            try:
                self.look()
                if (server := self._newest.searched.server) is not None:
                    server.sweep()
            except Exception:  # a folder is others' to write: nothing in it may stop the answers
                log.exception("the gallery stays as it was")

    def _version(self, version: str) -> VersionedGallery | None:
        """A version to repeat a batch with; None where it is gone, which is said."""
        if self._newest.version == version:
            return self._newest
        if version == newest(self._folder):
            self.look()  # a command may name it before the thread has seen it; it is followed from here on
            if self._newest.version == version:
                return self._newest
        found = self._engine.versions.version(version)
        if found is None:
            log.error("a batch is repeated from another gallery", extra={"version": version})
        return found

    def _again(self, version: str) -> VersionedGallery | None:
        """A version that is kept no longer, or never was here, from the folder; None where it is gone."""
        with self._reading:  # the loop asks for it, and those who judge
            if version not in self._older:
                try:
                    self._older[version] = self._loaded(version)
                except QshiftError as error:
                    if version not in self._gone:
                        log.warning("a version of the gallery is gone", extra={"error": str(error)})
                    self._gone.add(version)
                    return None
                while len(self._older) > OLDER:
                    del self._older[next(iter(self._older))]
            return self._older[version]

    def _loaded(self, version: str) -> VersionedGallery:
        config, base = self._engine.config, self._engine.base
        return load_gallery(
            self._folder, base, device(config), answer=config.answer, version=version, beside=self._newest,
            server=self._newest.searched.server,
        )  # fmt: skip
