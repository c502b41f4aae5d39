"""One version of a searchable gallery.

A version never changes: `add`, `remove` and `upsert` return the next one, so that a batch in flight keeps
the items it started with. It is made of immutable segments, ascending by key, and a bitmap of what is gone
from each; the next one shares them: a change costs what is changed. Positions follow the keys, and those
are given out once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from core.attributes import Attribute
from core.config import IndexKind
from core.errors import GalleryError
from core.filters import Filter
from core.types import Codes, Distances, Floats, Hits, Keys
from index.codes import checked
from index.columns import Display as Display
from index.columns import frozen, gathered
from index.exact import checked_k
from index.folder import Saved, load, save
from index.gathering import rows_of
from index.lineage import Lineage
from index.living import Living, merged_hits
from index.segment import Backend as Backend
from index.segment import Device, Searched, Segment
from index.segment import Label as Label

if TYPE_CHECKING:
    from index.milvus import Milvus


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
        searched = Searched(backend, device)
        numbers = np.arange(len(ids), dtype=np.int64) if keys is None else keys
        first = Segment(bits, ids, codes, labels, features, displays, numbers, searched, threads, attributes)
        after = max(next_key or 0, int(first.keys[-1]) + 1 if len(first) else 0)
        self._begin(
            Saved((Living(first),), Lineage(first.identity[:16], after), after, base_version), searched
        )

    def _begin(self, made: Saved, searched: Searched) -> None:
        self._parts, self._lineage, self._next_key, self.base_version = made
        self.searched = searched
        self._firsts = [int(part.segment.keys[0]) if len(part.segment) else 0 for part in self._parts]
        ends = np.cumsum([len(part) for part in self._parts]).tolist()
        self._starts, self._count = [0, *ends[:-1]], int(ends[-1])
        self._version = self._lineage.version

    @classmethod
    def _of(cls, made: Saved, searched: Searched) -> Self:
        gallery = cls.__new__(cls)
        gallery._begin(made, searched)
        return gallery

    @property
    def version(self) -> str:
        """16 hex digits that name all that is kept of the items but what pages show.

        A gallery made from nothing is named by a sha256 over all of these; for one that was changed since
        see `index.lineage`.
        """
        return self._version

    @property
    def bits(self) -> int:
        return self._parts[0].segment.bits

    @property
    def width(self) -> int:
        """D, or 0 without features."""
        features = self._parts[0].segment.features
        return 0 if features is None else features.width

    @property
    def parts(self) -> tuple[Living, ...]:
        """Its segments, ascending by key."""
        return self._parts

    def __len__(self) -> int:
        return self._count

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K nearest [B, K] by (distance, key); unused places hold -1 and 2147483647."""
        checked_k(k)
        return merged_hits([part.search(codes, k, allowed) for part in self._parts], k)

    def distances(self, codes: Codes) -> Distances:
        """[B, L/8] -> [B, N] int32 in position order."""
        found = [part.distances(codes) for part in self._parts]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def keys(self) -> Keys:
        """[N] ascending: position order."""
        return self._keys

    @cached_property
    def _keys(self) -> Keys:
        return frozen(np.concatenate([part.keys for part in self._parts]))

    def codes_of(self, keys: Keys) -> Codes:
        """Keys [...] -> codes [..., L/8]; zeros for key -1. Raises GalleryError for unknown keys."""
        width = self._parts[0].segment.codes.shape[1]
        return rows_of(
            self._parts,
            self.version,
            keys,
            np.zeros(width, np.uint8),
            lambda s, p, u: gathered(s.codes, p, u),
        )

    def features(self, keys: Keys) -> Floats:
        """Keys [...] -> unit float32 features [..., D]; zeros for key -1. Raises GalleryError."""
        if self._parts[0].segment.features is None:
            raise GalleryError("expected a gallery with features, got codes only: build it with features")

        def at(segment: Segment, position: NDArray[np.intp], unused: NDArray[np.bool_]) -> Floats:
            assert segment.features is not None, "all have them or none"
            return segment.features.at(position, unused)

        return rows_of(self._parts, self.version, keys, np.zeros(self.width, np.float32), at)

    def relevant(self, label: str) -> NDArray[np.bool_]:
        """[N] True where an item carries the label."""
        carries = np.zeros(len(self), np.bool_)
        carries[self.carriers(label)] = True
        return carries

    def carriers(self, label: str) -> NDArray[np.int64]:
        """Positions of the items that carry the label, ascending; for judging without [N] marks."""
        found = [part.carriers(label) for part in self._parts]
        if len(found) == 1:
            return found[0]
        return np.concatenate([start + places for start, places in zip(self._starts, found)])

    def identifier(self, key: int) -> str:
        """The user's own name of an item. Raises GalleryError for unknown keys."""
        part, position = self._at(key)
        return part.segment.ids[position]

    def key_of(self, identifier: str) -> int:
        """The key of the user's own name. Raises GalleryError for unknown names."""
        key = self._known(identifier)
        if key is None:
            raise GalleryError(f"no item is called {identifier!r} in gallery {self.version}")
        return key

    def holds(self, identifier: str) -> bool:
        """Whether an item has the user's own name."""
        return self._known(identifier) is not None

    def labels_of(self, key: int) -> tuple[str, ...]:
        """All labels of an item, its own first."""
        part, position = self._at(key)
        return part.segment.labels[position]

    def attributes_of(self, key: int) -> Mapping[str, Attribute]:
        """What is said of an item; {} where nothing is."""
        part, position = self._at(key)
        return part.segment.said(position)

    def allowed(self, wanted: Filter) -> Keys:
        """Keys [n] of the items that a filter lets through, ascending; of no condition all."""
        return np.concatenate([part.allowed(wanted) for part in self._parts]) if wanted else self._keys

    def titles(self) -> list[str]:
        """What the items are called, in position order; [] where nothing was said."""
        if all(part.segment.displays is None for part in self._parts):
            return []
        return [part.segment.display(i).title for part in self._parts for i in part.alive.tolist()]

    def display(self, key: int) -> Display:
        """What pages show of an item; its name as the title where nothing was given."""
        part, position = self._at(key)
        return part.segment.display(position)

    def add(
        self,
        ids: Sequence[str], codes: Codes, labels: Sequence[Label], features: NDArray[Any] | None = None,
        displays: Sequence[Display] | None = None, attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> VersionedGallery:  # fmt: skip
        """The next version, with more items; features are needed exactly if there are some already.

        Raises:
            GalleryError: as for building, and for names that are there already.
        """
        known = [name for name in ids if self._known(name) is not None]
        if known:
            raise GalleryError(f"expected new identifiers, got {known[:3]} again: remove them before adding")
        return self.upsert(ids, codes, labels, features, displays, attributes)

    def upsert(
        self,
        ids: Sequence[str], codes: Codes, labels: Sequence[Label], features: NDArray[Any] | None = None,
        displays: Sequence[Display] | None = None, attributes: Sequence[Mapping[str, Any]] | None = None,
        offsets: Sequence[int] | None = None,
    ) -> VersionedGallery:  # fmt: skip
        """The next version, with these items in the place of those of the same names; they get new keys.

        `offsets` are where the items stand in a log; see `Lineage.keys`. None: they stand in none.

        Raises:
            GalleryError: as for building; features are needed exactly if there are some already.
        """
        if len(self) and (features is None) == bool(self.width):
            raise GalleryError("expected features for all items or for none: add them as the others were")
        if len(self) and features is not None and np.shape(features)[1:] != (self.width,):
            raise GalleryError(f"expected features [B, {self.width}], got shape {np.shape(features)}")
        keys, rows = self._lineage.keys(self._next_key, len(ids), offsets), checked(codes, self.bits)
        more = Segment(
            self.bits, ids, rows, labels, features, displays, keys, self.searched, attributes=attributes
        )
        if not len(more):
            return self
        return self._changed([key for name in ids if (key := self._known(name)) is not None], more)

    def remove(self, ids: Sequence[str]) -> VersionedGallery:
        """The next version, without these items. Raises GalleryError for unknown names."""
        return self._changed([self.key_of(name) for name in dict.fromkeys(ids)], None)

    def _changed(self, gone: Sequence[int], more: Segment | None) -> VersionedGallery:
        """Without the items of some keys, and with a segment of larger ones."""
        found = [self._at(key) for key in gone]
        lineage = self._lineage.without((part.segment, position) for part, position in found)
        places: dict[int, list[int]] = {}
        for part, position in found:
            places.setdefault(id(part), []).append(position)
        parts = [part.without(places[id(part)]) if id(part) in places else part for part in self._parts]
        if more is not None:
            parts.append(Living(more))
            lineage = lineage.with_items(more)
        # Of a gallery in which nothing is left one segment says how wide its items were.
        parts = [part for part in parts if len(part)] or parts[:1]
        after = self._next_key if more is None else int(more.keys[-1]) + 1
        return self._of(Saved(tuple(parts), lineage, after, self.base_version), self.searched)

    def with_parts(self, parts: Sequence[Living]) -> VersionedGallery:
        """The same version, laid out anew: the caller vouches that the items are the same."""
        made = Saved(tuple(parts), self._lineage, self._next_key, self.base_version)
        return self._of(made, self.searched)

    def by(self, kind: IndexKind, effort: int | None = None, threads: int | None = None) -> VersionedGallery:
        """The same version under another kind of index, on the CPU; all else is shared, nothing is read."""
        searched = Searched("faiss", "cpu", kind, effort, self.searched.server)
        parts = tuple(Living(part.segment.by(searched, threads), part.dead) for part in self._parts)
        return self._of(Saved(parts, self._lineage, self._next_key, self.base_version), searched)

    def save(self, folder: Path, items_offset: int = 0) -> None:
        """Writes what a folder lacks of the version, in one step; `items_offset`: see `index.folder.save`."""
        save(folder, Saved(self._parts, self._lineage, self._next_key, self.base_version), items_offset)

    @classmethod
    def load(
        cls, folder: Path, base_version: str | None = None, *, backend: Backend = "faiss",
        device: Device = "cpu", threads: int | None = None, version: str = "",
        beside: VersionedGallery | None = None, kind: IndexKind = "flat", effort: int | None = None,
        server: Milvus | None = None,
    ) -> VersionedGallery:  # fmt: skip
        """Reads a version back.

        Args:
            folder: as written by `save`.
            base_version: the base model in use; None: not checked.
            backend, device, threads: as for building.
            version: "" for the newest; else one that was replaced within the hour.
            beside: a version that is in memory: what both hold is shared.
            kind, effort: of index, see `index.approximate`; an item's distance is exact with all of them.
            server: that searches where `kind` is one of `core.config.SERVED`.

        Raises:
            ArtifactError: missing, damaged, or built with another base model.
        """
        searched = Searched(backend, device, kind, effort, server)
        parts = () if beside is None else beside.parts
        return cls._of(load(folder, base_version, searched, threads, version, parts), searched)

    def _known(self, identifier: str) -> int | None:
        return next((k for part in self._parts if (k := part.key_of(identifier)) is not None), None)

    def has(self, key: int) -> bool:
        """Whether an item has this key."""
        return any(part.position(key) is not None for part in self._parts)

    def _at(self, key: int) -> tuple[Living, int]:
        """Segment and position inside it. Raises GalleryError for unknown keys."""
        part = self._parts[max(0, bisect_right(self._firsts, key) - 1)]
        position = part.position(key)
        if position is None:
            raise GalleryError(f"expected the key of an item of gallery {self.version}, got {key}")
        return part, position
