"""One version of a searchable gallery.

A version never changes: `add` and `remove` return the next one, so that a batch in flight keeps the items
it started with. Positions 0..N-1 follow the keys; keys are given out once and never used again.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from core.artifacts import read_manifest, tensors_hash, writing
from core.errors import ArtifactError, GalleryError
from core.types import Codes, Distances, Floats, Hits, Keys
from index.codes import NO_KEY, checked
from index.exact import ExactIndex, checked_keys

if TYPE_CHECKING:
    from index.binary import FaissIndex

Backend = Literal["faiss", "exact"]
Device = Literal["auto", "cpu", "cuda"]
Label = str | Sequence[str]
TENSORS, ITEMS = "gallery.safetensors", "items.json"


@dataclass(frozen=True, slots=True)
class Display:
    """How a page shows an item: a title, and the name of a picture file relative to the page's folder."""

    title: str = ""
    picture: str = ""

    def __post_init__(self) -> None:
        path = PurePosixPath(self.picture)
        if path.is_absolute() or ".." in path.parts or "\\" in self.picture:
            raise GalleryError(f"expected a picture's name inside the page's folder, got {self.picture!r}")


class VersionedGallery:
    """Identifiers, codes, labels and, where given, features and what pages show.

    Args:
        bits: L.
        ids: N of the user's own names, each once.
        codes: [N, L/8] uint8.
        labels: per item one label, several, or none (an empty sequence); the first is the item's own.
        features: [N, D] kept as float16, normalised first unless they are float16 already; None where
            nothing will be learned or re-ranked.
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
    ) -> None:
        count = len(ids)
        numbers = np.arange(count, dtype=np.int64) if keys is None else checked_keys(keys)
        columns: dict[str, int] = {"keys": len(numbers), "codes": len(codes), "labels": len(labels)}
        columns |= {"features": len(features)} if features is not None else {}
        columns |= {"displays": len(displays)} if displays is not None else {}
        if set(columns.values()) - {count}:
            raise GalleryError(f"expected {count} of everything, as there are identifiers, got {columns}")
        order = np.argsort(numbers, kind="stable")
        self.base_version = base_version
        self._backend: Backend = backend
        self._device: Device = device
        self._index = _index(backend, bits, device, threads)
        self._index.add(numbers, checked(codes, bits))
        self._keys, self._codes = _frozen(self._index.keys), _frozen(self._index.codes)
        self._ids: tuple[str, ...] = tuple(ids[i] for i in order)
        self._labels = tuple(_several(labels[i]) for i in order)
        self._displays = None if displays is None else tuple(displays[i] for i in order)
        self._half = None if features is None else _frozen(_half(features)[order])
        self._scale = None if self._half is None else _inverse_norms(self._half)
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
        """16 hex digits of sha256 over names, keys, codes, labels and features; not what pages show."""
        return self._version

    @property
    def bits(self) -> int:
        return self._index.bits

    @property
    def width(self) -> int:
        """D, or 0 without features."""
        return 0 if self._half is None else int(self._half.shape[1])

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
        position, unused = self._positions(keys)
        return _gathered(self._codes, position, unused)

    def features(self, keys: Keys) -> Floats:
        """Keys [...] -> unit float32 features [..., D]; zeros for key -1. Raises GalleryError."""
        if self._half is None or self._scale is None:
            raise GalleryError("expected a gallery with features, got codes only: build it with features")
        position, unused = self._positions(keys)
        rows = _gathered(self._half, position, unused).astype(np.float32)
        rows *= _gathered(self._scale, position, unused)[..., None]
        return rows

    def rerank(self, keys: Keys, queries: Floats) -> tuple[Keys, Floats]:
        """Orders candidates [B, K] by their cosine to unit queries [B, D], ties by key; NaN and then -1 last.

        Returns:
            Keys [B, K] and cosines [B, K], -inf where the key is -1.
        """
        if np.ndim(keys) != 2 or np.shape(queries) != (len(keys), self.width):
            raise GalleryError(
                f"expected keys [B, K] and queries [B, {self.width}], "
                f"got shapes {np.shape(keys)} and {np.shape(queries)}"
            )
        cosine = np.einsum("bkd,bd->bk", self.features(keys), queries).astype(np.float32)
        cosine[keys == NO_KEY] = -np.inf
        order = np.lexsort((keys, -cosine, keys == NO_KEY))
        return np.take_along_axis(keys, order, 1), np.take_along_axis(cosine, order, 1)

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
    ) -> VersionedGallery:
        """The next version, with more items; features are needed exactly if there are some already.

        Raises:
            GalleryError: as for building, and for names that are there already.
        """
        known = [name for name in ids if name in self._key_of]
        if known:
            raise GalleryError(f"expected new identifiers, got {known[:3]} again: remove them before adding")
        if len(self) and (features is None) != (self._half is None):
            raise GalleryError("expected features for all items or for none: add them as the others were")
        if displays is None and self._displays is not None:
            displays = [Display(name) for name in ids]
        shown = None if displays is None else [*map(self.display, self._keys.tolist()), *displays]
        half = self._half
        if features is not None:
            if half is not None and len(self) and np.shape(features)[1:] != half.shape[1:]:
                raise GalleryError(f"expected features [B, {self.width}], got shape {np.shape(features)}")
            half = np.concatenate((half, _half(features))) if len(self) and half is not None else features
        keys = np.arange(self._next_key, self._next_key + len(ids), dtype=np.int64)
        return self._with(
            [*self._ids, *ids],
            np.concatenate((self._codes, checked(codes, self.bits))),
            [*self._labels, *labels],
            half,
            shown,
            np.concatenate((self._keys, keys)),
        )

    def remove(self, ids: Sequence[str]) -> VersionedGallery:
        """The next version, without these items. Raises GalleryError for unknown names."""
        gone = {self._position(self.key_of(name)) for name in ids}
        kept = [i for i in range(len(self)) if i not in gone]
        return self._with(
            [self._ids[i] for i in kept],
            self._codes[kept],
            [self._labels[i] for i in kept],
            None if self._half is None else self._half[kept],
            None if self._displays is None else [self._displays[i] for i in kept],
            self._keys[kept],
        )

    def save(self, folder: Path) -> None:
        """Writes the version into a folder, over an earlier one, in one step."""
        tensors: dict[str, NDArray[Any]] = {"keys": self._keys, "codes": self._codes}
        if self._half is not None:
            tensors["features"] = self._half
        shown = None if self._displays is None else [[d.title, d.picture] for d in self._displays]
        manifest = {
            "version": self.version, "bits": self.bits, "items": len(self),
            "base_version": self.base_version, "next_key": self._next_key,
        }  # fmt: skip
        with writing(folder, "gallery", manifest) as draft:
            save_file(tensors, draft / TENSORS)
            items = {"ids": self._ids, "labels": self._labels, "displays": shown}
            (draft / ITEMS).write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")

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
            backend: as for building.
            device: as for building.
            threads: as for building.

        Raises:
            ArtifactError: missing, damaged, or built with another base model.
        """
        manifest = read_manifest(folder, "gallery")
        try:
            if {TENSORS, ITEMS} - manifest["files"].keys():
                raise ArtifactError(f"{folder} does not list {TENSORS} and {ITEMS}: rebuild the gallery")
            built = manifest["base_version"]
            if base_version is not None and built != base_version:
                raise ArtifactError(
                    f"gallery {folder} was built with base model {built!r}, in use is {base_version!r}: "
                    f"rebuild the gallery"
                )
            tensors = load_file(folder / TENSORS)
            items = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
            shown = items["displays"]
            gallery = cls(
                manifest["bits"], items["ids"], tensors["codes"], items["labels"], tensors.get("features"),
                None if shown is None else [Display(*both) for both in shown], tensors["keys"],
                backend=backend, device=device, threads=threads, base_version=built,
                next_key=int(manifest["next_key"]),
            )  # fmt: skip
            if gallery.version != manifest["version"]:
                raise ArtifactError(
                    f"{folder} holds version {gallery.version}, its manifest says {manifest['version']}: "
                    f"rebuild the gallery"
                )
        except (SafetensorError, GalleryError, KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f"gallery {folder} cannot be read: {error!r}; rebuild the gallery") from error
        return gallery

    def _with(
        self,
        ids: list[str],
        codes: Codes,
        labels: list[Label],
        features: NDArray[Any] | None,
        displays: list[Display] | None,
        keys: Keys,
    ) -> VersionedGallery:
        return VersionedGallery(
            self.bits, ids, codes, labels, features, displays, keys, backend=self._backend,
            device=self._device, base_version=self.base_version, next_key=self._next_key,
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
        tensors: dict[str, NDArray[Any]] = {"keys": self._keys, "codes": self._codes}
        if self._half is not None:
            tensors["features"] = self._half
        meta = {"bits": self.bits, "ids": self._ids, "labels": self._labels}
        return tensors_hash(tensors, meta)[:16]


def _index(backend: Backend, bits: int, device: Device, threads: int | None) -> ExactIndex | FaissIndex:
    if backend == "exact":
        return ExactIndex(bits)
    if backend == "faiss":
        from index.binary import FaissIndex  # a second of import that the exact backend need not wait for

        return FaissIndex(bits, device, threads)
    raise GalleryError(f'expected backend "faiss" or "exact", got {backend!r}')


def _several(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else tuple(label)


def _half(features: NDArray[Any]) -> NDArray[np.float16]:
    """Unit features as they are kept; float16 is taken as it is, so that loading changes no bit."""
    rows = np.asarray(features)
    if rows.ndim != 2 or not np.isfinite(rows).all() or not (np.abs(rows).max(axis=1, initial=0) > 0).all():
        raise GalleryError(
            f"expected finite features [N, D], none zero, got shape {rows.shape}: encode again"
        )
    if rows.dtype == np.float16:
        return rows
    values = rows.astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float16)


def _inverse_norms(half: NDArray[np.float16]) -> Floats:
    values = half.astype(np.float32)
    return _frozen((1 / np.sqrt(np.einsum("nd,nd->n", values, values))).astype(np.float32))


def _gathered(rows: NDArray[Any], position: NDArray[np.intp], unused: NDArray[np.bool_]) -> NDArray[Any]:
    """Rows at positions [...] -> [..., ...]; zeros where unused."""
    if not len(rows):
        return np.zeros((*position.shape, *rows.shape[1:]), rows.dtype)
    found = rows[position]
    if unused.any():
        blank = unused.reshape(unused.shape + (1,) * (rows.ndim - 1))
        return np.where(blank, rows.dtype.type(0), found)
    return np.asarray(found)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
