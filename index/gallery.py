"""One version of a searchable gallery.

A version never changes: `add` and `remove` return the next one, so that a batch in flight keeps the items
it started with. Positions 0..N-1 follow the keys; keys are given out once and never used again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.artifacts import read_manifest, tensors_hash
from core.attributes import Attribute
from core.errors import ArtifactError, GalleryError
from core.filters import Filter
from core.types import Codes, Distances, Floats, Hits, Keys
from index.attributes import ItemAttributes, joined
from index.backends import Backend as Backend
from index.backends import Device as Device
from index.backends import index_of
from index.codes import NO_KEY, checked
from index.columns import Display as Display
from index.columns import Features, frozen, gathered, half
from index.exact import checked_keys
from index.gallery_files import Columns, read, reading, write

Label = str | Sequence[str]


class VersionedGallery:
    """Identifiers, codes, labels and, where given, features and what pages show.

    Args:
        bits: L.
        ids: N of the user's own names, each once.
        codes: [N, L/8] uint8.
        labels: per item one label, several, or none (an empty sequence); the first is the item's own.
        features: [N, D] kept as float16, normalised first unless they are float16 already; None where
            nothing will be learned or re-ranked.
        attributes: of each item, by name (`core/attributes.py`); None: nothing is said, filters find nothing.
        displays: per item; None: nothing to show.
        keys: [N] int64 >= 0, each once, in any order; None: 0..N-1.
        backend: "faiss" or "exact"; both give the same hits.
        device: of the faiss backend.
        threads: OpenMP threads of faiss, for the whole process; None leaves them alone.
        base_version: the base model whose head made the codes.
        next_key: the first key never given out; None: after the largest.

    Raises:
        GalleryError: columns of different length, a name or key twice, a wrong width, features that are
            zero or not finite.
    """

    def __init__(
        self,
        bits: int,
        ids: Sequence[str],
        codes: Codes,
        labels: Sequence[Label],
        features: NDArray[Any] | None = None,
        displays: Sequence[Display] | None = None,
        keys: Keys | None = None,
        *,
        backend: Backend = "faiss",
        device: Device = "cpu",
        threads: int | None = None,
        base_version: str = "",
        next_key: int | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        count = len(ids)
        numbers = np.arange(count, dtype=np.int64) if keys is None else checked_keys(keys)
        columns: dict[str, int] = {"keys": len(numbers), "codes": len(codes), "labels": len(labels)}
        columns |= {"features": len(features)} if features is not None else {}
        columns |= {"displays": len(displays)} if displays is not None else {}
        columns |= {"attributes": len(attributes)} if attributes is not None else {}
        if set(columns.values()) - {count}:
            raise GalleryError(f"expected {count} of everything, as there are identifiers, got {columns}")
        order = np.argsort(numbers, kind="stable")
        self.base_version = base_version
        self._backend: Backend = backend
        self._device: Device = device
        self._index = index_of(backend, bits, device, threads)
        self._index.add(numbers, checked(codes, bits))
        self._keys, self._codes = frozen(self._index.keys), frozen(self._index.codes)
        self._ids: tuple[str, ...] = tuple(ids[i] for i in order)
        self._labels = tuple(_several(labels[i]) for i in order)
        self._displays = None if displays is None else tuple(displays[i] for i in order)
        self._features = None if features is None else Features(half(features)[order])
        self._attributes = None if attributes is None else ItemAttributes([attributes[i] for i in order])
        self._next_key = max(next_key or 0, int(self._keys[-1]) + 1 if count else 0)
        self._key_of: dict[str, int] = dict(zip(self._ids, self._keys.tolist(), strict=True))
        if len(self._key_of) != count:
            (name, times), *_ = Counter(self._ids).most_common(1)
            raise GalleryError(f"expected each identifier once, got {name!r} {times} times: keep one")
        self._carriers: dict[str, array[int]] = {}
        for position, several in enumerate(self._labels):
            for label in several:
                self._carriers.setdefault(label, array("q")).append(position)
        self._version = self._identity()

    @property
    def version(self) -> str:
        """16 hex digits of sha256 over all that is kept of the items but what pages show."""
        return self._version

    @property
    def bits(self) -> int:
        return self._index.bits

    @property
    def width(self) -> int:
        """D, or 0 without features."""
        return 0 if self._features is None else self._features.width

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K nearest [B, K] by (distance, key); unused places hold -1 and 2147483647."""
        return self._index.search(codes, k, allowed)

    def distances(self, codes: Codes) -> Distances:
        """[B, L/8] -> [B, N] int32 in position order."""
        return self._index.distances(codes)

    def keys(self) -> Keys:
        """[N] ascending: position order."""
        return self._keys

    def codes_of(self, keys: Keys) -> Codes:
        """Keys [...] -> codes [..., L/8]; zeros for key -1. Raises GalleryError for unknown keys."""
        return gathered(self._codes, *self._positions(keys))

    def features(self, keys: Keys) -> Floats:
        """Keys [...] -> unit float32 features [..., D]; zeros for key -1. Raises GalleryError."""
        if self._features is None:
            raise GalleryError("expected a gallery with features, got codes only: build it with features")
        return self._features.at(*self._positions(keys))

    def relevant(self, label: str) -> NDArray[np.bool_]:
        """[N] True where an item carries the label."""
        carries = np.zeros(len(self), np.bool_)
        carries[self.carriers(label)] = True
        return carries

    def carriers(self, label: str) -> NDArray[np.int64]:
        """Positions of the items that carry the label, ascending; for judging without [N] marks."""
        found = self._carriers.get(label)
        return np.empty(0, np.int64) if found is None else np.frombuffer(found, dtype=np.int64)

    def identifier(self, key: int) -> str:
        """The user's own name of an item. Raises GalleryError for unknown keys."""
        return self._ids[self._position(key)]

    def key_of(self, identifier: str) -> int:
        """The key of the user's own name. Raises GalleryError for unknown names."""
        if identifier not in self._key_of:
            raise GalleryError(f"no item is called {identifier!r} in gallery {self.version}")
        return self._key_of[identifier]

    def labels_of(self, key: int) -> tuple[str, ...]:
        """All labels of an item, its own first."""
        return self._labels[self._position(key)]

    def attributes_of(self, key: int) -> Mapping[str, Attribute]:
        """What is said of an item; {} where nothing is."""
        position = self._position(key)
        return {} if self._attributes is None else self._attributes.rows[position]

    def allowed(self, wanted: Filter) -> Keys:
        """Keys [n] of the items that a filter lets through, ascending; of no condition all."""
        if self._attributes is None:
            return self._keys[:0] if wanted else self._keys
        return self._keys[self._attributes.allowed(wanted)]

    def titles(self) -> list[str]:
        """What the items are called, in position order; [] where nothing was said."""
        return [] if self._displays is None else [shown.title for shown in self._displays]

    def display(self, key: int) -> Display:
        """What pages show of an item; its name as the title where nothing was given."""
        position = self._position(key)
        return Display(self._ids[position]) if self._displays is None else self._displays[position]

    def add(
        self,
        ids: Sequence[str],
        codes: Codes,
        labels: Sequence[Label],
        features: NDArray[Any] | None = None,
        displays: Sequence[Display] | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> VersionedGallery:
        """The next version, with more items; features are needed exactly if there are some already.

        Raises:
            GalleryError: as for building, and for names that are there already.
        """
        known = [name for name in ids if name in self._key_of]
        if known:
            raise GalleryError(f"expected new identifiers, got {known[:3]} again: remove them before adding")
        if len(self) and (features is None) != (self._features is None):
            raise GalleryError("expected features for all items or for none: add them as the others were")
        if displays is None and self._displays is not None:
            displays = [Display(name) for name in ids]
        shown = None if displays is None else [*map(self.display, self._keys.tolist()), *displays]
        keys = np.arange(self._next_key, self._next_key + len(ids), dtype=np.int64)
        return self._with(
            [*self._ids, *ids],
            np.concatenate((self._codes, checked(codes, self.bits))),
            [*self._labels, *labels],
            self._more(features),
            shown,
            np.concatenate((self._keys, keys)),
            joined(self._attributes, len(self), attributes, len(ids)),
        )

    def _more(self, features: NDArray[Any] | None) -> NDArray[Any] | None:
        """Ours and these."""
        kept = None if self._features is None else self._features.rows
        if features is None:
            return kept
        if kept is None or not len(self):
            return features
        if np.shape(features)[1:] != kept.shape[1:]:
            raise GalleryError(f"expected features [B, {self.width}], got shape {np.shape(features)}")
        return np.concatenate((kept, half(features)))

    def remove(self, ids: Sequence[str]) -> VersionedGallery:
        """The next version, without these items. Raises GalleryError for unknown names."""
        gone = {self._position(self.key_of(name)) for name in ids}
        kept = [i for i in range(len(self)) if i not in gone]
        return self._with(
            [self._ids[i] for i in kept],
            self._codes[kept],
            [self._labels[i] for i in kept],
            None if self._features is None else self._features.rows[kept],
            None if self._displays is None else [self._displays[i] for i in kept],
            self._keys[kept],
            None if self._attributes is None else [self._attributes.rows[i] for i in kept],
        )

    def save(self, folder: Path) -> None:
        """Writes the version into a folder, over an earlier one, in one step."""
        manifest = {
            "version": self.version, "bits": self.bits, "items": len(self),
            "base_version": self.base_version, "next_key": self._next_key,
        }  # fmt: skip
        write(folder, manifest, self._columns())

    @classmethod
    def load(
        cls,
        folder: Path,
        base_version: str | None = None,
        *,
        backend: Backend = "faiss",
        device: Device = "cpu",
        threads: int | None = None,
    ) -> VersionedGallery:
        """Reads a version back.

        Args:
            folder: as written by `save`.
            base_version: the base model in use; None: not checked.
            backend, device, threads: as for building.

        Raises:
            ArtifactError: missing, damaged, or built with another base model.
        """
        manifest = read_manifest(folder, "gallery")
        with reading(folder):
            built = manifest["base_version"]
            if base_version is not None and built != base_version:
                raise ArtifactError(
                    f"gallery {folder} was built with base model {built!r}, in use is {base_version!r}: "
                    f"rebuild the gallery"
                )
            kept = read(folder, manifest)
            gallery = cls(
                manifest["bits"], kept.ids, kept.codes, kept.labels, kept.features,
                None if kept.displays is None else [Display(*both) for both in kept.displays], kept.keys,
                backend=backend, device=device, threads=threads, base_version=built,
                next_key=int(manifest["next_key"]), attributes=kept.attributes,
            )  # fmt: skip
            if gallery.version != manifest["version"]:
                raise ArtifactError(
                    f"{folder} holds version {gallery.version}, its manifest says {manifest['version']}: "
                    f"rebuild the gallery"
                )
        return gallery

    def _columns(self) -> Columns:
        shown = None if self._displays is None else [[d.title, d.picture] for d in self._displays]
        return Columns(
            self._keys, self._codes, None if self._features is None else self._features.rows,
            self._ids, self._labels, shown, None if self._attributes is None else self._attributes.rows,
        )  # fmt: skip

    def _with(
        self, ids: list[str], codes: Codes, labels: list[Label], features: NDArray[Any] | None,
        displays: list[Display] | None, keys: Keys, attributes: list[Any] | None,
    ) -> VersionedGallery:  # fmt: skip
        return VersionedGallery(
            self.bits, ids, codes, labels, features, displays, keys, backend=self._backend,
            device=self._device, base_version=self.base_version, next_key=self._next_key,
            attributes=attributes,
        )  # fmt: skip

    def _position(self, key: int) -> int:
        position = int(np.searchsorted(self._keys, key))
        if position == len(self) or self._keys[position] != key:
            raise GalleryError(f"expected the key of an item of gallery {self.version}, got {key}")
        return position

    def _positions(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Positions of keys [...], and where the key is -1 (the position there means nothing)."""
        wanted = np.asarray(keys, dtype=np.int64)
        unused = wanted == NO_KEY
        if not len(self):
            position, unknown = np.zeros(wanted.shape, np.intp), ~unused
        else:
            position = np.minimum(np.searchsorted(self._keys, wanted), len(self) - 1)
            unknown = (self._keys[position] != wanted) & ~unused
        if unknown.any():
            raise GalleryError(
                f"expected keys of gallery {self.version}, got {wanted[unknown][:3].tolist()}: "
                f"they are of another version"
            )
        return position, unused

    def _identity(self) -> str:
        meta: dict[str, Any] = {"bits": self.bits, "ids": self._ids, "labels": self._labels}
        meta |= {} if self._attributes is None else {"attributes": self._attributes.rows}
        return tensors_hash(self._columns().tensors, meta)[:16]


def _several(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else tuple(label)
