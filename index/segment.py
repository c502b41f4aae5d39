"""Items that were added together. A segment never changes: a gallery is made of some, and shares them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.artifacts import tensors_hash
from core.attributes import Attributes
from core.config import SERVED, IndexKind
from core.errors import ConfigError, GalleryError
from core.filters import Filter
from core.types import Codes, Keys
from index.attributes import ItemAttributes, Positions
from index.codes import checked
from index.columns import Display, Features, frozen, half
from index.exact import ExactIndex, checked_keys
from index.gallery_files import Columns

if TYPE_CHECKING:
    from index.approximate import ApproximateIndex
    from index.binary import FaissIndex
    from index.milvus import Milvus
    from index.remote import MilvusIndex

Backend = Literal["faiss", "exact"]
Device = Literal["auto", "cpu", "cuda"]
Label = str | Sequence[str]
HOST_ITEMS = 1 << 15
"""Fewer items stay on the host where the device is "auto": an index on a GPU reserves memory of its own."""


Index: TypeAlias = "ExactIndex | FaissIndex | ApproximateIndex | MilvusIndex"


@dataclass(frozen=True, slots=True)
class Searched:
    """How segments are searched: backend "faiss" or "exact", and of faiss device, kind and its effort.

    `server` searches kinds of `core.config.SERVED`.
    """

    backend: Backend
    device: Device
    kind: IndexKind = "flat"
    effort: int | None = None
    server: Milvus | None = None

    def index(self, bits: int, items: int, threads: int | None = None) -> Index:
        """An empty index for so many items.

        Raises GalleryError for an unknown backend, ConfigError for a kind on a GPU or without its server.
        """
        if self.backend == "exact":
            return ExactIndex(bits)
        if self.kind != "flat":
            if self.device == "cuda":
                raise ConfigError(
                    f'an index of kind {self.kind} is searched on the CPU: "flat", or device = "cpu"'
                )
            if self.kind in SERVED:
                from index.remote import MilvusIndex

                if self.server is None:
                    raise ConfigError(f"an index of kind {self.kind} needs a server: set milvus.address")
                return MilvusIndex(bits, self.kind, self.server, self.effort, threads)
            from index.approximate import ApproximateIndex

            return ApproximateIndex(bits, self.kind, self.effort, threads)
        if self.backend == "faiss":
            from index.binary import FaissIndex  # a second of import that the exact backend need not wait for

            small = self.device == "auto" and items < HOST_ITEMS
            return FaissIndex(bits, "cpu" if small else self.device, threads)
        raise GalleryError(f'expected backend "faiss" or "exact", got {self.backend!r}')


class Segment:
    """Columns of n items in the order of their keys, and an index over their codes.

    Args:
        bits: L.
        ids: n of the user's own names, each once.
        codes: [n, L/8] uint8.
        labels: per item one label, several, or none.
        features: [n, D], see `index.columns.half`; None: codes only. As `Features` they are ascending by key
            already, and not copied.
        displays: per item; None: nothing to show.
        keys: [n] int64 >= 0, each once, in any order.
        searched: how; threads: see `FaissIndex`.
        attributes: of each item; None: nothing is said, which is the same as {} of every item.

    Raises:
        GalleryError: columns of different length, a name or key twice, a wrong width, bad features or
            attributes.
    """

    def __init__(
        self, bits: int, ids: Sequence[str], codes: Codes, labels: Sequence[Label],
        features: NDArray[Any] | Features | None, displays: Sequence[Display] | None, keys: Keys,
        searched: Searched, threads: int | None = None, attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        count, numbers = len(ids), checked_keys(keys)
        columns: dict[str, int] = {"keys": len(numbers), "codes": len(codes), "labels": len(labels)}
        columns |= {"features": len(features)} if features is not None else {}
        columns |= {"displays": len(displays)} if displays is not None else {}
        columns |= {"attributes": len(attributes)} if attributes is not None else {}
        if set(columns.values()) - {count}:
            raise GalleryError(f"expected {count} of everything, as there are identifiers, got {columns}")
        order = np.argsort(numbers, kind="stable")
        self.index = searched.index(bits, count, threads)
        self.index.add(numbers, checked(codes, bits))
        self.keys, self.codes = frozen(self.index.keys), frozen(self.index.codes)
        self.unbroken = bool(count) and int(self.keys[-1] - self.keys[0]) == count - 1
        """Whether the keys follow each other without a gap."""
        self.ids: tuple[str, ...] = tuple(ids[i] for i in order)
        self.labels = tuple(_several(labels[i]) for i in order)
        self.displays = None if displays is None else tuple(displays[i] for i in order)
        if features is None or isinstance(features, Features):
            self.features = features
        else:
            self.features = Features(half(features)[order])
        said = None if attributes is None else ItemAttributes([attributes[i] for i in order])
        self.attributes = said if said is not None and said.names else None
        """None where nothing is said of any item."""
        self.key_of: dict[str, int] = dict(zip(self.ids, self.keys.tolist(), strict=True))
        if len(self.key_of) != count:
            (name, times), *_ = Counter(self.ids).most_common(1)
            raise GalleryError(f"expected each identifier once, got {name!r} {times} times: keep one")
        self.stored: tuple[str, str] | None = None
        """sha256 of the two files that hold these items, where there are any: they are not written again."""
        self.carriers: dict[str, array[int]] = {}
        """Positions inside the segment, ascending, by label."""
        for position, several in enumerate(self.labels):
            for label in several:
                self.carriers.setdefault(label, array("q")).append(position)

    def by(self, searched: Searched, threads: int | None = None) -> Segment:
        """The same items, of which all is shared, under another index. Raises as `Searched.index`."""
        other = copy(self)
        other.index = searched.index(self.bits, len(self), threads)
        other.index.add(self.keys, self.codes)
        return other

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bits(self) -> int:
        return self.index.bits

    @cached_property
    def identity(self) -> str:
        """sha256 over names, keys, codes, labels, features and attributes; not what pages show."""
        meta: dict[str, Any] = {"bits": self.bits, "ids": self.ids, "labels": self.labels}
        if self.attributes is not None:  # without any it is what it was before there were attributes
            meta["attributes"] = self.attributes.rows
        return tensors_hash(self.columns().tensors, meta)

    def display(self, position: int) -> Display:
        """What pages show; the name as the title where nothing was given."""
        return Display(self.ids[position]) if self.displays is None else self.displays[position]

    def said(self, position: int) -> Attributes:
        """What is said of an item; {} where nothing is."""
        return {} if self.attributes is None else self.attributes.rows[position]

    def allowed(self, wanted: Filter) -> Positions:
        """Positions of the items that a filter of one condition or more lets through, ascending."""
        return np.empty(0, np.int64) if self.attributes is None else self.attributes.allowed(wanted)

    def positions(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where keys [...] stand, and whether they are here: a position means nothing where not."""
        if not len(self):
            return np.zeros(keys.shape, np.intp), np.zeros(keys.shape, np.bool_)
        if self.unbroken:
            found = np.clip(keys - self.keys[0], 0, len(self) - 1)
        else:
            found = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        return found, self.keys[found] == keys

    def columns(self) -> Columns:
        """As files hold them."""
        shown = None if self.displays is None else [[d.title, d.picture] for d in self.displays]
        rows = None if self.features is None else self.features.rows
        said = None if self.attributes is None else self.attributes.rows
        return Columns(self.keys, self.codes, rows, self.ids, self.labels, shown, said)


def _several(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else tuple(label)
