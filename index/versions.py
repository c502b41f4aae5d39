"""The galleries of a running service: swap versions while it answers."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from core.errors import GalleryError
from index.gallery import VersionedGallery


class GalleryVersions:
    """The version in use, and a few older ones that late labels still refer to. Safe between threads.

    Args:
        gallery: the first version.
        older: how many versions before the current one stay reachable; the oldest goes first.
    """

    def __init__(self, gallery: VersionedGallery, older: int = 3) -> None:
        if older < 0:
            raise GalleryError(f"expected a number of older versions >= 0, got {older}")
        self._lock = Lock()
        self._limit = older + 1
        self._versions = {gallery.version: gallery}
        self._current = gallery
        self.find: Callable[[str], VersionedGallery | None] = lambda _: None
        """Where a version is looked for that is kept no longer: what is known of it must not hang on who was
        running when it was in use."""

    def keep(self, older: int) -> None:
        """From now on so many versions before the current one stay reachable."""
        self._limit = older + 1

    def current(self) -> VersionedGallery:
        """The version new batches are answered from."""
        return self._current

    def swap(self, new: VersionedGallery) -> VersionedGallery:
        """Puts a version in use from the next batch on; returns the one before.

        Raises:
            GalleryError: other code length, base model or width: the encoders in use cannot search it.
        """
        with self._lock:
            old = self._current
            self.check(new)
            self._versions.pop(new.version, None)
            self._versions[new.version] = new
            self._current = new
            while len(self._versions) > self._limit:
                del self._versions[next(iter(self._versions))]
            return old

    def check(self, new: VersionedGallery) -> None:
        """Raises what `swap` would."""
        old = self._current
        if (new.bits, new.base_version) != (old.bits, old.base_version):
            raise GalleryError(
                f"expected {old.bits} bits of base model {old.base_version!r}, got {new.bits} of "
                f"{new.base_version!r}: rebuild the gallery or restart with its base model"
            )
        if len(new) and len(old) and new.width != old.width:
            raise GalleryError(
                f"expected features of width {old.width}, got {new.width} (0: none): rebuild the gallery"
            )

    def version(self, version: str) -> VersionedGallery | None:
        """A version that is still kept, or found; else None."""
        with self._lock:
            kept = self._versions.get(version)
        return self.find(version) if kept is None else kept

    def holding(self, key: int) -> VersionedGallery:
        """The newest version that has an item of this key, the current one where none has."""
        with self._lock:
            kept = list(self._versions.values())
        return next((one for one in reversed(kept) if one.has(key)), self._current)

    def identifier(self, version: str, key: int) -> str:
        """The user's own name of an item in a version; its key where that is no longer kept."""
        gallery = self.version(version)
        return str(key) if gallery is None else gallery.identifier(key)

    def versions(self) -> tuple[str, ...]:
        """What is kept, oldest first, the current one last."""
        with self._lock:
            return tuple(self._versions)

    def release(self, version: str) -> None:
        """Lets an older version go; the current one stays."""
        with self._lock:
            if version != self._current.version:
                self._versions.pop(version, None)
